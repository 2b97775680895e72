"""What bad input gets: a typed error that names it, or the cautious choice that is documented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from overspill.arguments import build_request
from overspill.errors import ConfigurationError, ContextOverflow, InvalidRequest, UnsupportedOption
from overspill.refusals import refusal
from overspill.routing.policy import RoutingPolicy, parse_policy
from overspill.routing.situation import Situation
from overspill.types.chat import Message, Privacy, Request
from overspill.types.route import Route, RouteDecision, RouteReason

Decide = Callable[..., RouteDecision]
MEGABYTE = 1 << 20


def built(messages: Any, **options: Any) -> Request:
    return build_request(messages, app="t", floor=Privacy.ANY, **options)


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": ""}], "", " \n\t\u2003"])
def test_empty_messages_are_refused(messages: Any, route_of: Decide) -> None:
    with pytest.raises(InvalidRequest):
        route_of(built(messages))


@pytest.mark.parametrize("where", ["content", "arguments", "name"])
def test_a_lone_surrogate_is_refused_wherever_it_stands(where: str, route_of: Decide) -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    if where == "content":
        turns[0]["content"] = "a\ud800b"
    elif where == "name":
        turns[0]["name"] = "\udfff"
    else:
        call["function"] = {"name": "f", "arguments": '"\ud800"'}
        turns += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "x", "tool_call_id": "c"},
        ]
    with pytest.raises(InvalidRequest, match="surrogate"):
        route_of(built(turns))


def test_tool_results_without_calls_are_refused(route_of: Decide) -> None:
    turns = [
        {"role": "user", "content": "x"},
        {"role": "tool", "content": "12", "tool_call_id": "nobody"},
    ]
    with pytest.raises(InvalidRequest, match="nobody made"):
        route_of(built(turns))


def test_content_arrays_are_their_text_and_other_parts_are_refused(route_of: Decide) -> None:
    parts = [{"type": "text", "text": "4111 1111 "}, {"type": "text", "text": "1111 1111"}]
    split = built([{"role": "user", "content": parts}])
    assert route_of(split).reason is RouteReason.PRIVACY  # what two parts hide together is found
    with pytest.raises(UnsupportedOption, match="input_audio"):
        built([{"role": "user", "content": [{"type": "input_audio"}]}])
    with pytest.raises(InvalidRequest):
        built([{"role": "user", "content": 12}])


@pytest.mark.parametrize(
    "text",
    ["a" * MEGABYTE, "1 " * (MEGABYTE // 2), "中" * MEGABYTE, "a@" * (MEGABYTE // 2)],
    ids=["letters", "digits", "han", "at"],
)
def test_a_megabyte_is_decided_on_in_a_glance(text: str, route_of: Decide, ask: Any) -> None:
    assert route_of(ask(text)).route in (Route.DEVICE, Route.CLOUD)


def test_a_card_at_the_end_of_a_megabyte_is_found(route_of: Decide, ask: Any) -> None:
    text = "word " * (MEGABYTE // 5) + "4111 1111 1111 1111"
    assert route_of(ask(text)).reason is RouteReason.PRIVACY


def test_a_prompt_that_fits_nowhere_is_refused_with_numbers(
    route_of: Decide, ask: Any, situation: Situation, cards: Any
) -> None:
    long = replace(situation, prompt_tokens={Route.DEVICE: 300_000})
    decision = route_of(ask("a " * MEGABYTE), long)
    assert decision.route is Route.REFUSED
    error = refusal(decision, cards, None)
    assert isinstance(error, ContextOverflow)
    assert (error.prompt_tokens, error.context) == (300_000, 4096)


@pytest.mark.parametrize(
    "text",
    [
        "ما هي عاصمة فرنسا؟",
        "מהי בירת צרפת?",
        "\u202eabc\u202c hidden order",
        "\u200f+49 30 1234567\u200f",
    ],
)
def test_right_to_left_text_is_decided_on_like_any_other(
    text: str, route_of: Decide, ask: Any
) -> None:
    decision = route_of(ask(text))
    assert decision.route in (Route.DEVICE, Route.CLOUD)
    found = any(stage.code == "personal_data" for stage in decision.stages)
    assert found == ("1234567" in text)


def test_an_expired_policy_is_strict(
    ask: Any, route_of: Decide, cards: Any, situation: Situation
) -> None:
    expired = RoutingPolicy(expires_unix=situation.now_unix)
    other = {**cards, Route.DEVICE: replace(cards[Route.DEVICE], name="other")}
    assert route_of(ask("hello"), policy=expired, cards=other).route is Route.CLOUD
    assert route_of(ask("hello"), policy=RoutingPolicy(), cards=other).route is Route.DEVICE
    # Strict about quality: what may not leave stays all the same.
    kept = ask("hello", privacy=Privacy.DEVICE)
    assert route_of(kept, policy=expired, cards=other).route is Route.DEVICE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 1",
        'version = "1"\nflor = "device"',
        'version = "1"\nfloor = "nowhere"',
        'version = "1"\nthreshold = nan',
        'version = "1"\nredact = "email"',
        'version = "1"\n[detectors]\ncard = "sometimes"',
        'version = "1"\nfloor = "device"\x00',
        "\x80binary",
    ],
)
def test_a_policy_file_that_was_tampered_with_is_no_policy(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_policy(text)


def test_one_changed_byte_is_another_policy() -> None:
    one, two = (parse_policy(f'version = "1"\nthreshold = {t}') for t in ("0.2", "0.3"))
    assert one.sha256 != two.sha256


def test_a_message_that_is_no_text_is_refused(route_of: Decide) -> None:
    anything: Any = Message
    with pytest.raises(InvalidRequest, match="type bytes"):
        route_of(Request((anything("user", b"x"),)))
