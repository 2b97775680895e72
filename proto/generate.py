"""Generate the committed stubs from the .proto files, or check that they are current.

    python proto/generate.py            write sdk/overspill/wire/v1/
    python proto/generate.py --check    exit 1 and name each file that differs

grpcio-tools is pinned to 1.80.0: newer generators refuse older protobuf runtimes.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
STUBS = ROOT / "sdk" / "overspill" / "wire" / "v1"
PINNED = "1.80.0"


def generate(out: Path) -> None:
    """Write all stubs under ``out`` (a folder that stands for ``sdk/``)."""
    from grpc_tools import protoc

    sources = sorted(str(p.relative_to(PROTO)) for p in PROTO.rglob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTO}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *sources,
        ]
    )
    if code:
        sys.exit(f"protoc failed with {code}")
    (out / "overspill/wire/v1/__init__.py").write_text(
        '"""Generated from proto/overspill/wire/v1 by proto/generate.py; do not edit."""\n'
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    if version("grpcio-tools") != PINNED:
        sys.exit(f"grpcio-tools {version('grpcio-tools')} is installed; {PINNED} is pinned.")
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "overspill/wire/v1"
        names = {p.name for p in fresh.iterdir()}
        if not check:
            STUBS.mkdir(parents=True, exist_ok=True)
            for old in STUBS.glob("*_pb2*"):
                old.unlink()
            for name in sorted(names):
                (STUBS / name).write_bytes((fresh / name).read_bytes())
            return
        old_names = {p.name for p in STUBS.glob("*.py*") if p.is_file()}
        _, differ, missing = filecmp.cmpfiles(fresh, STUBS, sorted(names), shallow=False)
        stale = sorted({*differ, *missing, *(old_names - names)})
        if stale:
            sys.exit("Stale stubs: " + ", ".join(stale) + ". Run: python proto/generate.py")


if __name__ == "__main__":
    main()
