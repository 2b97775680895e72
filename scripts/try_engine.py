"""Load a released engine library in place of the installed one, and compare greedy tokens.

    python scripts/try_engine.py --wheel build/engine/llama_cpp_python-*.whl
    python scripts/try_engine.py --wheel ... --model model.gguf

Unpacks the wheel's libraries into a temporary folder, names that to llama-cpp-python by
``LLAMA_CPP_LIB_PATH``, and lets the same engine answer the same prompts with both libraries, each
in a process of its own. Exit 1 where a token differs, or the library does not load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PROMPTS = ("12 + 30 = ?", "Sort in ascending order: 12, 7, 30, 4", "Write the word tree backwards.")
FOLDER = "llama_cpp/lib/"


def main() -> int:
    """Command line; ``--answer`` is how this program calls itself."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--model", default="brook", help="a name, or a GGUF file")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        print(json.dumps(asyncio.run(answer(options.model))))
        return 0
    if options.wheel is None:
        parser.error("--wheel is missing")
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        unpack(options.wheel, Path(folder))
        return compare(tokens(options.model, None), tokens(options.model, Path(folder)))


def unpack(wheel: Path, folder: Path) -> None:
    """The wheel's libraries, as it would install them."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(FOLDER)]
        for name in names:
            (folder / Path(name).name).write_bytes(archive.read(name))
    if not names:
        sys.exit(f"try_engine: {wheel} has nothing in {FOLDER}")


def tokens(model: str, library: Path | None) -> dict[str, list[int]]:
    """Greedy token ids by prompt, by a process with this library."""
    environment = {k: v for k, v in os.environ.items() if k != "LLAMA_CPP_LIB_PATH"}
    if library is not None:
        environment["LLAMA_CPP_LIB_PATH"] = str(library)
    command = [sys.executable, __file__, "--answer", "--model", model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"try_engine: {library or 'the installed library'} failed:\n{done.stderr}")
    found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


async def answer(model: str) -> dict[str, list[int]]:
    """What this process's library says."""
    from overspill.engines.options import EngineOptions
    from overspill.engines.registry import open_engine
    from overspill.types.chat import Message, Request, Sampling

    engine = open_engine(model, options=EngineOptions(threads=1))
    await engine.start()
    found = {}
    for prompt in PROMPTS:
        request = Request((Message("user", prompt),), sampling=Sampling(temperature=0.0))
        chunks = [chunk async for chunk in engine.generate(request)]
        found[prompt] = [token for chunk in chunks for token in chunk.token_ids]
    await engine.aclose()
    return found


def compare(installed: dict[str, list[int]], released: dict[str, list[int]]) -> int:
    """0 where both say the same, token for token."""
    differ = [prompt for prompt in installed if installed[prompt] != released.get(prompt)]
    for prompt in differ:
        print(f"DIFFERS: {prompt!r}", file=sys.stderr)
    if not differ:
        count = sum(map(len, installed.values()))
        print(f"the same {count} greedy tokens for {len(installed)} prompts")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
