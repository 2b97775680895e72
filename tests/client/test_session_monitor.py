"""What an app sees of the monitor: one clean answer, and how it came about."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from overspill import AsyncOverspill
from overspill.errors import EngineDied
from overspill.testing import FakeEngine
from overspill.types.chat import TokenSignal
from overspill.types.route import Route, RouteReason, Verdict

pytestmark = pytest.mark.anyio

FAULTS_ALONE = 'version = "faults alone"\nthreshold = 0.5\n'
CERTIFIED = """
version = "certified"
threshold = 0.9
[monitor]
model = "fake"
quantization = "unknown"
runtime = "fake"
cloud = "river"
threshold = 0.2
hold_tokens = {hold_tokens}
[monitor.certificate]
auc = 0.8
[monitor.heads.{check}]
bias = [1.0, 0.95]
mean_logprob = [0.4, 0.0]
[monitor.heads.end]
bias = [1.0, 0.95]
mean_logprob = [0.4, 0.0]
"""
REFUSAL = "I'm sorry, but I can't help with that."
LONG = "one two three four five six seven eight nine ten eleven twelve"


class Telling(FakeEngine):
    """A fake that is as sure of each word of a watched answer as it is told to be."""

    def __init__(self, answer, logprob, **options):
        super().__init__(answer, **options)
        self._logprob = logprob

    async def _generate(self, request):
        told = 0
        async with aclosing(super()._generate(request)) as chunks:
            async for chunk in chunks:
                if request.watch is not None and chunk.text and told < request.watch.tokens:
                    told += 1
                    signal = TokenSignal(told, self._logprob, 1.0, -self._logprob)
                    chunk = replace(chunk, signals=(signal,))
                yield chunk


@pytest.fixture
def hybrid(cloud_at):
    """A client of a fake device and a real node, under a routing policy's text."""

    @asynccontextmanager
    async def open_client(device, policy=FAULTS_ALONE, *, enrolled=True, **settings):
        async with cloud_at() as cloud:
            cloud.settings.routing_policy.write_text(policy)
            changed = replace(cloud.settings, **settings)
            async with AsyncOverspill("t", settings=changed, device=device) as ai:
                if enrolled:
                    await ai.enroll(cloud.code())
                yield ai

    return open_client


def certified(check="8", hold_tokens=16):
    return CERTIFIED.format(check=check, hold_tokens=hold_tokens)


async def test_a_refusal_is_never_seen_where_the_cloud_may_answer(hybrid):
    device = FakeEngine(REFUSAL)
    async with hybrid(device) as ai:
        pieces = [piece async for piece in ai.stream("Hello there")]
    assert "".join(piece.text for piece in pieces) == "echo: Hello there"
    assert {piece.route.route for piece in pieces} == {Route.CLOUD}
    last = pieces[-1]
    assert last.route.reason is RouteReason.ESCALATE
    assert last.route.changes == ("device -> cloud: refusal",)
    assert last.receipt is not None
    assert last.route.bytes_sent > 0
    assert not last.route.low_confidence
    assert device.cancelled == 1


async def test_what_was_thrown_away_is_counted_beside_the_answers_usage(hybrid):
    async with hybrid(FakeEngine(REFUSAL)) as ai:
        reply = await ai.chat("Hello there")
    assert reply.route.thrown.prompt_tokens == 2
    assert 0 < reply.route.thrown.completion_tokens <= 8
    assert reply.usage.completion_tokens == len("echo: Hello there")
    assert [check.verdict for check in reply.route.monitor][-1] is Verdict.ESCALATE


@pytest.mark.parametrize("privacy", ["device", "any"])
async def test_a_refusal_that_may_not_leave_is_marked(hybrid, tmp_path, privacy):
    settings = {"cloud": None} if privacy == "any" else {}
    async with hybrid(FakeEngine(REFUSAL), enrolled=privacy == "device", **settings) as ai:
        pieces = [piece async for piece in ai.stream("Hello there", privacy=privacy)]
    last = pieces[-1]
    assert "".join(piece.text for piece in pieces) == REFUSAL
    assert (last.route.route, last.route.bytes_sent) == (Route.DEVICE, 0)
    assert last.route.low_confidence
    assert last.route.monitor[-1].code == "refusal"
    # Nothing is held back for a monitor that cannot move it.
    assert len([piece for piece in pieces if piece.text]) == len(REFUSAL.split())


async def test_an_answer_that_is_none_of_the_faulty_ones_flows_at_once(hybrid):
    async with hybrid(FakeEngine(LONG)) as ai:
        pieces = [piece async for piece in ai.stream("Hello there")]
    assert [piece.text for piece in pieces if piece.text][:2] == ["one", " two"]
    assert pieces[-1].route.route is Route.DEVICE
    assert not pieces[-1].route.low_confidence


async def test_certified_signals_send_an_unsure_answer_away_before_it_is_seen(hybrid):
    device = Telling(LONG, -2.0)
    async with hybrid(device, certified()) as ai:
        reply = await ai.chat("Hello there")
    assert reply.text == "echo: Hello there"
    check = reply.route.monitor[-1]
    assert (check.check, check.verdict, check.code) == (
        "8", Verdict.ESCALATE, "gain_over_threshold",
    )  # fmt: skip
    assert sum(check.contributions.values()) == pytest.approx(check.gain)
    assert reply.route.thrown.completion_tokens == 8
    assert device.requests[0].watch.tokens == 9


async def test_a_sure_answer_is_held_for_so_long_and_loses_nothing(hybrid):
    async with hybrid(Telling(LONG, -0.1), certified(hold_tokens=10)) as ai:
        pieces = [piece async for piece in ai.stream("Hello there")]
    assert "".join(piece.text for piece in pieces) == LONG
    assert not pieces[-1].route.low_confidence
    assert [check.check for check in pieces[-1].route.monitor] == ["0", "1", "8", "end"]
    assert pieces[0].route.monitor[-1].check == "8"  # what was held came with the tenth token


async def test_what_was_shown_stays_and_is_marked_at_the_end(hybrid):
    device = Telling(LONG, -2.0)
    async with hybrid(device, certified(check="128", hold_tokens=4)) as ai:
        reply = await ai.chat("Hello there")
    assert (reply.text, reply.route.route) == (LONG, Route.DEVICE)
    assert reply.route.low_confidence
    assert reply.route.monitor[-1].verdict is Verdict.DOUBT


async def test_a_short_answer_is_judged_when_it_is_whole(hybrid):
    async with hybrid(Telling("Six.", -2.0), certified()) as ai:
        reply = await ai.chat("Hello there")
    assert reply.route.route is Route.CLOUD
    assert reply.route.monitor[-1].check == "end"
    assert reply.route.thrown.completion_tokens == 1


async def test_the_draft_rides_along_unless_it_is_a_fault(hybrid):
    long = " ".join(["word"] * 400)
    async with hybrid(Telling(long, -2.0), certified("128", 200)) as ai:
        with_draft = await ai.chat("Hello there")
    assert with_draft.route.route is Route.CLOUD
    async with hybrid(FakeEngine(REFUSAL + long)) as ai:
        without = await ai.chat("Hello there")
    assert without.route.route is Route.CLOUD
    written = 128 * len(" word")
    assert written <= with_draft.route.bytes_sent - without.route.bytes_sent < written + 200


async def test_a_draft_that_would_have_kept_the_request_here_stays_here(hybrid):
    card = "The card is 4111 1111 1111 1111 and so on " + "and on " * 200
    async with hybrid(Telling(card, -2.0), certified("128", 200)) as ai:
        reply = await ai.chat("Hello there")
        plain = await ai.chat("Hello there", model="river")
    assert reply.route.route is Route.CLOUD
    assert abs(reply.route.bytes_sent - plain.route.bytes_sent) < 100


async def test_where_the_cloud_fails_the_devices_answer_is_better_than_none(hybrid):
    device = FakeEngine(REFUSAL)
    async with hybrid(device, enrolled=False) as ai:  # the node takes no request of this device
        pieces = [piece async for piece in ai.stream("Hello there")]
    last = pieces[-1]
    assert "".join(piece.text for piece in pieces) == REFUSAL
    assert (last.route.route, last.route.reason) == (Route.DEVICE, RouteReason.FALL_BACK)
    assert last.route.changes == (
        "device -> cloud: refusal", "cloud -> device: device_rejected",
    )  # fmt: skip
    assert last.route.low_confidence
    assert last.route.bytes_sent > 0
    assert len(device.requests) == 2


async def test_a_device_that_dies_with_its_text_held_back_loses_nobodys_answer(hybrid):
    device = Telling(LONG, -0.1, error=EngineDied("Gone."), error_after=5)
    async with hybrid(device, certified()) as ai:
        reply = await ai.chat("Hello there")
    assert reply.text == "echo: Hello there"
    assert reply.route.reason is RouteReason.FALL_BACK


async def test_a_conversation_remembers_that_it_was_escalated(hybrid):
    device = FakeEngine(REFUSAL)
    turns = [{"role": "user", "content": "Hello there"}]
    async with hybrid(device) as ai:
        first = await ai.chat(turns)
        turns += [
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "commit it"},
        ]
        second = await ai.plan(turns)
    assert first.route.route is second.route is Route.CLOUD
    assert second.decision.contributions["session_memory"] > 0


async def test_a_tool_chain_stays_where_the_monitor_moved_it(hybrid):
    tool = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "calc", "arguments": "{}"}}
    turns = [{"role": "user", "content": "Hello there"}]
    async with hybrid(FakeEngine(REFUSAL)) as ai:
        await ai.chat(turns, tools=[tool])
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3", "tool_call_id": "1"},
        ]
        plan = await ai.plan(turns, tools=[tool])
    codes = [stage.code for stage in plan.decision.stages]
    assert (plan.route, "tool_chain_stays" in codes) == (Route.CLOUD, True)


async def test_an_empty_answer_of_the_cloud_is_marked(hybrid):
    async with hybrid(FakeEngine()) as ai:
        reply = await ai.chat("I'm sorry, but I cannot do that", model="river")
        assert not reply.route.low_confidence
        reply = await ai.chat("x", model="river", max_tokens=1, stop=["e"])
    assert reply.text == ""
    assert reply.route.low_confidence
