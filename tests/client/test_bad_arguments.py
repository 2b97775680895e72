"""What an app passes that means nothing is an ``InvalidRequest`` that names it, never another."""

from __future__ import annotations

import json

import pytest

from overspill import Overspill
from overspill.arguments import build_embedding
from overspill.config import load_settings
from overspill.errors import ConfigurationError, InvalidRequest, UsageError
from overspill.testing import FakeEngine
from overspill.types.chat import Grammar, Message, Tool, ToolCall

SURROGATE = "a\ud800"
DEEP: dict = {}
for _ in range(100_000):
    DEEP = {"items": DEEP}


@pytest.fixture(scope="module")
def ai(tmp_path_factory):
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path_factory.mktemp("home"))})
    with Overspill("t", settings=settings, device=FakeEngine("one", json_schema=True)) as ai:
        yield ai


def calling(**call):
    return [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "x"}]


def test_the_same_turns_are_taken_where_they_mean_something(ai):
    function = {"name": "f", "arguments": "{}"}
    turns = [
        {"role": "user", "content": "x", "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]},
        {"role": "tool", "content": "y", "tool_call_id": "c"},
    ]
    call = ai.build(turns).messages[1].tool_calls[0]
    assert (call.id, call.name, call.arguments) == ("c", "f", "{}")
    assert ai.build(iter(turns)).messages == ai.build(turns).messages


@pytest.mark.parametrize(
    "messages",
    [
        {"role": "user", "content": "x"},
        [Message("user", 5)],  # type: ignore[arg-type]  # what is tried
        [Message("user", None)],  # type: ignore[arg-type]  # what is tried
        [Message("user", "x", name=3)],  # type: ignore[arg-type]  # what is tried
        [Message("assistant", "", (ToolCall("c", SURROGATE, "{}"),)), Message("user", "x")],
        [{"role": "user", "content": "x", "name": SURROGATE}],
        [{"role": "tool", "content": "x", "tool_call_id": 5}],
        [{"role": "assistant", "tool_calls": 5}],
        [{"role": "assistant", "tool_calls": "ab"}],
        calling(function="f"),
        calling(id="c", function={"name": "f"}),
        calling(id="c", function={"name": 5, "arguments": "{}"}),
        calling(id="c", function={"name": "f", "arguments": {"a": 1}}),
        calling(id=7, function={"name": "f", "arguments": "{}"}),
        calling(id="c", function={"name": SURROGATE, "arguments": "{}"}),
        calling(id="c", function={"name": "f", "arguments": SURROGATE}),
    ],
)
def test_turns_that_are_none(ai, messages):
    with pytest.raises(InvalidRequest) as caught:
        ai.build(messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("app", {"app": "another"}),
        ("floor", {"floor": "any"}),
        *(("tools", {"tools": tools}) for tools in (None, 5, "ab", {"name": "f"})),
        ("tools", {"tools": [{"name": SURROGATE}]}),
        ("tools", {"tools": [{"name": "f", "description": SURROGATE}]}),
        ("tools", {"tools": [{"name": "f", "parameters": {"title": SURROGATE}}]}),
        ("tools", {"tools": [{"name": "f", "parameters": [1]}]}),
        ("tools", {"tools": [{"name": "f", "parameters": "x"}]}),
        ("tools", {"tools": [{"name": "f", "parameters": DEEP}]}),
        ("tools", {"tools": [Tool("f", parameters={"a": {1}})]}),
        ("tools", {"tools": [Tool(5)]}),  # type: ignore[arg-type]  # what is tried
        ("tool_choice", {"tool_choice": {"function": "f"}}),
        ("tool_choice", {"tool_choice": {"function": None}}),
        *(
            ("logit_bias", {"logit_bias": bias})
            for bias in (
                None,
                5,
                [1],
                {"a": 1},
                {"5": 1},
                {True: 1},
                {1: "x"},
                {1: True},
                {1: None},
                {1: float("nan")},
                {1: float("-inf")},
                {1: 10**400},
                {10**30: 1},
            )
        ),
        ("output", {"output": {"type": {"object"}}}),
        ("output", {"output": {"const": SURROGATE}}),
        ("output", {"output": DEEP}),
        ("output", {"output": Grammar("regex", None)}),  # type: ignore[arg-type]  # what is tried
        ("output", {"output": Grammar("ebnf", "x")}),  # type: ignore[arg-type]  # what is tried
        (
            "response_format",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": {1}}}}},
        ),
    ],
)
def test_options_that_mean_nothing(ai, param, options):
    with pytest.raises(InvalidRequest) as caught:
        ai.build("x", **options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("param", "options"),
    [
        *(("texts", {"texts": texts}) for texts in (5, None, b"abc", {"a": 1}, [1], SURROGATE)),
        *(("dimensions", {"dimensions": value}) for value in ("a", True, 1.5)),
        ("normalize", {"normalize": "no"}),
    ],
)
def test_embeddings_of_what_is_none(param, options):
    given = {"texts": "x", "pooling": "model", "normalize": True, "dimensions": None} | options
    with pytest.raises(InvalidRequest) as caught:
        build_embedding(given.pop("texts"), app="t", **given)
    assert caught.value.param == param


@pytest.mark.parametrize("tools", [None, 5, "ab", {"name": "f"}])
def test_a_run_of_what_are_no_tools(ai, tools):
    with pytest.raises(InvalidRequest, match="tools"):
        ai.run("x", tools=tools)


@pytest.mark.parametrize("steps", ["two", None, 1.5, 0])
def test_a_run_of_no_number_of_steps(ai, steps):
    with pytest.raises(InvalidRequest, match="max_steps"):
        ai.run("x", tools=[], max_steps=steps)


@pytest.mark.parametrize("limit", ["x", None, -1, 1.5, True])
def test_receipts_of_no_number(ai, limit):
    with pytest.raises(InvalidRequest, match="limit"):
        ai.receipts(limit)


@pytest.mark.parametrize("model", [5, b"brook", SURROGATE])
def test_a_pull_of_no_name(ai, model):
    with pytest.raises(InvalidRequest, match="model"):
        ai.pull(model)


@pytest.mark.parametrize("name", ["seconds", "cost", "tokens", "calls"])
@pytest.mark.parametrize("value", ["x", True, 0, -1, float("nan"), float("inf")])
def test_a_budget_of_no_number(ai, name, value):
    with pytest.raises(InvalidRequest, match=name), ai.budget(**{name: value}):
        pytest.fail("There is no such budget.")


def test_arguments_nested_beyond_reading_are_refused_where_they_are_looked_through(ai):
    call = {"id": "c", "function": {"name": "f", "arguments": "[" * 100_000 + '"\\u0041"'}}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "y", "tool_call_id": "c"},
    ]
    with pytest.raises(InvalidRequest, match="nested"):
        ai.plan(turns)


def test_a_schema_that_json_can_say_goes_through_whole(ai):
    schema = {"type": "object", "properties": {"größe": {"type": "integer"}}}
    assert json.loads(json.dumps(ai.build("x", output=schema).json_schema)) == schema


@pytest.mark.parametrize("address", ["nonsense", "http://x", "host:", "host:0", "a:1, b", ":1"])
def test_what_is_no_address_of_a_cloud(ai, address):
    with (
        pytest.raises(ConfigurationError, match="address"),
        Overspill("t", settings=ai.settings.with_cloud(address), device=FakeEngine("one")),
    ):
        pytest.fail("There is no such cloud.")


@pytest.mark.parametrize(
    ("name", "value"),
    [("app", 5), ("app", SURROGATE), ("daemon", "maybe"), ("daemon", None), ("settings", {})],
)
def test_a_client_that_is_made_of_what_is_none(ai, name, value):
    with pytest.raises(UsageError, match=name):
        Overspill(**{"settings": ai.settings, "device": FakeEngine("one"), name: value})
