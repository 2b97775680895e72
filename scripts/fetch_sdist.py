"""Fetch vocabularies and chat templates of real model families, for the tests that read them.

    python3 scripts/fetch_sdist.py

The source distribution of llama-cpp-python carries vocabulary-only GGUFs and chat templates. It is
downloaded by pip, not built, and only these files are kept (78 MB), in the user's cache folder:
``$XDG_CACHE_HOME/overspill/sdists/llama_cpp_python-VERSION``. Does nothing when they are there.
Standard library and pip only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

VERSION = "0.3.36"
"""The version that the tests were written for: later ones carry other files."""

_WANTED = re.compile(r"/vendor/llama\.cpp/models/(ggml-vocab-[^/]+|templates/[^/]+\.jinja)$")


def fail(message: str) -> None:
    """Say it in one line and leave with the code for usage errors."""
    sys.exit(f"fetch_sdist: {message}")


def folder() -> Path:
    """Where the files are kept: vocabularies, and templates in a folder of their own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "overspill" / "sdists" / f"llama_cpp_python-{VERSION}"


def download(into: Path) -> Path:
    """The archive. pip prepares its metadata and compiles nothing."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(into)),
        f"llama-cpp-python=={VERSION}",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    found = sorted(into.glob("*.tar.gz"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        fail(f"pip could not download llama-cpp-python {VERSION}: {last}")
    return found[0]


def extract(archive: Path, into: Path) -> int:
    """Copy the wanted files out by their names alone; returns how many there were."""
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            wanted = _WANTED.search(f"/{member.name}")
            source = tar.extractfile(member) if wanted and member.isfile() else None
            if wanted is None or source is None:
                continue
            target = into / PurePosixPath(wanted[1])
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(source, out)
            count += 1
    return count


def main() -> None:
    """Command line."""
    target = folder()
    if target.is_dir():
        print(f"fetch_sdist: already there: {target}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        kept = Path(scratch) / "kept"
        count = extract(download(Path(scratch)), kept)
        if not count:
            fail("the archive holds none of the files that are looked for.")
        # Whole or not at all: another run may have been faster.
        try:
            kept.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    print(f"fetch_sdist: {count} files in {target}")


if __name__ == "__main__":
    main()
