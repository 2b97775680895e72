"""A node answers with the file that its evidence names, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from overspill.engines.registry import BROOK
from overspill.errors import EvidenceRejected, ModelInvalid, ModelNotFound
from overspill.testing import FakeEngine
from overspill.trust.measured import Measured, MeasuredLog
from overspill_cloud.measure import measure_node
from overspill_cloud.models import ServedModel, measure

pytestmark = pytest.mark.anyio


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights " * 1000)
    return path


@pytest.fixture
def served(model_file):
    return ServedModel("m", FakeEngine(name="m"), measure(model_file))


async def test_an_untouched_file_passes(served):
    await served.check_unchanged()
    assert served.card.sha256 == hashlib.sha256(b"weights " * 1000).hexdigest()


async def test_the_same_content_passes_however_it_got_there(served, model_file, tmp_path):
    os.utime(model_file, (1, 1))
    await served.check_unchanged()
    copy = tmp_path / "copy"
    shutil.copy(model_file, copy)
    copy.replace(model_file)
    await served.check_unchanged()
    await served.check_unchanged()


async def test_an_edit_that_hides_its_time_is_found(served, model_file):
    before = model_file.stat()
    with model_file.open("r+b") as file:
        file.write(b"WEIGHTS")
    os.utime(model_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelInvalid, match="'m'"):
        await served.check_unchanged()


async def test_a_file_put_in_its_place_is_found(served, model_file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"others!!" * 1000)
    other.replace(model_file)
    with pytest.raises(ModelInvalid):
        await served.check_unchanged()
    with pytest.raises(ModelInvalid):  # and stays found
        await served.check_unchanged()


async def test_a_file_that_is_gone_is_found(served, model_file):
    model_file.unlink()
    with pytest.raises(ModelInvalid):
        await served.check_unchanged()


async def test_a_folder_is_measured_with_every_file_in_it(tmp_path):
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "more" / "tokenizer.json").write_text("{}")
    served = ServedModel("m", FakeEngine(name="m"), measure(folder))
    await served.check_unchanged()
    assert served.card.size_bytes == len(b"weights{}")
    changes = [
        lambda: (folder / "more" / "tokenizer.json").write_text("[]"),
        lambda: (folder / "extra.json").write_text("{}"),
        lambda: (folder / "weights.safetensors").rename(folder / "other.safetensors"),
    ]
    seen = {served.sha256}
    for change in changes:
        served = ServedModel("m", FakeEngine(name="m"), measure(folder))
        change()
        with pytest.raises(ModelInvalid):
            await served.check_unchanged()
        seen.add(measure(folder).sha256)
    assert len(seen) == 4


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"nothing\.gguf"):
        measure(tmp_path / "nothing.gguf")


async def test_a_node_whose_model_was_swapped_answers_nobody(cloud, tmp_path, model_file):
    fake = FakeEngine(name="m")
    async with cloud.world(tmp_path / "state", fake) as here:
        engine = await here.enrolled()
        await cloud.collect(engine, cloud.ask())
        here.models["m"].measurement = measure(model_file)
        model_file.write_bytes(b"another model")
        asked = len(fake.requests)
        with pytest.raises(ModelInvalid, match="evidence"):
            await cloud.collect(engine, cloud.ask())
        assert len(fake.requests) == asked
        with pytest.raises(ModelInvalid):  # nothing is attested that is not so
            await here.keys.renew()


async def test_a_swap_in_mid_stream_gets_no_receipt(cloud, tmp_path, model_file):
    async with cloud.world(
        tmp_path / "state", FakeEngine("one two", name="m", delay_s=0.1)
    ) as here:
        engine = await here.enrolled()
        here.models["m"].measurement = measure(model_file)
        stream = engine.generate(cloud.ask())
        text = (await anext(stream)).text
        model_file.write_bytes(b"another model")
        with pytest.raises(ModelInvalid) as caught:
            await _drained(stream)
        assert text == "one"
        assert caught.value.partial == "one two"


async def _drained(stream):
    async for _ in stream:
        pass


async def test_a_node_with_another_model_than_the_policy_lists_is_refused(start_node, cloud):
    node = start_node()
    engine = node.client(cloud.device_key(), node.policy(echo=hashlib.sha256(b"river").digest()))
    with pytest.raises(EvidenceRejected) as caught:
        await engine.attest()
    assert "echo" in f"{caught.value.expected} {caught.value.actual}"
    await engine.aclose()


async def test_a_swapped_gguf_is_refused_by_a_real_node(start_node, cloud, tmp_path):
    pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")
    path = tmp_path / "story.gguf"
    shutil.copy(BROOK, path)
    digest = hashlib.sha256(path.read_bytes()).digest()
    node = start_node(model=f"story={path}")
    engine = await node.enrolled(node.policy(story=digest))
    chunks = await cloud.collect(engine, cloud.ask("Once upon a time", max_tokens=8))
    assert chunks[-1].finish.model == "story"
    assert (await engine.cards())[0].sha256 == digest.hex()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelInvalid):
        await cloud.collect(engine, cloud.ask("Once upon a time", max_tokens=8))
    await engine.aclose()


def test_the_measured_log_names_every_model_and_the_settings(model_file):
    first = ServedModel("b", FakeEngine(name="b"), measure(model_file))
    second = ServedModel("a", FakeEngine(name="a"), None)
    measured = measure_node([first, second], {"max_streams": 3})
    log = MeasuredLog.decode(measured.log)
    assert {m.name: m.file_sha256 for m in log.models.models} == {
        "a": hashlib.sha256().digest(),
        "b": first.sha256,
    }
    assert log.entry(Measured.CONFIG).content == b'{"max_streams":3}'
    assert measured.models_digest == log.models.digest
    other = measure_node([first, second], {"max_streams": 4})
    assert other.config_digest != measured.config_digest
    assert other.models_digest == measured.models_digest
