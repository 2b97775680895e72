"""Forced, strict and single tool calls: by grammar in every family's form, and through engines."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overspill.engines.answer_text import AnswerForm, AnswerText
from overspill.engines.constraint import Constrainer
from overspill.engines.constraint_grammar import request_grammar
from overspill.engines.dialects.cohere import Cohere
from overspill.engines.dialects.framed_calls import KIMI, SOLAR, FramedCalls
from overspill.engines.dialects.gemma_calls import GemmaCalls
from overspill.engines.dialects.harmony import Harmony
from overspill.engines.dialects.json_calls import FunctionTag, Llama3, Mistral, TaggedJson
from overspill.engines.dialects.value_tags import InvokeTags, KeyValueTags
from overspill.engines.dialects.xml_calls import XmlCalls
from overspill.engines.echo import EchoBackend
from overspill.engines.registry import EngineOptions, open_engine
from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.types.chat import FinishReason, Message, Request, Tool

pytestmark = pytest.mark.anyio

WEATHER = Tool(
    "weather",
    "The weather at a place",
    {
        "type": "object",
        "properties": {
            "place": {"enum": ["Bern", "Zürich"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["place", "days"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("clock", "The time", {"type": "object", "additionalProperties": False})
PICK = Tool(
    "pick",
    "",
    {"properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False},
)
TOOLS = (WEATHER, CLOCK)
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}
DIALECTS = [
    TaggedJson(),
    TaggedJson("<TOOLCALL>", "</TOOLCALL>", is_list=True),
    Llama3(),
    Mistral(),
    Mistral(named=True),
    FunctionTag(),
    XmlCalls(),
    Harmony(),
    KeyValueTags(),
    InvokeTags(),
    InvokeTags("｜DSML｜tool_calls", "｜DSML｜", typed=True),
    FramedCalls(KIMI),
    FramedCalls(SOLAR),
    Cohere(),
    GemmaCalls(),
]
OPENINGS = {
    "hermes": "<tool_call>",
    "function_tag": "<function=",
    "qwen_xml": "<tool_call>",
    "glm": "<tool_call>",
    "invoke": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="',
    "framed": "<|tool_calls_section_begin|><|tool_call_begin|>functions.",
    "gemma": "<|tool_call>call:",
    "cohere": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "',
}
STRICT = [
    TaggedJson(),
    FunctionTag(),
    XmlCalls(),
    KeyValueTags(),
    InvokeTags("｜DSML｜tool_calls", "｜DSML｜", typed=True),
    FramedCalls(KIMI),
    Cohere(),
    GemmaCalls(),
]
END, FREE = 257, 150
MARKS = range(258, 290)
"""Ids that stand for a dialect's control tokens in the vocabulary below."""


class MarkedEcho(EchoBackend):
    """Bytes, the two marks of ChatML, and 32 control tokens more."""

    @property
    def vocabulary(self):
        return replace(super().vocabulary, size=MARKS.stop)


def form_of(dialect, *, with_tokens, **more):
    spelled = {}
    if with_tokens:
        spelled = {token: mark.encode() for token, mark in zip(MARKS, dialect.marks, strict=False)}
    return AnswerForm(dialect, spelled=spelled, **more)


def ask(**options):
    return Request(messages=(Message("user", "x"),), **options)


def wander(request, form, seed, *, most=3000):
    """An answer whose every token is drawn blindly from what is allowed."""
    backend, rng = MarkedEcho(), random.Random(seed)
    grammar, param = request_grammar(request, form)
    constraint = Constrainer(backend).constrain(grammar, param=param)
    answer, parsed, thoughts = AnswerText(request, form), [], iter(b"ok<|end|>")
    for _ in range(most):
        if constraint.is_finished:
            break
        allowed = [int(token) for token in constraint.allowed_ids()]
        # A blind writer of free text would never come to an end.
        if len(allowed) > FREE:
            marks = [token for token in allowed if token in MARKS]
            token = marks[0] if marks else next(thoughts)
        else:
            token = END if END in allowed else rng.choice(allowed)
        if token == END:
            break
        constraint.advance(token)
        parsed.append(answer.feed_token(token, backend.token_bytes(token)))
    else:
        pytest.fail("no end")
    parsed.append(answer.flush())
    return parsed


def calls_in(parsed):
    return [(call.name, json.loads(call.arguments)) for piece in parsed for call in piece.calls]


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
@pytest.mark.parametrize("parallel", [False, True])
def test_whatever_a_forced_model_says_is_calls(dialect, with_tokens, parallel):
    form = form_of(dialect, with_tokens=with_tokens)
    request = ask(tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel)
    for seed in range(12):
        parsed = wander(request, form, seed)
        calls = calls_in(parsed)
        assert "".join(piece.text for piece in parsed).strip() == ""
        assert len(calls) >= 1 if parallel else len(calls) == 1
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_a_named_tool_is_called_once(dialect):
    request = ask(tools=TOOLS, tool_choice="required", tool_name="clock")
    for seed in range(4):
        assert calls_in(wander(request, form_of(dialect, with_tokens=True), seed)) == [
            ("clock", {})
        ]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_with_a_schema_an_answer_is_of_it_or_a_call(dialect):
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    # A blind writer of arguments that are held to nothing would never come to an end.
    request = ask(tools=[replace(tool, strict=True) for tool in TOOLS], json_schema=schema)
    seen = set()
    for seed in range(24):
        parsed = wander(request, form_of(dialect, with_tokens=True), seed)
        text = "".join(piece.text for piece in parsed).strip()
        if calls_in(parsed):
            assert text == ""
        else:
            jsonschema.validate(json.loads(text), schema)
        seen.add(bool(text))
    assert seen == {False, True}


def test_thoughts_come_before_a_held_answer():
    form = AnswerForm(TaggedJson(), thinks=True, thinking_is_open=True)
    request = ask(json_schema={"type": "integer", "minimum": 1, "maximum": 5})
    grammar, param = request_grammar(request, form)
    constraint = Constrainer(EchoBackend()).constrain(grammar, param=param)
    assert constraint.advance_text(list(b"Is it 9? No.</think>\n\n"))
    assert {chr(token) for token in constraint.allowed_ids()} >= set("12345")
    answer = AnswerText(request, form)
    parsed = [answer.feed(b"Is it 9? No.</think>\n\n4"), answer.flush()]
    assert [(p.reasoning, p.text) for p in parsed] == [("Is it 9? No.", "4"), ("", "")]


@pytest.mark.parametrize("dialect", STRICT, ids=lambda d: d.name)
def test_strict_tools_hold_a_call_that_was_begun_freely(dialect):
    request = ask(tools=(replace(WEATHER, strict=True),))
    form = form_of(dialect, with_tokens=False)
    grammar, param = request_grammar(request, form)
    constraint = Constrainer(EchoBackend()).constrain(grammar, param=param)
    assert constraint.advance_text(list(f"Let me see. {OPENINGS[dialect.name]}".encode()))
    assert not constraint.allows(END)
    assert ord("z") not in constraint.allowed_ids()


def test_one_call_at_most_leaves_no_room_for_a_second():
    request = ask(tools=TOOLS, parallel_tool_calls=False)
    grammar, param = request_grammar(request, AnswerForm(TaggedJson()))
    constraint = Constrainer(EchoBackend()).constrain(grammar, param=param)
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert constraint.advance_text(list(call.encode()))
    assert constraint.allows(END)
    assert ord("<") not in constraint.allowed_ids()
    assert Constrainer(EchoBackend()).constrain(grammar, param=param).advance_text(list(b"Hi."))


def test_gpt_oss_makes_one_call_at_most_anyway():
    """A call ends its turn: nothing is held then, and nothing refused."""
    form = form_of(Harmony(), with_tokens=True)
    request = ask(tools=TOOLS, parallel_tool_calls=False)
    assert request_grammar(request, form) is None
    strict = replace(request, tools=(replace(CLOCK, strict=True),))
    with pytest.raises(UnsupportedOption, match="strict"):
        request_grammar(strict, form)
    assert request_grammar(replace(request, tool_choice="required"), form) is not None


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (ask(tools=TOOLS, tool_choice="required", tool_name="none"), InvalidRequest, "tool_choice"),
        (ask(tool_choice="required"), InvalidRequest, "tool_choice"),
        (
            ask(tools=(Tool("f", "", {"not": {}}),), tool_choice="required"),
            UnsupportedOption,
            "tools",
        ),
        (ask(tools=(Tool("f", "", {"type": "array"}),), tool_name="f"), InvalidRequest, "tools"),
    ],
)
def test_what_cannot_be_forced_is_refused(request_, error, param):
    with pytest.raises(error) as caught:
        request_grammar(request_, AnswerForm(TaggedJson()))
    assert caught.value.param == param


def test_text_between_tags_is_held_to_no_pattern():
    tool = Tool("f", "", {"properties": {"s": {"type": "string", "pattern": "^a+$"}}})
    with pytest.raises(UnsupportedOption, match="pattern") as caught:
        request_grammar(ask(tools=(tool,), tool_choice="required"), AnswerForm(XmlCalls()))
    assert caught.value.param == "tools"


async def test_an_engine_calls_when_it_has_to(engine, kit):
    request = kit.ask("Hello", tools=(PICK,), tool_choice="required", parallel_tool_calls=False)
    chunks = await kit.collect(engine, replace(request, max_tokens=150))
    (call,) = [call for chunk in chunks for call in chunk.tool_calls]
    assert call.name == "pick"
    assert json.loads(call.arguments) in ({"n": 1}, {"n": 2})
    assert kit.text_of(chunks).strip() == ""
    assert chunks[-1].finish.reason is FinishReason.TOOL_CALLS
    deltas = [delta for chunk in chunks for delta in chunk.tool_call_deltas]
    assert "".join(delta.arguments for delta in deltas) == call.arguments
    assert (deltas[0].id, deltas[0].name) == (call.id, call.name)


async def test_an_engine_that_may_not_call_does_not(engine, kit):
    chunks = await kit.collect(
        engine, kit.ask("call pick {}", tools=(PICK,), tool_choice="none", max_tokens=20)
    )
    assert not any(chunk.tool_calls or chunk.tool_call_deltas for chunk in chunks)


# --- brook, whatever it wants to say ------------------------------------------------------------

scalars = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-50, 50),
        st.integers(0, 300),
    ),
    st.builds(lambda size: {"type": "string", "maxLength": size}, st.integers(0, 6)),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.text(max_size=4) | st.integers(-9, 9), min_size=1, max_size=3, unique_by=str),
    ),
    st.just({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}),
    st.just({"type": "string", "format": "ipv4"}),
)
names = st.text('abcdéz_ "\\', min_size=1, max_size=4)


def _object(properties, needed):
    required = [name for name, keep in zip(properties, needed, strict=False) if keep]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(
            _object,
            st.dictionaries(names, inner, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3),
        ),
        st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most},
            inner,
            st.integers(0, 2),
        ),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def brook(brook_gguf):
    """brook, and a loop to run it on: hypothesis and async fixtures don't mix."""
    with asyncio.Runner() as runner:
        engine = open_engine(str(brook_gguf), options=EngineOptions(context_tokens=1024, threads=1))
        runner.run(engine.start())
        yield lambda request: runner.run(_collect(engine, request))
        runner.run(engine.aclose())


async def _collect(engine, request):
    return [chunk async for chunk in engine.generate(request)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(schema=schemas)
def test_brook_says_what_the_schema_wants(brook, schema):
    chunks = brook(replace(ask(json_schema=schema, max_tokens=900)))
    assert chunks[-1].finish.reason is FinishReason.STOP
    value = json.loads("".join(chunk.text for chunk in chunks))
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    schema=schemas.filter(lambda s: s.get("type") == "object"), word=st.text("abc ?", max_size=9)
)
def test_brook_calls_with_arguments_of_their_schema(brook, schema, word):
    request = ask(tools=(Tool("act", "", schema),), tool_choice="required", max_tokens=900)
    chunks = brook(replace(request, messages=(Message("user", word or "x"),), tool_name="act"))
    (call,) = [call for chunk in chunks for call in chunk.tool_calls]
    jsonschema.validate(
        json.loads(call.arguments), schema, format_checker=jsonschema.FormatChecker()
    )


def test_gemma_holds_what_is_nested_and_what_may_lack():
    inner = {"type": "object", "properties": {"x": {"type": "boolean"}, "y": {"type": "null"}}}
    schema = {
        "type": "object",
        "properties": {
            "b": {**inner, "required": ["y"], "additionalProperties": False},
            "a": {"type": "array", "items": {"enum": ["one", "two"]}},
            "c": {"type": "integer", "minimum": 0, "maximum": 3},
        },
        "required": ["b"],
        "additionalProperties": False,
    }
    request = ask(tools=[Tool("deep", "", schema)], tool_choice="required", tool_name="deep")
    seen = set()
    for seed in range(20):
        ((name, arguments),) = calls_in(
            wander(request, form_of(GemmaCalls(), with_tokens=True), seed)
        )
        assert name == "deep"
        jsonschema.validate(arguments, schema)
        seen |= set(arguments)
    assert seen == {"a", "b", "c"}


@pytest.mark.parametrize(
    "inner", [{"$ref": "#/$defs/x"}, {"type": "string", "pattern": "a"}, {"enum": [1, "a"]}]
)
def test_gemma_names_what_it_cannot_hold(inner):
    schema = {"properties": {"p": inner}, "$defs": {"x": {"type": "integer"}}}
    request = ask(tools=[Tool("t", "", schema)], tool_choice="required")
    with pytest.raises(UnsupportedOption, match="tools/t/p"):
        request_grammar(request, AnswerForm(GemmaCalls()))
