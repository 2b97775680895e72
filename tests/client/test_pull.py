"""An app whose model is not there yet: it is told, pulls it, and goes on in the same block."""

from dataclasses import replace

import pytest

from overspill import AsyncOverspill, Overspill
from overspill.config import load_settings
from overspill.engines.registry import BROOK
from overspill.errors import ModelNotFound
from overspill.types.reply import AvailabilityState

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(hub, tmp_path):
    hub.files["maker/creek"] = {"creek-Q8_0.gguf": BROOK.read_bytes()}
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    return replace(settings, hub=hub.url, model="maker/creek", isolate=False)


async def test_an_app_opens_is_told_pulls_and_asks(settings):
    seen, states = [], []
    async with AsyncOverspill("t", settings=settings) as ai:
        assert (await ai.availability()).device is AvailabilityState.DOWNLOADABLE
        with pytest.raises(ModelNotFound, match="overspill models pull maker/creek"):
            await ai.chat("Convert 3 km to m.")

        def look(progress):
            seen.append(progress)
            states.append(ai._own._absent_device())

        stored = await ai.pull(on_progress=look)
        assert set(states) == {AvailabilityState.DOWNLOADING}
        assert seen[-1].done_bytes == stored.size_bytes
        assert (await ai.availability()).device is AvailabilityState.AVAILABLE
        assert (await ai.chat("Convert 3 km to m.")).text


async def test_a_file_that_is_missing_cannot_be_pulled(settings):
    client = AsyncOverspill("t", settings=replace(settings, model="nowhere/none.gguf"))
    with pytest.raises(ModelNotFound, match="Check the path"):
        await client.__aenter__()


def test_the_blocking_client_pulls_too(settings):
    with Overspill("t", settings=settings) as ai:
        assert ai.pull().name == "creek-q8_0"
        assert ai.chat("Convert 3 km to m.").text


async def test_a_prewarmed_beginning_is_not_computed_again(settings):
    long = " ".join(f"Note {n}: the meeting is on day {n}." for n in range(12))
    async with AsyncOverspill("t", settings=replace(settings, model="brook")) as ai:
        await ai.prewarm([{"role": "system", "content": long}, {"role": "user", "content": "?"}])
        reply = await ai.chat(
            [{"role": "system", "content": long}, {"role": "user", "content": "Convert 3 km to m."}]
        )
    assert reply.usage.cached_tokens > 50
