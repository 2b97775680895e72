"""Try an installed wheel with the base dependencies alone: imports, stubs, data, scripts.

Run it with the Python of a clean environment, away from the checkout. Exits 1 and names each
thing that is wrong. Standard library only.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

STUBS = ("chat", "local", "sealed", "trust")
DATA = (
    ("overspill", "py.typed"),
    ("overspill_edge", "py.typed"),
    ("overspill_cloud", "py.typed"),
    ("overspill", "routing/scorer.json"),
    ("overspill", "cli/demo_prompts.json"),
    ("overspill", "models/brook/brook-q8_0.gguf"),
)


def imports() -> list[str]:
    """Every public name resolves, and every stub imports."""
    import overspill

    wrong = [
        f"overspill.{name} does not exist"
        for name in overspill.__all__
        if not hasattr(overspill, name)
    ]
    modules = [f"overspill.wire.v1.{stub}_pb2{kind}" for stub in STUBS for kind in ("", "_grpc")]
    for module in ("overspill_edge", "overspill_cloud", *modules):
        try:
            importlib.import_module(module)
        except ImportError as error:
            wrong.append(f"{module} cannot be imported: {error}")
    return wrong


def data() -> list[str]:
    """Files that are no modules are in the wheel too."""
    return [
        f"{package}/{name} is missing from the wheel"
        for package, name in DATA
        if not files(package).joinpath(name).is_file()
    ]


def scripts() -> list[str]:
    """``overspill`` helps; what needs an extra says which, in one line, without a traceback."""
    folder, wrong = Path(sys.executable).parent, []
    for script in ("overspill", "overspill-cloud"):
        done = subprocess.run(
            [str(folder / script), "--help"], capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        names_extra = done.returncode == 2 and 'pip install "overspill[' in output
        if "Traceback" in output or not (done.returncode == 0 or names_extra):
            wrong.append(f"{script} --help exits {done.returncode}: {output.strip()[-300:]}")
    return wrong


def main() -> None:
    """Run all and report."""
    wrong = [*imports(), *data(), *scripts()]
    for line in wrong:
        print(f"wheel: {line}", file=sys.stderr)
    if wrong:
        sys.exit(1)
    print("wheel: imports, stubs, data and scripts are fine")


if __name__ == "__main__":
    main()
