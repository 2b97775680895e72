"""A node whose model reads images: they cross the sealed road, and the projector is measured."""

from __future__ import annotations

import hashlib
import io
from contextlib import asynccontextmanager

import pytest

from overspill.errors import EvidenceRejected, UsageError
from overspill.remote import RemoteEngine, RemoteOptions
from overspill.transport.grpc import GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.types.chat import Image, Message, Request
from overspill_cloud.app import ModelSpec, NodeOptions, serve, with_adapters, with_projectors
from overspill_cloud.store import Store

pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def files(made_gguf, made_mmproj, tmp_path_factory):
    return made_mmproj.pair(made_gguf, tmp_path_factory.mktemp("vision"))


def policy(node, model, projector):
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    listed = f'"seer/mmproj" = "{hashlib.sha256(projector.read_bytes()).hexdigest()}"'
    return parse_policy(
        'version = 1\nmin_assurance = "NONE"\naccept = ["dev-ed25519"]\nfreshness = "nonce"\n'
        f'dev_unsafe = true\n[reference]\nmodels = {{ seer = "{digest}" }}\n'
        f'adapters = {{ {listed} }}\n[dev-ed25519]\nroots = ["{node.dev_root}"]'
    )


@asynccontextmanager
async def serving(files, folder):
    model, projector = files
    options = NodeOptions(
        models=with_projectors([ModelSpec("seer", str(model))], [f"seer={projector}"]),
        listen="127.0.0.1:0",
        state=folder / "state",
        attester="dev",
        drain_timeout_s=0.0,
    )
    async with serve(options, log_to=io.StringIO()) as node:
        yield node


def show(image) -> Request:
    message = Message("user", "what is this", images=(Image(image, "image/png", 8),))
    return Request((message,), max_tokens=4, top_logprobs=0)


async def test_an_image_is_seen_through_the_sealed_road(cloud, files, tmp_path, made_mmproj):
    async with serving(files, tmp_path) as node:
        engine = RemoteEngine(
            GrpcTransport(node.listen),
            policy(node, *files),
            cloud.device_key(),
            RemoteOptions(model="seer"),
        )
        store = Store(tmp_path / "state")
        await engine.enroll(store.new_code(1 << 40))
        store.close()
        await engine.start()
        assert engine.card.modalities == ("text", "image")
        # The last is longer than a sealed frame may be.
        pictures = [made_mmproj.noise(1), made_mmproj.noise(2), made_mmproj.noise(3, 700, 700)]
        assert len(pictures[2]) > 1 << 20
        answers = [await cloud.collect(engine, show(picture)) for picture in pictures]
        await engine.aclose()
    said = [[p.logprob for chunk in chunks for p in chunk.logprobs] for chunks in answers]
    assert len({tuple(logprobs) for logprobs in said}) == 3


async def test_a_projector_that_the_policy_does_not_list_is_refused(cloud, files, tmp_path):
    async with serving(files, tmp_path) as node:
        engine = RemoteEngine(
            GrpcTransport(node.listen), policy(node, files[0], files[0]), cloud.device_key()
        )
        with pytest.raises(EvidenceRejected, match="adapter_not_listed"):
            await engine.attest()
        await engine.aclose()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["nothing"], "no projector"),
        (["other=a.gguf"], "not served"),
        (["seer=a.gguf", "seer=b.gguf"], "given twice"),
    ],
)
def test_a_projector_belongs_to_one_model_that_is_served(texts, words):
    with pytest.raises(UsageError, match=words):
        with_projectors([ModelSpec("seer", "a.gguf")], texts)


def test_no_adapter_may_be_called_what_projectors_are():
    models = with_adapters([ModelSpec("seer", "a.gguf")], ["seer/mmproj=b.gguf"])
    with pytest.raises(UsageError, match="seer/mmproj"):
        with_projectors(models, ["seer=c.gguf"])
