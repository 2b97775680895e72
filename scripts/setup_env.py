"""Create an environment and install this checkout into it, editable, with the named extras.

    python3 scripts/setup_env.py .venv demo      what `make demo` needs
    python3 scripts/setup_env.py .venv test      everything that tests and checks need

Needs Python 3.11 or newer and, the first time, a C and C++ compiler: llama-cpp-python comes as
source. Its wheel is built once (about 3 minutes on 2 cores) and kept in the user's cache folder,
``$XDG_CACHE_HOME/overspill/wheels``, by Python, machine and processor features, because
llama.cpp compiles for the processor that it finds. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {"demo": ["llama", "edge", "cloud"], "test": ["dev"]}


def fail(message: str) -> None:
    """Say it in one line and leave with the code for usage errors."""
    sys.exit(f"setup: {message}")


def run(*command: str | Path) -> None:
    """Run a command; its own output has said what went wrong when it fails."""
    done = subprocess.run([str(part) for part in command], check=False)
    if done.returncode:
        fail(f"`{' '.join(map(str, command))}` failed with {done.returncode}; see the lines above.")


def create(env: Path) -> Path:
    """The environment's Python; the environment is made where it is missing."""
    python = env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(env)], check=False, capture_output=True, text=True
        )
        if made.returncode:
            shutil.rmtree(env, ignore_errors=True)
            fail(
                f"{sys.executable} cannot create a virtual environment; "
                "on Debian and Ubuntu: apt-get install python3-venv"
            )
    return python


def processor() -> str:
    """Eight hex digits that differ where the processor's features do."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        features = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    else:
        features = platform.processor()
    return hashlib.sha256(features.encode()).hexdigest()[:8]


def wheel_folder() -> Path:
    """Where the compiled llama-cpp-python for this Python and this processor lives."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    machine = f"{sys.platform}-{platform.machine().lower()}"
    return cache / "overspill" / "wheels" / f"{tag}-{machine}-{processor()}"


def llama_requirement() -> str:
    """The version range that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["optional-dependencies"]["llama"]
    return str(next(item for item in wanted if item.startswith("llama-cpp-python")))


def need_compilers() -> None:
    """Fail in one line now rather than in a thousand lines of cmake later."""
    for variable, names in (("CC", "cc gcc clang"), ("CXX", "c++ g++ clang++")):
        chosen = os.environ.get(variable, "").split()[:1] or names.split()
        if not any(shutil.which(name) for name in chosen) and os.name != "nt":
            fail(
                f"no compiler found (looked for {', '.join(chosen)}), and llama-cpp-python has to "
                "be compiled; on Debian and Ubuntu: apt-get install build-essential; "
                "on macOS: xcode-select --install"
            )


def install_llama(python: Path) -> None:
    """Install llama-cpp-python from the wheel cache, which is filled first where it is empty."""
    requirement, folder = llama_requirement(), wheel_folder()
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    from_cache = (*pip, "--no-index", "--no-deps", "--find-links", folder, requirement)
    installed = subprocess.run([*map(str, from_cache)], check=False, capture_output=True, text=True)
    if installed.returncode == 0:
        return
    need_compilers()
    print("setup: compiling llama-cpp-python, once: about 3 minutes on 2 cores", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    # Without --no-cache-dir pip may hand out a wheel that another processor compiled.
    run(
        *(python, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-cache-dir", "--wheel-dir", folder, requirement),
    )
    run(*from_cache)


def extras_for(purpose: str) -> list[str]:
    """The purpose's extras; tests take the TPM's bindings too where their headers are."""
    extras = list(EXTRAS[purpose])
    headers = shutil.which("pkg-config") and not subprocess.call(
        ["pkg-config", "--exists", "tss2-esys"]
    )
    return [*extras, "tpm"] if purpose == "test" and headers else extras


def main() -> None:
    """Command line."""
    if len(sys.argv) != 3 or sys.argv[2] not in EXTRAS:
        fail(f"usage: setup_env.py ENVIRONMENT {'|'.join(EXTRAS)}")
    purpose = sys.argv[2]
    python = create(Path(sys.argv[1]))
    install_llama(python)
    print(f"setup: installing what `make {purpose}` needs", flush=True)
    run(
        *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--editable", f"{ROOT}[{','.join(extras_for(purpose))}]"),
    )


if __name__ == "__main__":
    main()
