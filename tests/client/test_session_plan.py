"""A plan says where a request runs: the same decision, on random requests.

What the monitor does after the start is left out, and nothing else is: where the real route is
another than the plan's, the answer says which of the monitor's checks moved it.
``--plan-requests`` sets how many are tried.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from overspill import AsyncOverspill
from overspill.errors import OverspillError
from overspill.testing import FakeEngine
from overspill.types.route import Route, RouteReason, Verdict

pytestmark = pytest.mark.anyio

POLICY = """
version = "plans"
threshold = 0.05
"""
WORDS = (
    "why is the sky blue prove that sum of two odd numbers is even write a haiku translate into "
    "German integral of x squared hello thanks commit it capital France 4111 1111 1111 1111 "
    "ada@example.org +49 30 901820 مرحبا 你好 \u202eabc 🙂 def f(x): return x + 1 12 times 37 "
).split(" ")
ANSWERS = ("Twelve.", "I'm sorry, but I can't help with that.", "one two " * 20, "")
TOOL = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object"}}}


def _text(draw):
    return " ".join(draw.choices(WORDS, k=draw.choice((0, 1, 3, 12, 60))))


def _messages(draw):
    turns = []
    if draw.random() < 0.2:
        turns.append({"role": "system", "content": _text(draw)})
    for _ in range(draw.choice((0, 0, 0, 1, 3))):
        turns += [
            {"role": "user", "content": _text(draw)},
            {"role": "assistant", "content": _text(draw)},
        ]
    turns.append({"role": "user", "content": _text(draw)})
    if draw.random() < 0.1:
        call = {"id": "1", "function": {"name": "calc", "arguments": "{}"}}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3", "tool_call_id": draw.choice(("1", "1", "2"))},
        ]
    return turns


def _options(draw):
    options = {"max_tokens": draw.choice((1, 8, 8, 8, 10_000))}
    for name, values, share in (
        ("privacy", ("device", "attested", "any"), 0.3),
        ("model", ("fake", "river", "nobody"), 0.1),
        ("tools", ([TOOL],), 0.15),
        ("output", ({"type": "object"},), 0.1),
        ("deadline_s", (0.001, 1.0, 60.0), 0.15),
        ("first_token_s", (0.001, 5.0), 0.1),
        ("temperature", (0.7, 3.0), 0.1),
    ):
        if draw.random() < share:
            options[name] = draw.choice(values)
    return options


async def _tried(asking):
    """What came of it, or the code of its refusal."""
    try:
        return await asking
    except OverspillError as error:
        return error.code


def _shape(decision):
    """The decision without its time, and without numbers of the machine that move meanwhile."""
    return (
        decision.route,
        decision.reason,
        decision.alternatives,
        decision.contributions,
        decision.policy_sha256,
        [(stage.stage, stage.code, stage.removed) for stage in decision.stages],
    )


async def test_plan_and_real_route_agree_on_random_requests(cloud_at, pytestconfig):
    draw = random.Random(7)
    count = pytestconfig.getoption("--plan-requests")
    device = FakeEngine(lambda request: draw.choice(ANSWERS))
    seen = set()
    async with cloud_at() as cloud:
        cloud.settings.routing_policy.write_text(POLICY)
        async with AsyncOverspill("t", settings=cloud.settings, device=device) as ai:
            await ai.enroll(cloud.code())
            for number in range(count):
                messages, options = _messages(draw), _options(draw)
                told = json.dumps([number, messages, options], ensure_ascii=False)
                plan = await _tried(ai.plan(messages, **options))
                reply = await _tried(ai.chat(messages, **options))
                seen.add(_agree(plan, reply, told))
    wanted = {Route.DEVICE, Route.CLOUD, "moved", "refused", "invalid"}
    assert seen >= wanted, f"the requests are too much alike: {seen}"


def _agree(plan, reply, told):
    """Raises unless they do; what kind of request it was."""
    if isinstance(plan, str):
        assert reply == plan, told
        return "invalid"
    if plan.route is Route.REFUSED:
        assert isinstance(reply, str), told
        return "refused"
    if isinstance(reply, str):  # it ran where it was planned, and failed there: too late, too long
        return reply
    route = reply.route
    assert _shape(route.decision) == _shape(plan.decision), told
    if route.route is plan.route:
        assert not route.changes or route.monitor, told
        return route.route
    assert route.reason is RouteReason.ESCALATE, told
    assert any(check.verdict is Verdict.ESCALATE for check in route.monitor), told
    return "moved"


async def test_a_plan_contacts_nobody_for_what_has_to_stay(cloud_at):
    device = FakeEngine()
    async with cloud_at() as cloud:
        unreachable = replace(cloud.settings.cloud, address="unix:/nowhere/n.sock")
        settings = replace(cloud.settings, cloud=unreachable)
        async with AsyncOverspill("t", settings=settings, device=device) as ai:
            plan = await ai.plan("My card is 4111 1111 1111 1111", privacy="device")
    assert (plan.route, plan.bytes_leaving) == (Route.DEVICE, 0)
    assert not device.requests
