"""What an app may ask an answer to be held to, and in which words."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from overspill.arguments import build_request
from overspill.errors import InvalidRequest
from overspill.types.chat import Grammar, Privacy


def build(**options):
    return build_request("x", app="test", floor=Privacy.DEVICE, **options)


class Invoice(BaseModel):
    """A class with a schema of its own."""

    total: int


class Unspeakable:
    """What JSON has no words for."""


SCHEMA = {"type": "object", "properties": {"total": {"type": "integer"}}}


def test_output_takes_a_schema_a_class_or_a_grammar():
    assert build(output=SCHEMA).json_schema == SCHEMA
    assert build(output=Invoice).json_schema == Invoice.model_json_schema()
    assert build(output=Grammar("regex", "a+")).grammar == Grammar("regex", "a+")
    assert build(output=Grammar("regex", "a+")).json_schema is None
    assert build(output=None).json_schema is None


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, SCHEMA),
    ],
)
def test_response_format_is_openais(form, schema):
    assert build(response_format=form).json_schema == schema


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"output": 3}, "output"),
        ({"output": Unspeakable}, "output"),
        ({"output": Grammar("regex", "\ud800")}, "output"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"output": SCHEMA, "response_format": {"type": "text"}}, "response_format"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"redact": "email"}, "redact"),
    ],
)
def test_what_means_nothing_is_refused_by_its_name(options, param):
    with pytest.raises(InvalidRequest) as caught:
        build(**options)
    assert caught.value.param == param


def test_tools_may_be_strict_and_single():
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}
    request = build(tools=[tool], parallel_tool_calls=False)
    assert request.tools[0].strict
    assert request.needs_constraint
    assert not build(tools=[{"name": "f"}]).needs_constraint
