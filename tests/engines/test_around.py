"""What stands in front of an engine says of it what it says of itself."""

import inspect

import pytest

from overspill.engines.around import EngineAround
from overspill.engines.base import Engine, EngineHealth
from overspill.testing import FakeEngine
from overspill.types.chat import Chunk, Message, Request

ITS_OWN = {"generate"}
"""The seam's guard stands before whatever is asked, in front too."""


class Told(FakeEngine):
    """An engine that says something in each place."""

    loading = 0.5

    async def health(self) -> EngineHealth:
        return EngineHealth(ok=False, detail="asleep", queued=3)

    def queue_position(self, request_id: str) -> int | None:
        return 7 if request_id == "mine" else None


class Gate(EngineAround):
    """Lets everything through."""

    async def _generate(self, request: Request):  # type: ignore[no-untyped-def]  # as the base says
        async for chunk in self._engine.generate(request):
            yield chunk


def test_all_that_an_engine_may_say_of_itself_is_passed_on() -> None:
    said = {name for name, _ in inspect.getmembers(Engine) if not name.startswith("_")} - ITS_OWN
    assert said == {name for name in said if name in vars(EngineAround)}


@pytest.mark.anyio
async def test_a_gate_hides_nothing_of_the_engine_behind() -> None:
    engine = Told("one two")
    async with Gate(engine) as gate:
        request = Request(messages=(Message("user", "hello"),))
        assert gate.card == engine.card
        assert gate.loading == 0.5
        assert gate.queue_position("mine") == 7
        assert await gate.health() == await engine.health()
        assert await gate.count_prompt_tokens(request) == await engine.count_prompt_tokens(request)
        chunks: list[Chunk] = [chunk async for chunk in gate.generate(request)]
    assert "".join(chunk.text for chunk in chunks).strip() == "one two"
