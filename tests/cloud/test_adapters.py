"""Several models and their adapters under one digest: served, measured, named in receipts."""

from __future__ import annotations

import hashlib
import io
from contextlib import asynccontextmanager

import pytest

from overspill.errors import EvidenceRejected, InvalidRequest, ModelInvalid, UsageError
from overspill.receipts import verify_receipt
from overspill.remote import RemoteEngine, RemoteOptions
from overspill.transport.grpc import GrpcTransport
from overspill.trust.measured import MeasuredLog
from overspill.trust.policy import parse_policy
from overspill_cloud.app import ModelSpec, NodeOptions, serve, with_adapters
from overspill_cloud.store import Store

pytestmark = pytest.mark.anyio
NOTHING = hashlib.sha256().hexdigest()
FORMAL, FRIENDLY = b"the weights of formal", b"the weights of friendly"
MODELS = [ModelSpec("one", "echo"), ModelSpec("two", "echo")]


@pytest.fixture
def files(tmp_path):
    for name, data in (("formal", FORMAL), ("friendly", FRIENDLY)):
        (tmp_path / f"{name}.gguf").write_bytes(data)
    return tmp_path


def policy(node, **adapters: bytes):
    listed = ", ".join(
        f'"{name.replace("_", "/")}" = "{hashlib.sha256(data).hexdigest()}"'
        for name, data in adapters.items()
    )
    return parse_policy(
        'version = 1\nmin_assurance = "NONE"\naccept = ["dev-ed25519"]\nfreshness = "nonce"\n'
        f'dev_unsafe = true\n[reference]\nmodels = {{ one = "{NOTHING}", two = "{NOTHING}" }}\n'
        f'adapters = {{ {listed} }}\n[dev-ed25519]\nroots = ["{node.dev_root}"]'
    )


ALL = {"one_formal": FORMAL, "one_friendly": FRIENDLY, "two_formal": FORMAL}


@asynccontextmanager
async def serving(files):
    texts = [
        f"one/formal={files / 'formal.gguf'}",
        f"one/friendly={files / 'friendly.gguf'}",
        f"two/formal={files / 'formal.gguf'}",
    ]
    options = NodeOptions(
        models=with_adapters(MODELS, texts),
        listen="127.0.0.1:0",
        state=files / "state",
        attester="dev",
        drain_timeout_s=0.0,
    )
    async with serve(options, log_to=io.StringIO()) as node:
        yield node


async def enrolled(node, cloud, files, trust, model="one"):
    engine = RemoteEngine(
        GrpcTransport(node.listen), trust, cloud.device_key(), RemoteOptions(model=model)
    )
    store = Store(files / "state")
    await engine.enroll(store.new_code(1 << 40))
    store.close()
    return engine


async def test_an_answer_names_its_adapter_and_the_receipt_its_digest(cloud, files):
    async with serving(files) as node:
        engine = await enrolled(node, cloud, files, policy(node, **ALL))
        request = cloud.ask("hello", adapter="formal")
        assert cloud.text_of(await cloud.collect(engine, request)).startswith("echo[formal]: ")
        claims = verify_receipt(engine.record(request.id).receipt)
        assert (claims.adapter, claims.adapter_sha256) == (
            "formal",
            hashlib.sha256(FORMAL).digest(),
        )
        plain = cloud.ask("hello")
        await cloud.collect(engine, plain)
        claims = verify_receipt(engine.record(plain.id).receipt)
        assert (claims.adapter, claims.adapter_sha256) == ("", bytes(32))
        await engine.aclose()


async def test_all_of_them_stand_in_one_manifest(cloud, files):
    async with serving(files) as node:
        log = MeasuredLog.decode((await node.node.get_bundle()).measured_log)
        named = {
            f"{m.name}/{name}": digest for m in log.models.models for name, digest in m.adapters
        }
        assert named == {
            name.replace("_", "/"): hashlib.sha256(data).digest() for name, data in ALL.items()
        }


@pytest.mark.parametrize("missing", sorted(ALL))
async def test_an_adapter_that_the_policy_does_not_list_is_refused(cloud, files, missing):
    listed = {name: data for name, data in ALL.items() if name != missing}
    async with serving(files) as node:
        engine = RemoteEngine(
            GrpcTransport(node.listen), policy(node, **listed), cloud.device_key()
        )
        with pytest.raises(EvidenceRejected, match="adapter_not_listed"):
            await engine.attest()
        await engine.aclose()


async def test_another_models_adapter_is_not_to_be_had(cloud, files):
    async with serving(files) as node:
        engine = await enrolled(node, cloud, files, policy(node, **ALL), model="two")
        with pytest.raises(InvalidRequest):
            await cloud.collect(engine, cloud.ask("hello", adapter="friendly"))
        await engine.aclose()


async def test_an_adapter_that_was_swapped_ends_the_service(cloud, files):
    async with serving(files) as node:
        engine = await enrolled(node, cloud, files, policy(node, **ALL))
        (files / "friendly.gguf").write_bytes(b"other weights")
        with pytest.raises(ModelInvalid, match="not the one that this node's evidence names"):
            await cloud.collect(engine, cloud.ask("hello"))
        await engine.aclose()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("one", "is no adapter"),
        ("one/formal", "is no adapter"),
        ("one/=x", "is no adapter"),
        ("one/formal=", "is no adapter"),
        ("three/formal=x", "not served"),
    ],
)
def test_a_text_that_names_no_adapter_is_refused(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        with_adapters(MODELS, [text])


def test_a_name_counts_once():
    with pytest.raises(UsageError, match="given twice"):
        with_adapters(MODELS, ["one/a=x", "one/a=y"])
