"""Build llama.cpp's own programs at the very commit that llama-cpp-python's wheel was made of.

    python scripts/build_peers.py [--jobs 2] [--sdist FILE]

Fetches the source distribution of the installed llama-cpp-python, unpacks it into the user's cache
folder under ``peers``, and builds ``llama-bench``, ``llama-server`` and ``llama-batched-bench``
with the options of the wheel: about 6 minutes with two jobs. ``overspill bench engine`` finds them
there, and the example server of the same sources. Needs CMake and a C++ compiler. What was built
already is not built again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from overspill.bench.peers import BUILD_FOLDER, PEERS_FOLDER, SOURCE_FOLDER
from overspill.config import load_settings

PROGRAMS = ("llama-bench", "llama-server", "llama-batched-bench")
# Beside llama.cpp's defaults, which the wheel is built with: no web pages, nothing fetched.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def fail(message: str) -> None:
    """Say it in one line and leave with the code for usage errors."""
    print(f"build_peers: {message}", file=sys.stderr)
    sys.exit(2)


def run(*command: str | Path) -> None:
    """Run a command; its own output has said what went wrong when it fails."""
    words = [str(part) for part in command]
    if subprocess.run(words, check=False).returncode:
        fail(f"`{' '.join(words)}` failed; see the lines above.")


def installed_version() -> str:
    """Of llama-cpp-python: the peers are compared with that very runtime."""
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        fail('llama-cpp-python is not installed; pip install "overspill[bench]"')
        raise


def fetch_sdist(wanted: str, folder: Path) -> Path:
    """The source distribution, from the package index or from an earlier run."""
    name = f"llama_cpp_python-{wanted}.tar.gz"
    if not (folder / name).exists():
        print(f"build_peers: fetching the sources of llama-cpp-python {wanted}", flush=True)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        choice = ("--no-binary", "llama-cpp-python", f"llama-cpp-python=={wanted}")
        run(*pip, *choice, "--dest", folder)
    if not (folder / name).exists():
        fail(f"pip fetched no {name}.")
    return folder / name


def unpack(sdist: Path, source: Path) -> None:
    """Replace ``source`` by the one folder that the archive holds."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        try:
            with tarfile.open(sdist) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, OSError) as error:
            fail(f"{sdist} cannot be unpacked: {error}")
        tops = list(Path(folder).iterdir())
        if len(tops) != 1 or not (tops[0] / "vendor" / "llama.cpp" / "CMakeLists.txt").exists():
            fail(f"{sdist} is no source distribution of llama-cpp-python.")
        shutil.rmtree(source, ignore_errors=True)
        tops[0].rename(source)


def build(source: Path, folder: Path, jobs: int) -> None:
    """Configure and build the programs; their libraries stay beside them."""
    chosen = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    run("cmake", "-S", source / "vendor" / "llama.cpp", "-B", folder, *chosen)
    targets = [word for name in PROGRAMS for word in ("--target", name)]
    run("cmake", "--build", folder, "--parallel", str(jobs), "--config", "Release", *targets)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sdist", type=Path, help="a source distribution that is already here")
    options = parser.parse_args()
    if shutil.which("cmake") is None:
        fail("cmake was not found; on Debian and Ubuntu: apt-get install cmake build-essential")
    peers = load_settings().places.cache / PEERS_FOLDER
    peers.mkdir(parents=True, exist_ok=True)
    wanted, done = installed_version(), peers / "built"
    if done.exists() and done.read_text("utf-8") == wanted and options.sdist is None:
        print(f"build_peers: llama.cpp of {wanted} is built already in {peers / BUILD_FOLDER}")
        return
    done.unlink(missing_ok=True)
    unpack(options.sdist or fetch_sdist(wanted, peers), peers / SOURCE_FOLDER)
    shutil.rmtree(peers / BUILD_FOLDER, ignore_errors=True)
    build(peers / SOURCE_FOLDER, peers / BUILD_FOLDER, options.jobs)
    done.write_text(wanted, "utf-8")
    print(f"build_peers: built in {peers / BUILD_FOLDER / 'bin'}")


if __name__ == "__main__":
    main()
