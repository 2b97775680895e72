"""`ai.embed`: on the device, by the model that the settings name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overspill import AsyncOverspill, Overspill
from overspill.config import load_settings
from overspill.engines.embedder import Embedder
from overspill.errors import BudgetExhausted, ContextOverflow, InvalidRequest, ModelNotFound
from overspill.testing import FakeEngine
from overspill.types.card import ModelCard

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path):
    found = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    return replace(found, model="echo", isolate=False)


async def test_texts_become_vectors(settings):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine("x")) as ai:
        reply = await ai.embed(["one", "two"])
        assert len(reply.vectors) == 2
        assert reply.model == "echo"
        assert (await ai.embed("one")).vectors[0] == reply.vectors[0]


def test_the_blocking_client_does_the_same(settings):
    with Overspill("t", settings=settings, device=FakeEngine("x")) as ai:
        assert len(ai.embed("one", pooling="none").embeddings[0].vectors) == 3


async def test_the_settings_may_name_another_model_for_it(settings, tmp_path):
    settings = replace(settings, embedding_model=str(tmp_path / "missing.gguf"))
    async with AsyncOverspill("t", settings=settings, device=FakeEngine("x")) as ai:
        with pytest.raises(ModelNotFound, match=r"missing\.gguf"):
            await ai.embed("one")


async def test_what_cannot_be_embedded_is_an_error(settings):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine("x")) as ai:
        with pytest.raises(ContextOverflow):
            await ai.embed("x" * 5000)
        for texts in ([], [1]):
            with pytest.raises(InvalidRequest) as caught:
                await ai.embed(texts)
            assert caught.value.param == "texts"


class _Slow(Embedder):
    """Never done; says whether it was closed."""

    closed = False
    card = ModelCard(name="slow", context=9, runtime="none")

    async def _embed(self, request):
        import anyio

        await anyio.sleep_forever()

    async def aclose(self):
        self.closed = True


async def test_a_chains_deadline_ends_it_and_the_client_closes_it(settings):
    slow = _Slow()
    async with AsyncOverspill("t", settings=settings, device=FakeEngine("x"), embedder=slow) as ai:
        with ai.budget(seconds=0.05), pytest.raises(BudgetExhausted):
            await ai.embed("one")
    assert slow.closed
