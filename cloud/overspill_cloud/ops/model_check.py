"""What `overspill-cloud doctor` says of a model: as far as a start would go before it loads it."""

from __future__ import annotations

import json
from pathlib import Path

from overspill.engines.adapter_file import adapter_header
from overspill.engines.gguf_fit import gguf_fit
from overspill.engines.gguf_header import read_header
from overspill.engines.options import EngineOptions
from overspill.engines.registry import llama_options, open_engine, runtime_of
from overspill.errors import ModelInvalid, ModelNotFound
from overspill_cloud.app import ModelSpec, settings_of
from overspill_cloud.upstream.address import is_upstream, parse_upstream
from overspill_cloud.upstream.engine import UpstreamEngine


async def look_at_model(spec: ModelSpec, options: EngineOptions) -> str:
    """What it is, with its runtime there, its header read and its memory counted; an upstream is
    asked. Raises what a start would: ``ModelError``, ``MissingExtra``, ``DoesNotFit``,
    ``ConnectFailed``, ``ConfigurationError``.
    """
    if is_upstream(spec.source):
        _check_weights(spec)
        return await _upstream(spec)
    # The runtime and what goes with it; nothing is read before its start.
    settings = settings_of(spec, options)
    open_engine(spec.source, name=spec.name, options=settings)
    runtime, path = runtime_of(spec.source)
    if runtime == "llama.cpp":
        return f"{spec.name}: {_gguf(spec, path, settings)}"
    if runtime == "mlx":
        return f"{spec.name}: {_mlx(spec, path)}"
    return f"{spec.name}: echo, without weights"


def _check_weights(spec: ModelSpec) -> None:
    if spec.weights is not None and not Path(spec.weights).exists():
        raise ModelNotFound(
            f"There is nothing at {spec.weights}.",
            mend=f"Give --weights {spec.name}=PATH, what the upstream was started with.",
        )


async def _upstream(spec: ModelSpec) -> str:
    engine = UpstreamEngine(parse_upstream(spec.source), name=spec.name)
    try:
        await engine.start()
        card = engine.card
    finally:
        await engine.aclose()
    return f"{spec.name}: {card.runtime} at {spec.source}, context {card.context}"


def _gguf(spec: ModelSpec, path: Path, options: EngineOptions) -> str:
    from overspill.engines.llama_cpp import fit_options

    header = read_header(path)
    for name, file in spec.adapters:
        adapter_header(name, Path(file))
    fit = gguf_fit(path, header, spec.name, fit_options(llama_options(options)))
    return f"{header.file_size / 2**20:.0f} MiB, fits with a context of {fit.context_tokens}"


def _mlx(spec: ModelSpec, folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    except (OSError, ValueError) as error:
        raise ModelInvalid(
            f"{folder}/config.json cannot be read as JSON.", mend="Fetch the model again."
        ) from error
    if not isinstance(config, dict):
        raise ModelInvalid(f"{folder}/config.json is no object.", mend="Fetch the model again.")
    for name, adapter in spec.adapters:
        if not Path(adapter).is_dir():
            raise ModelNotFound(
                f"There is no folder {adapter}, given as adapter {name!r}.", mend="Check the path."
            )
    return f"{size / 2**20:.0f} MiB in {folder}"
