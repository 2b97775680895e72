"""Build the engine library for release: portable, and the same bytes from two clean builds.

    python3 scripts/build_engine.py --sdist llama_cpp_python-0.3.36.tar.gz --out build/engine
    python3 scripts/build_engine.py --sdist ... --out build/engine --once    no second build
    python3 scripts/build_engine.py --sdist ... --against WHEEL    build, and compare with that one

A build for the processor at hand (-march=native) matches nobody's digest. This one has
``GGML_NATIVE=OFF``, and the CPU's features as variants that are chosen when the library is loaded
(``GGML_BACKEND_DL`` and ``GGML_CPU_ALL_VARIANTS``). Nothing of the machine goes into it: paths are
mapped away, times are fixed, no build id, no compiler cache. Both builds start from the sdist; the
second, and one ``--against`` an earlier wheel, in a deeper folder with another umask, time zone
and locale. The wheels' libraries are compared file by file, and the second build is thrown away.
Needs a C/C++ compiler and the build tools that the sdist names, already installed
(``--build-isolation`` fetches them); standard library only. Exit 1 where the builds differ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DGGML_OPENMP=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_NUMBER=0",
    "-DLLAMA_BUILD_COMMIT=release",
    # Or whether the machine has OpenSSL would decide what is built.
    "-DLLAMA_OPENSSL=OFF",
    # Or the length of the build folder's path stays behind as padding in each library.
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    # The variants beside the library that looks for them.
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",
    "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",
)
# The helpers of llama.cpp's programs: a sixth of the build, and nothing here loads them.
LEFT_OUT = 'set(LLAMA_BUILD_COMMON ON CACHE BOOL "Build llama.cpp common library" FORCE)'
EPOCH = "1704067200"
LIBRARIES = {".so", ".dylib", ".dll"}
# What may differ between two machines: if any of it reached a library, the digests would tell.
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8"}
UMASK, UMASK_ELSEWHERE = 0o022, 0o077


def main() -> int:
    """Build once or twice, compare, and keep the first wheel."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sdist", type=Path, required=True, help="llama-cpp-python's sdist")
    parser.add_argument("--out", type=Path, help="folder for the wheel")
    parser.add_argument("--once", action="store_true", help="build once, compare nothing")
    parser.add_argument("--against", type=Path, help="an earlier clean build's wheel, to compare")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--build-isolation", action="store_true", help="let pip fetch build tools")
    options = parser.parse_args()
    if (options.out is None) == (options.against is None):
        parser.error("name one of --out and --against")
    if options.against is not None:
        return report(digests(options.against), once(options, elsewhere=True))
    first = once(options, elsewhere=False)
    return report(first, None if options.once else once(options, elsewhere=True))


def once(options: argparse.Namespace, *, elsewhere: bool) -> dict[str, str]:
    """The digests of one clean build; the first one's wheel is kept."""
    prefix = "engine-second-clean-build-" if elsewhere else "engine-first-"
    with tempfile.TemporaryDirectory(prefix=prefix) as made:
        folder = Path(made, "deeper", "still") if elsewhere else Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        wheel = build(options.sdist, folder, options, elsewhere=elsewhere)
        if not elsewhere:
            options.out.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, options.out)
            print(f"built {options.out / wheel.name}")
        return digests(wheel)


def report(first: dict[str, str], second: dict[str, str] | None) -> int:
    """Say the digests, and compare them where there are two builds."""
    for file, digest in sorted(first.items()):
        print(f"{digest}  {file}")
    return 0 if second is None else compare(first, second)


def build(sdist: Path, folder: Path, options: argparse.Namespace, *, elsewhere: bool) -> Path:
    """One wheel, from the sdist alone, with nothing of this machine in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    leave_out(source / "CMakeLists.txt")
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-cache-dir"]
    command += ["--wheel-dir", str(folder / "wheel")]
    # Inside the folder whose path is mapped away; pip's own choice would be elsewhere.
    command += ["--config-settings", f"build-dir={folder / 'cmake'}"]
    command += [] if options.build_isolation else ["--no-build-isolation"]
    around = environment(folder, options.jobs) | (ELSEWHERE if elsewhere else {})
    umask = UMASK_ELSEWHERE if elsewhere else UMASK
    done = subprocess.run(command, env=around, umask=umask, check=False)
    if done.returncode:
        sys.exit(f"build_engine: the build failed with {done.returncode}; see the lines above")
    (wheel,) = (folder / "wheel").glob("*.whl")
    return wheel


def leave_out(recipe: Path) -> None:
    """Turn what is not needed off, in the copy that is built; a recipe of another form is an
    error, since nobody has looked at it."""
    text = recipe.read_text("utf-8")
    if text.count(LEFT_OUT) != 1:
        sys.exit(f"build_engine: {recipe} does not say once: {LEFT_OUT}")
    recipe.write_text(text.replace(LEFT_OUT, LEFT_OUT.replace(" ON ", " OFF ")), "utf-8")


def environment(folder: Path, jobs: int) -> dict[str, str]:
    """The build's environment: this one's, but for whatever would leave a trace."""
    flags = f"-ffile-prefix-map={folder}=/build -g0"
    link = "-Wl,--build-id=none" if sys.platform == "linux" else ""
    return {
        **os.environ,
        "CMAKE_ARGS": " ".join(CMAKE),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
        "CFLAGS": flags,
        "CXXFLAGS": flags,
        "LDFLAGS": link,
        "SOURCE_DATE_EPOCH": EPOCH,
        "ZERO_AR_DATE": "1",
        "LC_ALL": "C",
        "TZ": "UTC",
        "CCACHE_DISABLE": "1",
        # Or ggml names the commit of whatever repository the folder happens to lie in.
        "GIT_DIR": os.devnull,
    }


def digests(wheel: Path) -> dict[str, str]:
    """SHA-256 of each library in a wheel, by its path there."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if LIBRARIES & set(Path(name).suffixes)]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def compare(first: dict[str, str], second: dict[str, str]) -> int:
    """0 where both builds have the same libraries, byte for byte; else each that differs."""
    differ = sorted(name for name in first | second if first.get(name) != second.get(name))
    for name in differ:
        print(f"DIFFERS: {name}", file=sys.stderr)
    if not first:
        print("no library in the wheel", file=sys.stderr)
    if not differ and first:
        print(f"two clean builds gave the same {len(first)} libraries")
    return 1 if differ or not first else 0


if __name__ == "__main__":
    sys.exit(main())
