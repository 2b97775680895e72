"""An answer as a value: of a model, a dataclass, a typed dictionary, or what a schema says."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from overspill import AsyncOverspill, Overspill
from overspill.config import load_settings
from overspill.errors import InvalidRequest, MissingExtra, OutputInvalid
from overspill.testing import FakeEngine, call
from overspill.typed import partial_of, schema_of
from overspill.types.chat import Grammar

pytestmark = pytest.mark.anyio


class Model(BaseModel):
    total: int
    currency: Literal["EUR", "USD"] = "EUR"


@dataclass
class Record:
    total: int
    currency: Literal["EUR", "USD"] = "EUR"


class Entry(TypedDict):
    total: int
    currency: Literal["EUR", "USD"]


SCHEMA = {"type": "object", "properties": {"total": {"type": "integer"}}}
TEXT = '{"total": 3, "currency": "USD"}'
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture
def settings(tmp_path):
    return load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})


def engine(*answers):
    return FakeEngine(list(answers), json_schema=True)


@pytest.mark.parametrize(
    ("output", "text", "value"),
    [
        (Model, TEXT, Model(total=3, currency="USD")),
        (Record, TEXT, Record(3, "USD")),
        (Entry, TEXT, {"total": 3, "currency": "USD"}),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, Record], '{"a": {"total": 1}}', {"a": Record(1)}),
        (int | None, "null", None),
        (SCHEMA, '{"total": 3}', {"total": 3}),
    ],
    ids=["model", "dataclass", "typed dict", "list", "dict", "union", "schema"],
)
async def test_an_answer_is_read_as_what_was_asked_for(settings, output, text, value):
    device = engine(text, text)
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        reply = await ai.chat("x", output=output)
        last = [piece async for piece in ai.stream("x", output=output)][-1]
    assert reply.output == last.output == value
    assert reply.text == text
    assert device.requests[0].json_schema == (output if output is SCHEMA else schema_of(output))


@pytest.mark.parametrize("text", ['{"total": "many"}', '{"total": 3, "cur', "no JSON", '"text"'])
@pytest.mark.parametrize("output", [Model, Record, Entry])
async def test_what_is_no_such_value_is_an_error_with_the_text(settings, output, text):
    async with AsyncOverspill("t", settings=settings, device=engine(text, text)) as ai:
        with pytest.raises(OutputInvalid) as caught:
            await ai.chat("x", output=output)
        with pytest.raises(OutputInvalid):
            _ = [piece async for piece in ai.stream("x", output=output)]
    assert caught.value.partial == text
    assert output.__name__ in caught.value.message
    assert "\n" not in str(caught.value)


async def test_an_answer_that_was_cut_off_is_no_value(settings):
    device = engine('{"total": 3, "currency": "USD"}')
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with pytest.raises(OutputInvalid) as caught:
            await ai.chat("x", output=SCHEMA, max_tokens=2)
    assert caught.value.partial == '{"total": 3,'


async def test_calls_without_a_text_have_no_value(settings):
    async with AsyncOverspill("t", settings=settings, device=engine(call("f"))) as ai:
        reply = await ai.chat("x", output=Model, tools=[{"name": "f"}])
    assert reply.tool_calls
    assert reply.output is None


async def test_a_grammar_leaves_text(settings):
    async with AsyncOverspill("t", settings=settings, device=engine("aaa")) as ai:
        reply = await ai.chat("x", output=Grammar("regex", "a+"))
    assert reply.text == "aaa"
    assert not hasattr(reply, "output")


async def test_a_real_engine_is_held_to_a_dataclass(settings):
    held = replace(settings.with_model("brook"), isolate=False)
    async with AsyncOverspill("t", settings=held, daemon="never") as ai:
        reply = await ai.chat("Sort in ascending order: 12, 7", output=Record, max_tokens=64)
    assert isinstance(reply.output, Record)


def test_the_blocking_client_types_too(settings):
    with Overspill("t", settings=settings, device=engine(TEXT)) as ai:
        assert ai.chat("x", output=Record).output == Record(3, "USD")


def test_a_type_without_pydantic_names_the_extra_and_a_schema_needs_none(settings, monkeypatch):
    @dataclass
    class Fresh:
        n: int

    monkeypatch.setitem(sys.modules, "pydantic", None)
    with Overspill("t", settings=settings, device=engine('{"total": 3}')) as ai:
        assert ai.chat("x", output=SCHEMA).output == {"total": 3}
        with pytest.raises(MissingExtra, match=r"overspill\[typed\]"):
            ai.chat("x", output=Fresh)


def test_a_type_that_json_cannot_say_is_refused_by_name():
    class Odd:
        pass

    with pytest.raises(InvalidRequest, match="Odd") as caught:
        schema_of(Odd)
    assert caught.value.param == "output"


@pytest.mark.parametrize("output", [Model, Record, Entry, SCHEMA])
async def test_a_stream_has_what_is_written_so_far(settings, output):
    async with AsyncOverspill("t", settings=settings, device=engine(TEXT)) as ai:
        pieces = [piece async for piece in ai.stream("x", output=output)]
    assert [piece.text for piece in pieces if piece.text] == [
        '{"total":',
        " 3,",
        ' "currency":',
        ' "USD"}',
    ]
    written = [piece.partial for piece in pieces if piece.text]
    assert written == [{}, {"total": 3}, {"total": 3}, {"total": 3, "currency": "USD"}]
    assert (pieces[-1].partial, pieces[-1].output is not None) == (None, True)


async def test_a_stream_of_text_has_no_partial_value(settings):
    async with AsyncOverspill("t", settings=settings, device=engine('{"a": 1}')) as ai:
        pieces = [piece async for piece in ai.stream("x")]
    assert {piece.partial for piece in pieces} == {None}


@given(value=JSON_VALUES, at=st.floats(0, 1))
def test_any_beginning_of_any_json_says_what_the_whole_does(value, at):
    text = json.dumps(value, ensure_ascii=False)
    found = partial_of(text[: int(at * len(text))])
    assert found is None or begins(found, value)


def begins(part, whole):
    """Whether a value is the beginning of another: the last of each may be cut off."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and begins(inner, whole[key]) for key, inner in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and all(map(begins, part, whole)) and len(part) <= len(whole)
    if isinstance(part, str):
        return isinstance(whole, str) and whole.startswith(part)
    return str(whole).startswith(str(part)) or part == whole
