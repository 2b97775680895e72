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
from overspill.trust.closed import CLOSABLE, CLOSED_AT_START, SETTING
from overspill.trust.measured import Measured, MeasuredEntry, ModelEntry, ModelsManifest
from overspill.trust.release_manifest import FILE_DIGEST, TREE_DIGEST, tree_digest
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.models import ServedModel, measure

_ON_HARDWARE = frozenset({"sev-snp", "tdx"})
UPSTREAM = "upstream"
"""The setting that names the models which an upstream answers for."""
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
    config = _encode(settings)
    wheel = _digest_of(_package_files())
    engine_name, engine_digest = _engine(models, settings.get(UPSTREAM, ()), wheel)
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


def _engine(
    models: Sequence[ServedModel], upstreams: Sequence[str], wheel: bytes
) -> tuple[str, bytes]:
    """What runs the models here. An upstream's program is not part of this process: the entry is
    then that of what speaks to it."""
    here = [model for model in models if model.name not in upstreams]
    if any(model.measurement is not None for model in here):
        return _engine_library(wheel)
    return ("echo" if here else "upstream"), wheel


def node_settings(
    attester: str,
    limits: AdmissionLimits,
    closed: Sequence[str] = (),
    open_ports: Sequence[int] = (),
    upstreams: Sequence[str] = (),
) -> dict[str, Any]:
    """What an operator chose that clients may want to know, as it is measured: also which models
    an upstream answers for; and for a node on hardware what was found closed around it."""
    extra: dict[str, Any] = {SETTING: sorted(closed)} if closed else {}
    if open_ports:
        extra["open_ports"] = sorted(open_ports)
    if upstreams:
        extra[UPSTREAM] = sorted(upstreams)
    if limits.quota_tokens is not None:
        extra |= {"quota_tokens": limits.quota_tokens, "quota_period_s": limits.quota.period_s}
    return extra | {
        "attester": attester.partition(":")[0],
        "max_streams": limits.max_streams,
        "max_streams_per_device": limits.max_streams_per_device,
        "prefix_cache": "per request",
    }


def release_subjects(
    models: Mapping[str, Path], attester: str
) -> Mapping[str, Mapping[str, bytes]]:
    """What a node of this installation would measure, as a release's subjects: digests by
    ``role/name``. Raises ``ModelNotFound``."""
    wheel = _digest_of(_package_files())
    engine_name, engine = _engine_library(wheel)
    subjects = {
        f"wheel/overspill {__version__}": {TREE_DIGEST: wheel},
        f"engine/{engine_name}": {TREE_DIGEST: engine},
    }
    for name, closed in _closed_variants(attester):
        settings = node_settings(attester, AdmissionLimits(), closed)
        subjects[f"config/{name}"] = {FILE_DIGEST: _sha256(_encode(settings))}
    for name, path in models.items():
        kind = TREE_DIGEST if path.is_dir() else FILE_DIGEST
        subjects[f"model/{name}"] = {kind: measure(path).sha256}
    return subjects


def _closed_variants(attester: str) -> list[tuple[str, Sequence[str]]]:
    """The settings of a node on hardware name what was closed: with secure boot, or without it
    where the launch measurement names the kernel."""
    if attester not in _ON_HARDWARE:
        return [(attester, ())]
    return [(attester, CLOSED_AT_START), (f"{attester} with secure boot", CLOSABLE)]


def _model_entry(model: ServedModel) -> ModelEntry:
    # A GGUF carries its tokenizer and template inside: the file's digest covers all three.
    digest = model.sha256
    adapters = tuple((name, one.sha256) for name, one in sorted(model.adapters.items()))
    return ModelEntry(model.name, digest, digest, digest, adapters)


def _engine_library(wheel: bytes) -> tuple[str, bytes]:
    """The native library that runs the models; ``echo`` is part of the wheel itself."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return "none", wheel
    folder = Path(spec.origin).parent
    libraries = (p for p in folder.rglob("*") if p.suffix in _LIBRARIES and p.is_file())
    return "llama.cpp", _digest_of((p.relative_to(folder).as_posix(), p) for p in libraries)


def _package_files() -> Iterable[tuple[str, Path]]:
    """The Python files of the SDK and of the service, by their place in the wheel."""
    for package in (Path(overspill.__file__).parent, Path(__file__).parent):
        for path in package.rglob("*.py"):
            yield f"{package.name}/{path.relative_to(package).as_posix()}", path


def _digest_of(files: Iterable[tuple[str, Path]]) -> bytes:
    return tree_digest((name, _sha256(path.read_bytes())) for name, path in files)


def _encode(settings: Mapping[str, Any]) -> bytes:
    return json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
