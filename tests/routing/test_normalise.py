"""Stage 0: one canonical form, or an error that names the part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import InvalidRequest
from overspill.routing.language import guess_language
from overspill.routing.normalise import normalise, outgoing_text
from overspill.types.chat import Message, Request, Sampling, Tool, ToolCall

# As a caller without a type checker writes it.
anything: Callable[..., Message] = Message
USER = Message("user", "hello there")
CALL = Message("assistant", "", tool_calls=(ToolCall("c1", "clock", '{"zone": "nine"}'),))
RESULT = Message("tool", "12:00", tool_call_id="c1")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ((), "messages"),
        ((anything("robot", "x"),), "messages[0].role"),
        ((anything("user", ["x"]),), "messages[0].content"),
        ((Message("user", "\ud800"),), "messages[0].content"),
        ((Message("user", "  \n"),), "messages"),
        ((Message("system", "be brief"),), "messages"),
        ((USER, Message("assistant", "hi")), "messages[1]"),
        ((Message("user", "x", tool_calls=CALL.tool_calls),), "messages[0].tool_calls"),
        ((USER, RESULT), "messages[1].tool_call_id"),
        ((USER, CALL, Message("tool", "x", tool_call_id="c2")), "messages[2].tool_call_id"),
        ((USER, CALL, RESULT, RESULT), "messages[3].tool_call_id"),
        ((USER, CALL, USER), "messages"),
    ],
)
def test_a_malformed_conversation_is_refused_by_name(
    messages: tuple[Message, ...], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalise(Request(messages))
    assert caught.value.param == param
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"sampling": Sampling(temperature=-0.1)}, "temperature"),
        ({"sampling": Sampling(temperature=float("nan"))}, "temperature"),
        ({"sampling": Sampling(top_p=1.5)}, "top_p"),
        ({"stop": ("a", "")}, "stop"),
        ({"tools": (Tool("a"), Tool("a"))}, "tools"),
        ({"tools": (Tool(""),)}, "tools"),
        ({"tool_name": "b", "tools": (Tool("a"),)}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalise(Request((USER,), **options))
    assert caught.value.param == param


def test_a_tool_chain_is_recognised() -> None:
    form = normalise(Request((Message("system", "s"), USER, CALL, RESULT)))
    assert form.in_tool_chain
    assert form.has_system
    assert form.user_turns == ("hello there",)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_spacing_does_not_change_the_form(text: str) -> None:
    if not text.strip():
        return
    spaced = "  " + "\n \t".join(text.split()) + "\n"
    plain = " ".join(text.split())
    assert normalise(Request((Message("user", spaced),))).last_user == plain


def test_all_that_would_leave_is_listed() -> None:
    schema = {"type": "object", "properties": {"secret-key": {"description": "deep"}}}
    request = Request(
        (Message("user", "one", name="two"), CALL, Message("tool", "three", tool_call_id="c1")),
        tools=(Tool("four", "five", {"enum": ["six"]}),),
        json_schema=schema,
        stop=("seven",),
        prefix="eight",
        draft="nine of ten",
    )
    sent = set(outgoing_text(request))
    assert sent >= {"one", "two", "three", "four", "five", "six", "seven", "eight"}
    assert "nine of ten" in sent
    assert sent >= {"clock", '{"zone": "nine"}', "secret-key", "deep"}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of the country with the most lakes?", "en"),
        ("Wie viele Einwohner hat die Stadt und was ist der Name?", "de"),
        ("Quelle est la capitale du pays avec le plus de lacs dans les Alpes?", "fr"),
        ("¿Cuál es la capital del país y cuántos lagos hay en los Andes?", "es"),
        ("Сколько озёр в этой стране?", "ru"),
        ("この国の首都はどこですか", "ja"),
        ("法国的首都是哪里", "zh"),
        ("12 + 30 = ?", "unknown"),
        ("ok", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_language_is_named_only_where_it_is_plain(text: str, language: str) -> None:
    assert guess_language(text) == language
