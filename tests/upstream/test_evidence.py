"""What a node's evidence says of a model that an upstream answers for."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest

from overspill.errors import ConfigurationError, UsageError
from overspill.trust.measured import MeasuredLog
from overspill.types.evidence import Assurance
from overspill_cloud.app import ModelSpec, NodeOptions, check_options, check_upstreams, serve

pytestmark = pytest.mark.anyio


def options(folder: Path, upstream: Any, **fields: Any) -> NodeOptions:
    source = f"upstream:{upstream.address.base_url}#big"
    spec = ModelSpec("river", source, **fields)
    return NodeOptions((spec,), f"unix:{folder}/n.sock", folder / "state")


async def test_named_weights_are_measured_and_settings_name_the_upstream(
    upstream: Any, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"weights")
    chosen = options(tmp_path, upstream, weights=str(weights))
    async with serve(chosen, log_to=io.StringIO()) as node:
        bundle = await node.node.get_bundle()
    log = MeasuredLog.decode(bundle.measured_log)
    (model,) = log.models.models
    assert (model.name, model.file_sha256) == ("river", hashlib.sha256(b"weights").digest())
    assert b'"upstream":["river"]' in b"".join(bundle.measured_log)


async def test_without_weights_the_upstreams_own_name_stands_for_the_model(
    upstream: Any, tmp_path: Path
) -> None:
    async with serve(options(tmp_path, upstream), log_to=io.StringIO()) as node:
        sha256 = node.models["river"].sha256
    assert sha256 == hashlib.sha256(b"overspill/v1/upstream\x00big").digest()


def test_on_hardware_nothing_answers_that_evidence_cannot_name(
    upstream: Any, tmp_path: Path
) -> None:
    hardware, software = Assurance.HARDWARE_TEE, Assurance.SOFTWARE
    unnamed = options(tmp_path, upstream).models
    with pytest.raises(ConfigurationError, match="--weights river=PATH"):
        check_upstreams(hardware, unnamed)
    check_upstreams(software, unnamed)
    check_upstreams(hardware, options(tmp_path, upstream, weights="/w").models)


@pytest.mark.parametrize("fields", [{"adapters": (("a", "/x"),)}, {"mmproj": "/x"}])
def test_adapters_and_projectors_are_the_upstreams_own(
    upstream: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="river"):
        check_options(options(tmp_path, upstream, **fields))
