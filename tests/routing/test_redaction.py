"""Redact and restore: what a fake cloud receives holds no value, and the answer has them again."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.redacting import RedactingEngine
from overspill.routing.normalise import outgoing_text
from overspill.routing.policy import RoutingPolicy, parse_policy
from overspill.routing.redaction import Restorer, Veil, redact
from overspill.routing.situation import Situation
from overspill.testing import FakeEngine
from overspill.types.chat import (
    Chunk,
    Finish,
    FinishReason,
    Grammar,
    Image,
    Message,
    Privacy,
    Request,
    Tool,
    ToolCall,
    ToolCallDelta,
    merge_chunks,
)
from overspill.types.route import Route, RouteDecision
from overspill.types.usage import Usage

POLICY = RoutingPolicy(
    redact=("email", "phone", "card", "iban", "api_key", "listed"),
    listed_terms=("Jürgen Maße", "Project Heron"),
)
VALUES = (
    "jane.doe@mail.example.org",
    "+49 30 1234567",
    "4111 1111 1111 1111",
    "GB82 WEST 1234 5698 7654 32",
    "sk-proj-abcdefghijklmnopqrstuvwx",
    "Project Heron",
    "Jürgen Maße",
)
END = Chunk(finish=Finish(FinishReason.STOP, Usage(1, 1), "cloud"))
frames = st.sampled_from(["write to {} now", "({})", '"{}",', "1. {}\n2. more", "{}", "我：{}。"])


def requests_with(value: str, text: str) -> list[Request]:
    """The value in each place of a request that a model sees."""
    ask, arguments = Message("user", "go on"), {"to": [text, {text: 1}], "n": 3}
    call = ToolCall("c1", "send", json.dumps(arguments))  # escapes what is not ASCII
    chain = (ask, Message("assistant", text, (call,)), Message("tool", text, tool_call_id="c1"))
    schema = {"enum": [text], "properties": {value: {"description": text}}}
    return [
        Request((Message("user", text),)),
        Request((Message("system", text), ask)),
        Request((Message("user", "go on", name=value),)),
        Request(chain),
        Request((ask, replace(chain[1], tool_calls=(replace(call, arguments=text),)), chain[2])),
        Request((ask,), tools=(Tool("send", text, schema),)),
        Request((ask,), json_schema=schema),
        Request((ask,), stop=(text,), prefix=text, draft=text),
    ]


def leaks(request: Request, value: str) -> bool:
    sent = "\n".join(outgoing_text(request))
    return value in sent or json.dumps(value)[1:-1] in sent


@given(st.sampled_from(VALUES), frames)
def test_no_value_is_left_anywhere_in_what_leaves(value: str, frame: str) -> None:
    for request in requests_with(value, frame.format(value)):
        veil = redact(request, POLICY)
        assert veil is not None
        assert not leaks(veil.request, value)
        assert value in veil.values.values()


@pytest.mark.anyio
@pytest.mark.parametrize("value", VALUES)
async def test_a_fake_cloud_sees_placeholders_and_the_app_sees_values(value: str) -> None:
    cloud = FakeEngine(lambda request: f"Dear {request.messages[0].content}, bye.")
    engine = RedactingEngine(cloud, POLICY)
    async with engine:
        request = Request((Message("user", value),))
        answer = merge_chunks([chunk async for chunk in engine.generate(request)])
        assert await engine.count_prompt_tokens(request) == 1
    assert answer.text == f"Dear {value}, bye."
    assert not any(leaks(received, value) for received in cloud.requests)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def veil_of(text: str, **options: Any) -> Veil:
    veil = redact(Request((Message("user", text),), **options), POLICY)
    assert veil is not None
    return veil


@given(st.lists(st.integers(0, 200), max_size=30))
def test_however_a_stream_is_cut_the_answer_is_the_same(cuts: list[int]) -> None:
    veil = veil_of("a@b.example and c@d.example, a@b.example")
    answer = "[EMAIL_1], [[EMAIL_2]] [EMAIL_3] [EMA [EMAIL_1"
    restorer = Restorer(veil)
    shown = [restorer.chunk(Chunk(text=piece)) for piece in pieces_of(answer, cuts)]
    shown.append(restorer.chunk(END))
    assert "".join(c.text for c in shown) == "a@b.example, [c@d.example] [EMAIL_3] [EMA [EMAIL_1"


@given(st.lists(st.integers(0, 200), max_size=30))
def test_what_can_be_shown_is_not_held_back(cuts: list[int]) -> None:
    restorer = Restorer(veil_of("a@b.example"))
    answer = "no placeholder here: [1, 2] and [x] [EMAIL]"
    shown = ""
    for index, piece in enumerate(pieces_of(answer, cuts)):
        shown += restorer.chunk(Chunk(text=piece)).text
        came = sum(map(len, pieces_of(answer, cuts)[: index + 1]))
        assert came - len(shown) < len("[EMAIL_1]")


@given(st.lists(st.integers(0, 200), max_size=20))
def test_tool_arguments_get_their_values_as_json(cuts: list[int]) -> None:
    secret = 'pass"word\\9x'
    policy = RoutingPolicy(redact=("listed",), listed_terms=(secret,))
    veil = redact(Request((Message("user", f"it is {secret} !"),)), policy)
    assert veil is not None
    arguments = '{"to": "[TERM_1]", "cc": ["[TERM_1]"]}'
    restorer = Restorer(veil)
    chunks = [
        Chunk(tool_call_deltas=(ToolCallDelta(0, "c1", "send"),)),
        *(
            Chunk(tool_call_deltas=(ToolCallDelta(0, arguments=p),))
            for p in pieces_of(arguments, cuts)
        ),
        Chunk(tool_calls=(ToolCall("c1", "send", arguments),)),
        END,
    ]
    shown = merge_chunks([restorer.chunk(chunk) for chunk in chunks])
    (call,) = shown.tool_calls
    assert json.loads(call.arguments) == {"to": secret, "cc": [secret]}
    assert "".join(delta.arguments for delta in shown.tool_call_deltas) == call.arguments


def test_an_answer_held_to_a_schema_stays_json() -> None:
    policy = RoutingPolicy(redact=("listed",), listed_terms=('a "b" c',))
    request = Request((Message("user", 'say a "b" c'),), json_schema={"type": "object"})
    veil = redact(request, policy)
    assert veil is not None
    shown = Restorer(veil).chunk(replace(END, text='{"x": "[TERM_1]"}'))
    assert json.loads(shown.text) == {"x": 'a "b" c'}


def test_one_value_has_one_placeholder_and_turns_keep_theirs() -> None:
    first = Request((Message("user", "a@b.example or c@d.example?"),))
    later = replace(
        first,
        messages=(
            *first.messages,
            Message("assistant", "c@d.example"),
            Message("user", "and e@f.example, a@b.example?"),
        ),
    )
    one, two = redact(first, POLICY), redact(later, POLICY)
    assert one is not None
    assert two is not None
    assert two.request.messages[0] == one.request.messages[0]
    assert two.request.messages[1].content == "[EMAIL_2]"
    assert two.request.messages[2].content == "and [EMAIL_3], [EMAIL_1]?"


def test_a_placeholder_that_the_text_holds_already_is_not_used() -> None:
    veil = veil_of("[EMAIL_1] is a placeholder, a@b.example is not")
    assert veil.request.messages[0].content == "[EMAIL_1] is a placeholder, [EMAIL_2] is not"


def test_pictures_stand_where_they_stood() -> None:
    text = "a@b.example sees  and c@d.example"
    image = Image(b"x", "image/png", at=17)
    veil = redact(Request((Message("user", text, images=(image,)),)), POLICY)
    assert veil is not None
    (message,) = veil.request.messages
    assert message.content[: message.images[0].at] == "[EMAIL_1] sees "


def test_nothing_is_touched_where_nothing_is_redacted() -> None:
    request = Request((Message("user", "4111 1111 1111 1111"),))
    assert redact(request, RoutingPolicy()) is None
    assert redact(Request((Message("user", "hello"),)), POLICY) is None


def test_a_request_may_ask_for_it_and_its_floor_stays(
    ask: Callable[..., Request], route_of: Callable[..., RouteDecision]
) -> None:
    request = ask("12 for 4111 1111 1111 1111", redact=True)
    assert redact(request, RoutingPolicy()) is not None
    assert route_of(request).route is Route.DEVICE


def test_what_a_policy_redacts_raises_no_floor_and_taints_nothing(
    ask: Callable[..., Request], route_of: Callable[..., RouteDecision], situation: Situation
) -> None:
    request = ask("12 for 4111 1111 1111 1111 and jane@mail.example.org")
    both = RoutingPolicy(redact=("card", "email"))
    decision = route_of(request, policy=both)
    assert decision.route is Route.CLOUD
    (hidden,) = [stage for stage in decision.stages if stage.code == "redacted"]
    assert hidden.numbers == {"card": 1, "email": 1}
    assert route_of(request, policy=RoutingPolicy(redact=("email",))).route is Route.DEVICE


def test_what_cannot_be_hidden_raises_the_floor_as_ever(
    ask: Callable[..., Request], route_of: Callable[..., RouteDecision]
) -> None:
    request = ask("12: say a card", grammar=Grammar("regex", "4111 1111 1111 1111"))
    decision = route_of(request, policy=RoutingPolicy(redact=("card",)))
    (floor,) = [stage for stage in decision.stages if stage.code == "floor"]
    assert (floor.detail, floor.removed) == (Privacy.DEVICE, (Route.CLOUD,))


def test_a_policy_file_names_kinds_that_exist() -> None:
    from overspill.errors import ConfigurationError

    assert parse_policy('version = "1"\nredact = ["email"]').redact == ("email",)
    with pytest.raises(ConfigurationError, match="unknown detector 'mail'"):
        parse_policy('version = "1"\nredact = ["mail"]')


@pytest.mark.anyio
async def test_the_end_brings_what_was_held_back() -> None:
    class Cut(FakeEngine):
        async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
            yield Chunk(text="see [EMAIL_", reasoning="[EMAIL_1] [EM")
            yield END

    engine = RedactingEngine(Cut(), POLICY)
    request = Request((Message("user", "a@b.example"),), privacy=Privacy.ANY)
    answer = merge_chunks([chunk async for chunk in engine.generate(request)])
    assert (answer.text, answer.reasoning) == ("see [EMAIL_", "a@b.example [EM")
