"""What a node says about itself in its measured log: program, engine library, models, settings."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import overspill
from overspill._version import __version__
from overspill.trust.measured import Measured, MeasuredEntry, ModelEntry, ModelsManifest
from overspill_cloud.models import ServedModel

_LIBRARIES = {".so", ".dylib", ".dll", ".metallib"}


@dataclass(frozen=True, slots=True)
class NodeMeasurements:
    """The measured log's entries as bytes, and the two digests that the NKC names."""

    log: tuple[bytes, ...]
    models_digest: bytes
    config_digest: bytes


def measure_node(models: Sequence[ServedModel], settings: Mapping[str, Any]) -> NodeMeasurements:
    """Measure what runs here. ``settings`` is what an operator chose, without secrets."""
    manifest = ModelsManifest(tuple(_model_entry(model) for model in models))
    content = manifest.encode()
    config = json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()
    wheel = _tree_digest(_package_files())
    engine_name, engine_digest = _engine_library(models, wheel)
    entries = (
        MeasuredEntry(Measured.WHEEL, f"overspill {__version__}", wheel),
        MeasuredEntry(Measured.ENGINE, engine_name, engine_digest),
        MeasuredEntry(Measured.MODELS, "models", _sha256(content), content),
        MeasuredEntry(Measured.CONFIG, "config", _sha256(config), config),
    )
    return NodeMeasurements(
        log=tuple(entry.encode() for entry in entries),
        models_digest=manifest.digest,
        config_digest=_sha256(config),
    )


def _model_entry(model: ServedModel) -> ModelEntry:
    # A GGUF carries its tokenizer and template inside: the file's digest covers all three.
    digest = model.sha256
    return ModelEntry(model.name, digest, digest, digest)


def _engine_library(models: Sequence[ServedModel], wheel: bytes) -> tuple[str, bytes]:
    """The native library that runs the models; ``echo`` is part of the wheel itself."""
    if all(model.measurement is None for model in models):
        return "echo", wheel
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return "none", wheel
    folder = Path(spec.origin).parent
    libraries = sorted(p for p in folder.rglob("*") if p.suffix in _LIBRARIES and p.is_file())
    return "llama.cpp", _tree_digest((str(p.relative_to(folder)), p) for p in libraries)


def _package_files() -> Iterable[tuple[str, Path]]:
    """The Python files of the SDK and of the service, by their place in the wheel."""
    for package in (Path(overspill.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            yield f"{package.name}/{path.relative_to(package).as_posix()}", path


def _tree_digest(files: Iterable[tuple[str, Path]]) -> bytes:
    whole = hashlib.sha256()
    for name, path in files:
        whole.update(_sha256(name.encode()) + _sha256(path.read_bytes()))
    return whole.digest()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
