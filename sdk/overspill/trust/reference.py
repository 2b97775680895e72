"""Steps 5 and 6: a node runs what its keys are bound to, and nothing that is not listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from overspill.errors import EvidenceRejected
from overspill.trust.closed import closed_things
from overspill.trust.measured import Measured, MeasuredLog, ModelEntry, ModelsManifest
from overspill.trust.nkc import NodeKeyConfig
from overspill.trust.policy import ReferenceValues
from overspill.types.evidence import AttestationResult

_MODEL_CLAIM = "model."


def open_log(config: NodeKeyConfig, log: Iterable[bytes]) -> MeasuredLog:
    """Step 5: decodes the log and ties it to the configuration's digests."""
    measured = MeasuredLog.decode(log)
    if measured.models.digest != config.models_digest:
        raise _refusal("models_digest_mismatch", "5", "the models that the keys name", "others")
    if measured.entry(Measured.CONFIG).sha256 != config.config_digest:
        raise _refusal("config_digest_mismatch", "5", "the settings that the keys name", "others")
    return measured


def check(
    log: MeasuredLog,
    reference: ReferenceValues,
    expected_models: Mapping[str, bytes] | None,
    *,
    source: str = "the policy's [reference]",
    step: str = "6",
) -> str:
    """Step 6: every model and adapter is listed with its digest; so is whatever else is pinned.

    What is left to a release is checked in the same way in step 7.
    """
    models = log.models
    if not models.models:
        raise _refusal("no_models", step, "a node that serves a model", "an empty manifest")
    for name, digest in (expected_models or {}).items():
        _check_expected(models, name, digest)
    if reference.by_release:
        return "left to the release"
    for model in models.models:
        _check_model(model, reference, source, step)
    pinned = (
        ("config", Measured.CONFIG, reference.configs),
        ("wheel", Measured.WHEEL, reference.wheels),
        ("engine", Measured.ENGINE, reference.engines),
    )
    for name, kind, allowed in pinned:
        actual = log.entry(kind).sha256
        if allowed is not None and actual not in allowed:
            expected = f"a {name} digest of {source}"
            raise _refusal(f"{name}_not_listed", step, expected, actual.hex())
    unpinned = ", ".join(name for name, _, allowed in pinned if allowed is None)
    return f"not pinned by the policy: {unpinned}" if unpinned else "everything measured is listed"


def claims(log: MeasuredLog) -> dict[str, str]:
    """What was measured, for display and for :func:`check_answering_model`."""
    found = {f"{_MODEL_CLAIM}{model.name}": model.file_sha256.hex() for model in log.models.models}
    for kind in (Measured.WHEEL, Measured.ENGINE, Measured.CONFIG):
        found[kind.name.lower()] = log.entry(kind).sha256.hex()
    if closed := closed_things(log):
        found["closed"] = ", ".join(closed)
    return found


def check_answering_model(result: AttestationResult, name: str, sha256: bytes) -> None:
    """Whether the model that a receipt names is one that the evidence named.

    Raises ``EvidenceRejected("model_not_attested")``: the node serves another model than it proved.
    """
    attested = result.claims.get(_MODEL_CLAIM + name)
    if attested != sha256.hex():
        raise _refusal(
            "model_not_attested",
            "6",
            f"model '{name}' with digest {attested}" if attested else "a model of the evidence",
            f"model '{name}' with digest {sha256.hex()}",
            "Do not use this node: it serves another model than its evidence says.",
        )


def _check_model(model: ModelEntry, reference: ReferenceValues, source: str, step: str) -> None:
    listed = reference.models.get(model.name)
    if listed is None:
        raise _refusal(
            "model_not_listed",
            step,
            f"a model of {source}",
            f"'{model.name}' = {model.file_sha256.hex()}",
            "List it there if it is meant to be served.",
        )
    parts = (
        (model.name, model.file_sha256),
        (f"{model.name}/tokenizer", model.tokenizer_sha256),
        (f"{model.name}/template", model.template_sha256),
    )
    for name, actual in parts:
        expected = reference.models.get(name, listed)
        if actual != expected:
            raise _refusal("model_digest", step, f"'{name}' = {expected.hex()}", actual.hex())
    for adapter, digest in model.adapters:
        name = f"{model.name}/{adapter}"
        if reference.adapters.get(name) != digest:
            raise _refusal(
                "adapter_not_listed",
                step,
                f"an adapter of {source}",
                f"'{name}' = {digest.hex()}",
            )


def _check_expected(models: ModelsManifest, name: str, digest: bytes) -> None:
    served = {model.name: model.file_sha256 for model in models.models}
    if served.get(name) != digest:
        actual = served[name].hex() if name in served else "not served"
        raise _refusal("expected_model_missing", "6", f"'{name}' = {digest.hex()}", actual)


def _refusal(
    reason: str, step: str, expected: str, actual: str, mend: str = ""
) -> EvidenceRejected:
    return EvidenceRejected(reason, step, expected=expected, actual=actual, mend=mend)
