"""Opens an engine by what it is called: the one place that knows all backends.

A new backend is one file, one entry in ``RUNTIMES`` and one row of the conformance suite.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from overspill.engines.options import EngineOptions
from overspill.errors import MissingExtra, ModelInvalid, ModelNotFound, UnsupportedOption

if TYPE_CHECKING:
    from overspill.engines.backend import Backend
    from overspill.engines.llama_cpp import LlamaCppOptions
    from overspill.engines.scheduled import ScheduledEngine

__all__ = ["BROOK", "RUNTIMES", "EngineOptions", "name_of", "open_engine", "runtime_of"]


def _open_echo(path: Path, name: str, options: EngineOptions) -> Backend:
    from overspill.engines.echo import DEFAULT_CONTEXT_TOKENS, EchoBackend, EchoOptions

    return EchoBackend(
        EchoOptions(
            name=name,
            context_tokens=options.context_tokens or DEFAULT_CONTEXT_TOKENS,
            max_sequences=options.max_sequences,
            token_delay_s=options.token_delay_s,
            adapters=tuple(options.adapters),
        )
    )


def _open_llama_cpp(path: Path, name: str, options: EngineOptions) -> Backend:
    from overspill.engines.llama_cpp import LlamaCppBackend

    return LlamaCppBackend(path, name=name, options=llama_options(options))


def llama_options(options: EngineOptions) -> LlamaCppOptions:
    """The options as the llama.cpp backend has them; loads its library."""
    from overspill.engines.llama_cpp import LlamaCppOptions

    return LlamaCppOptions(
        context_tokens=options.context_tokens,
        max_sequences=options.max_sequences,
        threads=options.threads,
        exact_attention=options.exact_attention,
        shrink_context=options.shrink_context,
        adapters=options.adapters,
        mmproj=None if options.mmproj is None else Path(options.mmproj),
        draft_tokens=options.scheduler.checked_tokens,
    )


def _open_mlx(path: Path, name: str, options: EngineOptions) -> Backend:
    from overspill.engines.mlx import MlxBackend, MlxOptions

    return MlxBackend(
        path,
        name=name,
        options=MlxOptions(
            context_tokens=options.context_tokens,
            max_sequences=options.max_sequences,
            shrink_context=options.shrink_context,
            adapters=options.adapters,
            kv_bits=options.kv_bits,
        ),
    )


Opener = Callable[[Path, str, EngineOptions], "Backend"]

RUNTIMES: dict[str, tuple[Opener, str, tuple[str, ...]]] = {
    # runtime: (opener, the extra that brings it, modules that show whether that is installed)
    "echo": (_open_echo, "local", ("numpy", "jinja2")),
    "llama.cpp": (_open_llama_cpp, "llama", ("llama_cpp", "numpy", "jinja2")),
    "mlx": (_open_mlx, "mlx", ("mlx_lm", "numpy", "jinja2")),
}

_LEAVE_OUT = "Leave it out."
_NO_IMAGES = ("reads no images", "Leave it out, or use the model as a GGUF file.")
_PLAIN_CACHE = ("quantizes no cache", "Leave it out: it is for MLX.")
CHOOSES_THREADS = ("chooses its threads by itself", _LEAVE_OUT)
ATTENDS_AS_WEIGHTS = (
    "computes attention in the type of the weights",
    "Leave it out; with F32 weights attention is exact.",
)

UNREAD: Mapping[str, Mapping[str, tuple[str, str]]] = {
    # runtime: the options that its opener does not read, why, and the mend
    "echo": {"mmproj": _NO_IMAGES, "kv_bits": _PLAIN_CACHE},
    "llama.cpp": {"kv_bits": _PLAIN_CACHE},
    "mlx": {
        "mmproj": _NO_IMAGES,
        "threads": CHOOSES_THREADS,
        "exact_attention": ATTENDS_AS_WEIGHTS,
    },
}

BROOK = Path(__file__).resolve().parent.parent / "models" / "brook" / "brook-q8_0.gguf"
"""The small model that ships in the wheel."""


def runtime_of(spec: str) -> tuple[str, Path]:
    """Which runtime a spec needs, and the file or folder.

    Raises :class:`ModelNotFound` for what isn't there, :class:`ModelInvalid` for a
    folder that isn't in the MLX layout; whether a file is a GGUF shows when it is loaded.
    """
    if spec == "echo":
        return "echo", Path()
    path = BROOK if spec == "brook" else Path(spec)
    if not path.exists():
        raise ModelNotFound(f"There is no model at {path}.", mend="Check the path.")
    if path.is_file():
        return "llama.cpp", path
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return "mlx", path
    raise ModelInvalid(
        f"{spec} is no folder in the MLX layout: config.json and safetensors are missing.",
        mend="Give such a folder, a .gguf file, 'echo', or 'brook'.",
    )


def name_of(spec: str) -> str:
    """What a model is called when nobody names it: its file without .gguf, its folder."""
    return spec if spec in ("echo", "brook") else Path(spec).name.removesuffix(".gguf")


def open_engine(
    spec: str, *, name: str | None = None, options: EngineOptions | None = None
) -> ScheduledEngine:
    """An engine for ``echo``, ``brook``, a ``.gguf`` file or an MLX folder; ``start`` loads it.

    Raises :class:`ModelNotFound`, :class:`ModelInvalid`, :class:`MissingExtra`, and
    :class:`UnsupportedOption` for what the runtime would not heed: a projector where it has no
    vision, say, or threads where it chooses them by itself.
    """
    options = options or EngineOptions()
    open_backend, runtime = _opener(spec, name or name_of(spec), options)
    open_draft = None
    if options.draft_model is not None:
        # Adapters belong to the model; its draft model works for all of them, and checks no drafts.
        plain = dataclasses.replace(
            options,
            adapters={},
            draft_model=None,
            mmproj=None,
            kv_bits=None,
            scheduler=dataclasses.replace(options.scheduler, speculation="off"),
        )
        open_draft, _ = _opener(options.draft_model, name_of(options.draft_model), plain)
    from overspill.engines.scheduled import ScheduledEngine

    return ScheduledEngine(
        open_backend,
        name=name or name_of(spec),
        runtime=runtime,
        options=options,
        open_draft=open_draft,
    )


def _opener(spec: str, name: str, options: EngineOptions) -> tuple[Callable[[], Backend], str]:
    runtime, path = runtime_of(spec)
    opener, extra, modules = RUNTIMES[runtime]
    if any(find_spec(module) is None for module in modules):
        raise MissingExtra(f"The {runtime} runtime", extra)
    refuse_unread(name, runtime, options, UNREAD[runtime])
    return functools.partial(opener, path, name, options), runtime


def refuse_unread(
    name: str, runtime: str, options: EngineOptions, unread: Mapping[str, tuple[str, str]]
) -> None:
    """Raise :class:`UnsupportedOption` for what was asked for and would be dropped."""
    plain = EngineOptions()
    for option, (why, mend) in unread.items():
        if getattr(options, option) != getattr(plain, option):
            raise UnsupportedOption(
                f"{name} runs on {runtime}, which {why}: {option} has no use there.",
                param=option,
                mend=mend,
            )
