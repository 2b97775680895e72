"""What an app is told of each answer is what the node's ledger says: model, tokens, and which one.

Over requests of several kinds, drawn at random, on a road that breaks at random frames.
``--ledger-requests 10000`` asks more of them.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from overspill import AsyncOverspill, verify_receipt
from overspill.config import load_settings
from overspill.errors import OverspillError, StreamBroken
from overspill.testing import FakeEngine
from overspill.transport.memory import Taps
from overspill.types.chat import Privacy
from overspill.types.route import Route

pytestmark = pytest.mark.anyio

SEED = 6


class Road:
    """Breaks an answer at the frame that was drawn for it: once, or as often as it is asked for."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._at: int | None = None
        self._for_good = False

    def begin(self) -> None:
        """The next answer begins: half of them break, some before their first piece."""
        self._at = self._draw.choice((None, None, None, None, 1, 2, 3, 6))
        self._for_good = self._draw.random() < 0.5

    def __call__(self, index: int, frame: bytes) -> tuple[bytes, ...]:
        if self._at is not None and index >= self._at:
            self._at = self._at if self._for_good else None
            raise StreamBroken("The road broke.")
        return (frame,)


def asked(draw: random.Random, number: int) -> tuple[str, dict]:
    """A prompt and the options of one request."""
    text = f"{number} " + "word " * draw.randrange(1, 12)
    options = draw.choice(
        (
            {"model": "echo"},
            {"model": "echo", "max_tokens": draw.randrange(1, 20)},
            {"model": "echo", "stop": "word word"},
            {"model": "echo", "output": {"type": "object", "properties": {"n": {"const": 1}}}},
            {"model": "local"},
            {"model": "local", "privacy": "device"},
        )
    )
    return text, options


@pytest.fixture
def ours(tmp_path):
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path / "device")})
    return replace(settings, privacy=Privacy.ANY, device_key="file")


async def test_receipts_models_and_tokens_are_the_ledgers(cloud, tmp_path, ours, request):
    draw = random.Random(SEED)
    road = Road(draw)
    replies, failed = [], Counter()
    async with cloud.world(tmp_path / "node") as here:
        remote = await here.enrolled(taps=Taps(on_response=road))
        device = FakeEngine("local words", name="local", json_schema=True)
        async with AsyncOverspill("t", settings=ours, device=device, cloud=remote) as ai:
            for number in range(request.config.getoption("--ledger-requests")):
                text, options = asked(draw, number)
                for _ in range(draw.choice((1, 2))):  # an app tries again after a failure
                    road.begin()
                    try:
                        replies.append(await ai.chat(text, **options))
                        break
                    except OverspillError as error:
                        failed[error.code] += 1
        await here.node.drain(0.0)
        lines = {row["request_id"]: row for row in here.store.usage()}

    receipts = [reply.receipt for reply in replies if reply.receipt is not None]
    claims = {record.request_id: verify_receipt(record) for record in receipts}
    for reply in replies:
        if reply.route.route is Route.DEVICE:
            assert (reply.model, reply.receipt) == ("local", None)
            continue
        claim = claims[reply.request_id]
        line = lines[claim.request_id]
        assert reply.model == reply.route.model == claim.model == line["model"] == "echo"
        told = (reply.usage.prompt_tokens, reply.usage.completion_tokens)
        assert told == (claim.prompt_tokens, claim.completion_tokens)
        assert told == (line["prompt_tokens"], line["completion_tokens"])
        assert claim.finish_reason == reply.finish_reason.value == line["outcome"]
    named = [claim.request_id for claim in claims.values()]
    assert len(set(named)) == len(named) == len(receipts)
    # What the app was not told of is in the ledger too, as what it was: no line is missing.
    assert len(lines) >= len(receipts)
    assert failed.keys() <= {"stream_broken", "stream_truncated", "connect_failed"}, failed
    assert failed
    assert {reply.route.route for reply in replies} == {Route.DEVICE, Route.CLOUD}
