"""Stages 5 and 6 as a table: what the monitor says of an answer, and what its record adds up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.complexity import Scorer
from overspill.routing.decide import decide
from overspill.routing.monitor import Monitor, Progress, has_time_to_move
from overspill.routing.monitor_features import (
    features,
    is_looping,
    is_refusal,
    may_become_refusal,
    repetition,
)
from overspill.routing.monitor_policy import MonitorPolicy
from overspill.routing.policy import RoutingPolicy
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Privacy, Request, TokenSignal, Tool, ToolCall
from overspill.types.route import (
    DeviceProfile,
    NetworkState,
    Route,
    RouteDecision,
    RouteReason,
    Verdict,
)

DEVICE = ModelCard("brook", 1024, "llama.cpp", quantization="Q8_0")
CLOUD = ModelCard("river", 4096, "llama.cpp")
CARDS = {Route.DEVICE: DEVICE, Route.CLOUD: CLOUD}
CALC = Tool(
    "calc",
    parameters={
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    },
)
REQUEST = Request((Message("user", "How many?"),), tools=(CALC,))
HEADS = {
    check: {"bias": (0.9, 0.95), "mean_logprob": (0.5, 0.1), "first_entropy": (-0.3, -0.1)}
    for check in ("0", "1", "8", "32", "128", "end")
}
MONITOR = MonitorPolicy(
    "brook", "Q8_0", "llama.cpp", "river", heads=HEADS, certificate={"auc": 0.8}, threshold=0.2
)


def signals(count, logprob=-0.01, entropy=0.1, margin=5.0):
    return tuple(TokenSignal(n, logprob, margin, entropy) for n in range(count))


def progress(count=8, text="Twelve apples", logprob=-0.01, entropy=0.1, **further):
    found = signals(count, logprob, entropy)
    return Progress(text, tuple(s.token_id for s in found), found, **further)


def monitor(policy=None, *, alternatives=(Route.CLOUD,), request=REQUEST, cards=None, now=0, p=0.8):
    decision = RouteDecision(
        Route.DEVICE,
        RouteReason.EASY_ENOUGH,
        (),
        alternatives=alternatives,
        p_device_right=0.6,
        p_cloud_right=p,
    )
    policy = policy or RoutingPolicy(monitor=MONITOR)
    may_leave = Route.CLOUD in alternatives
    return Monitor.of(request, decision, policy, cards or CARDS, now, may_leave=may_leave)


SURE, UNSURE = progress(), progress(logprob=-3.0, entropy=2.5)


@pytest.mark.parametrize(
    ("answer", "check", "alternatives", "shown", "verdict", "code"),
    [
        (SURE, "8", (Route.CLOUD,), False, Verdict.GO_ON, "not_clear_yet"),
        (SURE, "end", (Route.CLOUD,), False, Verdict.SHOW, "gain_within_threshold"),
        (UNSURE, "0", (Route.CLOUD,), False, Verdict.ESCALATE, "gain_over_threshold"),
        (UNSURE, "8", (Route.CLOUD,), False, Verdict.ESCALATE, "gain_over_threshold"),
        (UNSURE, "end", (Route.CLOUD,), False, Verdict.ESCALATE, "gain_over_threshold"),
        # What was seen stays, and what may not leave stays: both are marked, at the end.
        (UNSURE, "32", (Route.CLOUD,), True, Verdict.GO_ON, "not_clear_yet"),
        (UNSURE, "end", (Route.CLOUD,), True, Verdict.DOUBT, "unlikely_right"),
        (UNSURE, "8", (), False, Verdict.GO_ON, "not_clear_yet"),
        (UNSURE, "end", (), False, Verdict.DOUBT, "unlikely_right"),
    ],
)
def test_certified_signals_decide(answer, check, alternatives, shown, verdict, code):
    found = monitor(alternatives=alternatives).look(answer, check, shown=shown)
    assert (found.verdict, found.code) == (verdict, code)
    assert sum(found.contributions.values()) == pytest.approx(found.gain)


def test_what_stage_3_saw_in_the_prompt_is_one_of_the_signals():
    heads = {"0": {"bias": (0.9, 0.95), "prompt_lift": (-0.5, 0.1)}}
    policy = RoutingPolicy(monitor=replace(MONITOR, heads=heads))
    decision = RouteDecision(
        Route.DEVICE,
        RouteReason.EASY_ENOUGH,
        (),
        contributions={"prior": 0.3, "ngrams": 0.2, "session_memory": 0.1},
    )
    watcher = Monitor.of(REQUEST, decision, policy, CARDS, 0, may_leave=True)
    found = watcher.look(SURE, "0", shown=False)
    assert found.contributions["prompt_lift"] == pytest.approx(0.6 * 0.3)
    assert found.p_device_right == pytest.approx(0.9 - 0.5 * 0.3)


def test_an_answer_that_is_clear_is_shown_at_once():
    clear = replace(MONITOR, clear=0.1)
    found = monitor(RoutingPolicy(monitor=clear)).look(SURE, "1", shown=False)
    assert found.verdict is Verdict.SHOW


def test_a_prompt_that_both_get_wrong_buys_no_cloud_call():
    hopeless = {"end": {"bias": (0.1, 0.15), "mean_logprob": (0.0, 0.0)}}
    policy = RoutingPolicy(monitor=replace(MONITOR, heads=hopeless))
    found = monitor(policy).look(UNSURE, "end", shown=False)
    assert (found.verdict, found.code) == (Verdict.DOUBT, "both_unlikely")
    refused = replace(SURE, text="I'm sorry, but I can't help with that.")
    found = monitor(policy, p=0.1).look(refused, "8", shown=False)
    assert (found.verdict, found.code) == (Verdict.DOUBT, "refusal")


@pytest.mark.parametrize(
    "card",
    [
        replace(DEVICE, name="brook-2"),
        replace(DEVICE, quantization="Q4_0"),
        replace(DEVICE, runtime="mlx"),
    ],
)
def test_signals_of_another_model_quantization_or_runtime_are_not_looked_at(card):
    found = monitor(cards={**CARDS, Route.DEVICE: card})
    assert found.watch is None
    check = found.look(UNSURE, "8", shown=False)
    assert (check.verdict, check.code, check.gain) == (Verdict.SHOW, "not_certified", None)


def test_another_file_of_the_same_name_is_another_model():
    of_file = RoutingPolicy(monitor=replace(MONITOR, sha256="aa"))
    assert monitor(of_file, cards={**CARDS, Route.DEVICE: replace(DEVICE, sha256="aa")}).heads
    assert not monitor(of_file, cards={**CARDS, Route.DEVICE: replace(DEVICE, sha256="bb")}).heads


@pytest.mark.parametrize("certificate", [{}, {"auc": 0.59}, {"auc": "good"}, {"n": 400}])
def test_signals_that_say_nothing_are_not_looked_at(certificate):
    policy = RoutingPolicy(monitor=replace(MONITOR, certificate=certificate))
    assert monitor(policy).heads is None


def test_an_expired_policys_signals_are_not_looked_at():
    policy = RoutingPolicy(monitor=MONITOR, expires_unix=100)
    assert monitor(policy, now=99).heads is MONITOR
    assert monitor(policy, now=100).heads is None


def test_for_another_cloud_model_stage_3_speaks():
    found = monitor(cards={**CARDS, Route.CLOUD: replace(CLOUD, name="ocean")}, p=0.99)
    check = found.look(UNSURE, "8", shown=False)
    assert check.p_cloud_right == 0.99
    assert check.contributions["p_cloud_right"] == 0.99
    assert sum(check.contributions.values()) == pytest.approx(check.gain)


def test_what_the_engine_has_to_tell():
    assert monitor().watch.tokens == 129
    probing = replace(MONITOR, state_ids=(3, 5), heads={"0": HEADS["0"], "8": HEADS["8"]})
    watch = monitor(RoutingPolicy(monitor=probing)).watch
    assert (watch.tokens, watch.state_ids) == (9, (3, 5))
    assert monitor(RoutingPolicy()).watch is None


def test_what_is_held_back():
    assert monitor().hold_tokens == 32
    assert monitor(RoutingPolicy()).hold_tokens == 8
    assert monitor(alternatives=()).hold_tokens == 0


def test_which_checks_are_due():
    found = monitor()
    assert found.due(-1, 1, ended=False) == ("0", "1")
    assert found.due(1, 7, ended=False) == ()
    assert found.due(1, 40, ended=False) == ("8", "32")
    assert found.due(40, 40, ended=True) == ("end",)
    assert found.due(-1, 0, ended=True) == ("0", "end")


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, I cannot answer this.",
    "I am sorry, but I am unable to do so.",
    "Sorry, I can't do that.",
    "I cannot assist with that request.",
    "As an AI language model, I have no opinion.",
    "I don't know.",
    "Unfortunately, I am not able to",
    "  I'm unable to browse.",
    "Es tut mir leid, aber ich kann das nicht beantworten.",
    "Ich kann dir dabei leider nicht helfen.",
    "Je suis désolé, mais je ne peux pas répondre.",
    "Lo siento, pero no puedo ayudarte.",
    "很抱歉，我无法回答。",
]
ANSWERS = [
    "I'm sorry to hear that you had a bad day.",
    "I can explain: the sum is 12.",
    "Sorry is a song by Justin Bieber.",
    "As an apprentice, he learned to weave.",
    "I can't believe how large Jupiter is: its mass is 318 Earths.",
    "Unfortunately for Napoleon, winter came early.",
    "Es sind zwölf.",
    "12",
    "",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_known_and_never_shown_before_they_are(text):
    assert is_refusal(text)
    beginnings = [text[:n] for n in range(len(text))]
    assert all(is_refusal(part) or may_become_refusal(part) for part in beginnings)
    check = monitor(RoutingPolicy()).look(replace(SURE, text=text), "8", shown=False)
    assert (check.verdict, check.code) == (Verdict.ESCALATE, "refusal")
    assert check.contributions == {"refusal": check.gain}


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_no_refusals(text):
    assert not is_refusal(text)
    assert not may_become_refusal(text + " and so on" * 6)


def test_what_cannot_become_a_refusal_is_shown_at_once():
    bare = monitor(RoutingPolicy())
    assert bare.look(replace(SURE, text="Twelve"), "1", shown=False).verdict is Verdict.SHOW
    assert bare.look(replace(SURE, text="I'm"), "1", shown=False).verdict is Verdict.GO_ON
    assert bare.look(replace(SURE, text="I'm"), "end", shown=False).verdict is Verdict.SHOW


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        (list(range(64)), False),
        ([1, 2, 3] * 8, True),
        ([*range(40), *([7] * 24)], True),
        ([7] * 23, False),
        ([*range(20), *range(20)], False),
        (list(range(20)) * 3, True),
        ([*([1, 2] * 20), 3], False),
    ],
)
def test_going_round_in_circles(tokens, loops):
    assert is_looping(tokens) is loops


def test_an_answer_that_goes_round_in_circles_is_left():
    looping = replace(SURE, token_ids=(1, 2) * 16, text="so so " * 16)
    check = monitor(RoutingPolicy()).look(looping, "32", shown=False)
    assert (check.verdict, check.code) == (Verdict.ESCALATE, "endless_repetition")


@pytest.mark.parametrize(
    ("calls", "text", "code"),
    [
        ((ToolCall("1", "calc", '{"n": 3}'),), "", None),
        ((ToolCall("1", "calc", '{"n": 3.5}'),), "", "invalid_arguments"),
        ((ToolCall("1", "calc", '{"m": 3}'),), "", "invalid_arguments"),
        ((ToolCall("1", "calc", '{"n": 3'),), "", "malformed_call"),
        ((ToolCall("1", "calc", "[3]"),), "", "malformed_call"),
        ((ToolCall("1", "sum", "{}"),), "", "unknown_tool"),
        ((), '<tool_call>{"name": "calc"', "malformed_call"),
        ((), "  ", "empty_answer"),
        ((), "3", None),
    ],
)
def test_calls_and_empty_answers_at_the_end(calls, text, code):
    whole = replace(SURE, text=text, calls=calls, is_whole=True)
    held = monitor(RoutingPolicy()).look(whole, "end", shown=False)
    seen = monitor(RoutingPolicy()).look(whole, "end", shown=True)
    if code is None:
        assert held.verdict is seen.verdict is Verdict.SHOW
    else:
        assert (held.verdict, held.code) == (Verdict.ESCALATE, code)
        assert (seen.verdict, seen.code) == (Verdict.DOUBT, code)


@pytest.mark.parametrize(
    ("text", "code"),
    [('{"n": 3}', None), ('{"n": "3"}', "not_the_schema"), ('{"n": 3', "invalid_json")],
)
def test_json_at_the_end(text, code):
    request = replace(REQUEST, tools=(), json_schema=CALC.parameters)
    whole = replace(SURE, text=text, is_whole=True)
    check = monitor(RoutingPolicy(), request=request).look(whole, "end", shown=False)
    assert (check.code if check.verdict is Verdict.ESCALATE else None) == code


def test_a_call_that_is_whole_is_read_before_the_end():
    calls = (ToolCall("1", "sum", "{}"),)
    check = monitor(RoutingPolicy()).look(replace(SURE, text="", calls=calls), "8", shown=False)
    assert (check.verdict, check.code) == (Verdict.ESCALATE, "unknown_tool")


def test_features_after_so_many_tokens():
    found = [
        TokenSignal(1, -0.5, 1.0, 2.0, state=(4.0, -1.0)),
        TokenSignal(2, -1.5, 3.0, 1.0),
        TokenSignal(3, -9.0, 0.5, 0.0),
    ]
    assert features((), 0) == {}
    assert features(found, 0) == {
        "first_entropy": 2.0, "first_margin": 1.0, "state_0": 4.0, "state_1": -1.0,
    }  # fmt: skip
    two = features(found, 2)
    assert (two["mean_logprob"], two["least_logprob"], two["mean_margin"]) == (-1.0, -1.5, 2.0)
    assert (two["entropy_slope"], two["median_logprob"], two["length"]) == (-1.0, -1.0, 2 / 128)
    assert features(found)["least_logprob"] == -9.0


@given(st.lists(st.integers(0, 5), max_size=80))
def test_repetition_is_a_share(tokens):
    assert 0.0 <= repetition(tokens) <= 1.0
    assert repetition(tokens * 3) >= 0.5 or len(tokens) < 4


finite = st.floats(-50, 50)
any_signals = st.lists(
    st.builds(TokenSignal, st.integers(0, 9), finite, finite, finite), min_size=1, max_size=140
)


@given(any_signals, st.sampled_from(["0", "1", "8", "32", "128", "end"]), st.booleans())
def test_every_record_adds_up_and_what_was_shown_never_leaves(found, check, shown):
    answer = Progress("x", tuple(s.token_id for s in found), tuple(found))
    said = monitor().look(answer, check, shown=shown)
    if said.gain is not None:
        assert sum(said.contributions.values()) == pytest.approx(said.gain, abs=1e-9)
    if shown:
        assert said.verdict is not Verdict.ESCALATE
    stays = monitor(alternatives=()).look(answer, check, shown=False)
    assert stays.verdict is not Verdict.ESCALATE


LEANING = RoutingPolicy(threshold=0.1, monitor=replace(MONITOR, lean=0.4))
"""Stage 3 sees a gain of 0.3: over the threshold, and within what the monitor may be left."""


@pytest.fixture
def decided(attested, now):
    """The decision on a prompt whose gain is 0.3, with the device and a proven cloud at hand."""

    def decided(policy, device=DEVICE, **options):
        scorer = Scorer((device.name, "river"), (0.5, 0.8), {}, {}, 8, b"\0")
        request = Request((Message("user", "Why is the sky blue?"),), **options)
        situation = Situation(prompt_tokens={Route.DEVICE: 6}, attestation=attested(), now_unix=now)
        return decide(request, situation, policy, {**CARDS, Route.DEVICE: device}, scorer=scorer)

    return decided


@pytest.mark.parametrize(
    ("policy", "device", "options", "route"),
    [
        (LEANING, DEVICE, {}, Route.DEVICE),
        (replace(LEANING, strict=True), DEVICE, {}, Route.DEVICE),
        (replace(LEANING, monitor=MONITOR), DEVICE, {}, Route.CLOUD),
        (replace(LEANING, monitor=replace(MONITOR, lean=0.1)), DEVICE, {}, Route.CLOUD),
        # What is not certified for this model and quantization keeps nothing here, strict or not.
        (LEANING, replace(DEVICE, quantization="Q4_0"), {}, Route.CLOUD),
        (replace(LEANING, strict=True), replace(DEVICE, runtime="mlx"), {}, Route.CLOUD),
        (replace(LEANING, expires_unix=1), DEVICE, {}, Route.CLOUD),
        # A trial that fails costs time.
        (LEANING, DEVICE, {"deadline_s": 60.0}, Route.CLOUD),
        (LEANING, DEVICE, {"first_token_s": 60.0}, Route.CLOUD),
    ],
)
def test_what_stage_3_leaves_to_a_certified_monitor(decided, policy, device, options, route):
    decision = decided(policy, device, **options)
    assert decision.route is route
    assert sum(decision.contributions.values()) == pytest.approx(0.3)
    if route is Route.DEVICE:
        assert decision.reason is RouteReason.TRIAL
        assert decision.alternatives == (Route.CLOUD,)


def test_a_request_that_stays_is_left_to_nobody(decided):
    decision = decided(LEANING, privacy=Privacy.DEVICE)
    assert (decision.route, decision.reason) == (Route.DEVICE, RouteReason.PRIVACY)
    assert decision.alternatives == ()


@pytest.mark.parametrize(
    ("limits", "hold_tokens", "moves"),
    [
        ({}, 32, True),
        # The device takes 1 s and 0.1 s a token, the cloud 1 s and 0.02 s a token of 50.
        ({"deadline_s": 3.2}, 1, True),
        ({"deadline_s": 3.2}, 8, False),
        ({"deadline_s": 6.5}, 32, True),
        ({"deadline_s": 6.5}, 500, False),
        ({"first_token_s": 2.5}, 1, True),
        ({"first_token_s": 2.5}, 8, False),
        ({"deadline_s": 60.0, "first_token_s": 2.0}, 1, False),
    ],
)
def test_a_trial_that_would_cost_the_deadline_is_none(limits, hold_tokens, moves):
    request = replace(REQUEST, max_tokens=50, **limits)
    situation = Situation(
        device=DeviceProfile(prefill_tokens_per_s=100.0, decode_tokens_per_s=10.0),
        network=NetworkState(rtt_s=0.9, prefill_tokens_per_s=1000.0, decode_tokens_per_s=50.0),
        prompt_tokens={Route.DEVICE: 100},
    )
    assert has_time_to_move(request, situation, hold_tokens) is moves
    assert has_time_to_move(request, replace(situation, network=NetworkState()), hold_tokens)
