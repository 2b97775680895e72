"""A real node over a real socket that proves itself by a software TPM, and a client that asks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from overspill.errors import EvidenceRejected
from overspill.identity.keys import SoftwareKey
from overspill.trust.policy import default_policy, parse_policy
from overspill.trust.template import tpm_dev_policy
from overspill.types.chat import Message, Request
from overspill.types.evidence import Assurance

pytest.importorskip("sqlalchemy", reason='the node needs: pip install "overspill[cloud]"')

pytestmark = pytest.mark.anyio

NO_FILE = hashlib.sha256(b"").digest()


@pytest.fixture
async def node(swtpm_state: Path):
    """A node with the echo engine, its evidence from a TPM of its own."""
    from overspill_cloud.app import ModelSpec, NodeOptions, serve

    options = NodeOptions(
        models=(ModelSpec("river", "echo"),),
        listen="127.0.0.1:0",
        state=swtpm_state / "node",
        attester="tpm",
    )
    async with serve(options) as serving:
        yield serving, options.state


def client(serving, policy):
    from overspill.remote import RemoteEngine
    from overspill.transport.grpc import GrpcTransport

    return RemoteEngine(GrpcTransport(serving.listen), policy, SoftwareKey.generate(2**33))


async def test_a_request_goes_to_what_the_tpm_measured(node):
    from overspill_cloud.store import Store

    serving, state = node
    root = (state / "tpm-authority.pem").read_text()
    engine = client(serving, parse_policy(tpm_dev_policy(root, {"river": NO_FILE})))
    store = Store(state)
    try:
        result = await engine.attest()
        assert result.evidence_type == "dev-tpm-software"
        assert result.assurance is Assurance.NONE
        await engine.enroll(store.new_code(2**33))
        request = Request(messages=(Message("user", "measured words"),))
        chunks = [chunk async for chunk in engine.generate(request)]
        assert "measured words" in "".join(chunk.text for chunk in chunks)
        assert chunks[-1].finish.receipt
    finally:
        await engine.aclose()
        store.close()


async def test_the_default_policy_refuses_the_tpm_too(node):
    serving, _ = node
    engine = client(serving, default_policy())
    try:
        with pytest.raises(EvidenceRejected) as caught:
            await engine.attest()
        assert caught.value.reason == "dev_evidence"
    finally:
        await engine.aclose()


async def test_a_policy_for_another_model_refuses(node):
    serving, state = node
    root = (state / "tpm-authority.pem").read_text()
    engine = client(serving, parse_policy(tpm_dev_policy(root, {"river": bytes(32)})))
    try:
        with pytest.raises(EvidenceRejected) as caught:
            await engine.attest()
        assert caught.value.reason == "model_digest"
    finally:
        await engine.aclose()
