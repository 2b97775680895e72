"""The peers: where their programs are, and how each is run.

They run with their own defaults, but for what README.md names with its reason.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from overspill.config import child_environment
from overspill.errors import ConfigurationError, EngineError

PEERS_FOLDER, SOURCE_FOLDER, BUILD_FOLDER = "peers", "src", "build"
"""In the user's cache folder, and in that: what ``scripts/build_peers.py`` makes."""
_LIBRARY_SERVER_NEEDS = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic")
_EXAMPLE_SERVER_NEEDS = ("fastapi", "uvicorn", "openai", "jinja2", "numpy", "pydantic")


@dataclass(frozen=True, slots=True)
class PeerPaths:
    """Programs of llama.cpp, and the sdist's example server; None where there is none."""

    llama_bench: Path | None = None
    llama_server: Path | None = None
    llama_batched_bench: Path | None = None
    example_server: Path | None = None


def find_peers(given: PeerPaths, cache: Path) -> PeerPaths:
    """What was given, else what is on the PATH, else what the build script left in the cache.

    Raises :class:`ConfigurationError` for a given path where there is no file.
    """
    for item in fields(PeerPaths):
        path = getattr(given, item.name)
        if path is not None and not path.is_file():
            raise ConfigurationError(f"There is no {_program(item.name)} at {path}.")
    built = cache / PEERS_FOLDER / BUILD_FOLDER / "bin"
    example = cache / PEERS_FOLDER / SOURCE_FOLDER / "examples" / "server" / "server.py"

    def program(name: str) -> Path | None:
        chosen: Path | None = getattr(given, name)
        found = shutil.which(_program(name)) or shutil.which(_program(name), path=str(built))
        return chosen or (Path(found) if found else None)

    return PeerPaths(
        llama_bench=program("llama_bench"),
        llama_server=program("llama_server"),
        llama_batched_bench=program("llama_batched_bench"),
        example_server=given.example_server or (example if example.is_file() else None),
    )


def need(paths: PeerPaths, name: str) -> Path:
    """The path of a peer. Raises :class:`ConfigurationError`, saying how to get it."""
    path: Path | None = getattr(paths, name)
    if path is None:
        raise ConfigurationError(
            f"{_program(name)} was not found.",
            mend=f"Run scripts/build_peers.py, or give --{_program(name)} PATH.",
        )
    return path


def _program(name: str) -> str:
    return name.replace("_", "-")


# --- programs that measure themselves -----------------------------------------------------------


def bench_command(program: Path, model: Path, tokens: int) -> list[str]:
    """``llama-bench`` for one repetition of ``tg<tokens>``; it warms up by itself."""
    return [str(program), "-m", str(model), "-p", "0", "-n", str(tokens), "-r", "1", "-o", "json"]


async def llama_bench(program: Path, model: Path, tokens: int) -> float:
    """Tokens per second of one sequence's decoding, from an empty context."""
    said = await _output(bench_command(program, model, tokens))
    return float(json.loads(said)[0]["avg_ts"])


def batched_command(
    program: Path, model: Path, *, streams: int, prompt: int, tokens: int, context_tokens: int
) -> list[str]:
    """``llama-batched-bench`` with a separate KV cache for each sequence.

    A second, small case comes last: the program writes from a thread of its own and may end before
    its last line is out.
    """
    return [
        *(str(program), "-m", str(model), "-c", str(streams * context_tokens)),
        *("-npp", str(prompt), "-ntg", str(tokens), "-npl", f"{streams},1"),
        *("--output-format", "jsonl"),
    ]


async def llama_batched_bench(command: Sequence[str], streams: int) -> float:
    """Generated tokens per second of that many streams, prompts included in the time."""
    lines = (await _output(command)).splitlines()
    results = (json.loads(line) for line in lines if line.startswith("{"))
    result = next((result for result in results if result["pl"] == streams), None)
    if result is None:
        raise EngineError(f"llama-batched-bench printed no result for {streams} streams.")
    return float(streams * result["tg"] / result["t"])


async def _output(command: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    try:
        out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise EngineError(
            f"{Path(command[0]).name} ended with code {process.returncode}: {_last_line(err)}"
        )
    return out.decode("utf-8", "replace")


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


# --- how servers are started --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """``command`` has ``{port}`` where the port goes; ``health`` answers 200 once it is ready.

    ``dialect`` is ``native`` for llama-server's own ``/completion``, ``openai`` for
    ``/v1/completions``. ``files`` (name, text) are written to a folder named by ``{folder}``.
    """

    name: str
    command: tuple[str, ...]
    health: str
    dialect: str
    files: Mapping[str, str]


def llama_server(program: Path, model: Path, *, slots: int, context_tokens: int) -> ServerCommand:
    """llama-server with ``slots`` sequences of ``context_tokens`` each, defaults else."""
    return ServerCommand(
        name="llama-server",
        command=(
            *(str(program), "-m", str(model), "--host", "127.0.0.1", "--port", "{port}"),
            *("-np", str(slots), "-c", str(slots * context_tokens)),
        ),
        health="/health",
        dialect="native",
        files={},
    )


def library_server(model: Path, *, context_tokens: int) -> ServerCommand:
    """llama-cpp-python's own server, told not to break a request off when the next one comes.

    Raises :class:`ConfigurationError` where its dependencies are missing.
    """
    _need_modules("llama-cpp-python's server", ("llama_cpp", *_LIBRARY_SERVER_NEEDS))
    return ServerCommand(
        name="llama_cpp.server",
        command=(
            *(sys.executable, "-m", "llama_cpp.server", "--model", str(model)),
            *("--host", "127.0.0.1", "--port", "{port}", "--n_ctx", str(context_tokens)),
            *("--interrupt_requests", "false"),
        ),
        health="/v1/models",
        dialect="openai",
        files={},
    )


def example_server(script: Path, model: Path, *, slots: int, context_tokens: int) -> ServerCommand:
    """The continuous-batching server among the examples of llama-cpp-python's sdist.

    Raises :class:`ConfigurationError` where its dependencies are missing.
    """
    _need_modules("The sdist's example server", ("llama_cpp", *_EXAMPLE_SERVER_NEEDS))
    chosen: dict[str, Any] = {
        "server": {"host": "127.0.0.1", "port": "{port}"},
        "model": {
            "path": str(model),
            "alias": "bench",
            "n_ctx": slots * context_tokens,
            "n_seq_max": slots,
            "n_batch": 512,
            "n_ubatch": 512,
        },
    }
    return ServerCommand(
        name="examples/server",
        command=(sys.executable, str(script), "-C", "{folder}/config.json"),
        health="/healthz",
        dialect="openai",
        files={"config.json": json.dumps(chosen)},
    )


def _need_modules(what: str, modules: Sequence[str]) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigurationError(
            f"{what} needs {', '.join(missing)}, not installed here.",
            mend='Run: pip install "overspill[bench]"',
        )
