"""Whether an answer is what was asked for: JSON of a schema, or calls of the tools that there are.

Knows the part of JSON Schema that tools and outputs are written in (types, required and further
properties, items, enumerations, alternatives, references into the same schema); what it does not
know it takes for met, so that it never throws away a valid answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from overspill.types.chat import Request, Tool, ToolCall

_MARKS = (
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<function=", "<|python_tag|>", "<|tool_call",
    "<｜tool▁call", "<tool_code>", "<function_call>",
)  # fmt: skip
"""What models write calls in: text that holds one is a call that nobody could read."""
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": (int, float),
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_MAX_DEPTH = 64


def answer_fault(request: Request, text: str, calls: Sequence[ToolCall]) -> str | None:
    """A stable code for what is wrong with a whole answer, or None."""
    for call in calls:
        if (fault := call_fault(call, request.tools)) is not None:
            return fault
    if calls:
        return None
    if request.offers_tools and any(mark in text for mark in _MARKS):
        return "malformed_call"
    if request.json_schema is not None:
        return json_fault(text, request.json_schema)
    return None if text.strip() else "empty_answer"


def call_fault(call: ToolCall, tools: Sequence[Tool]) -> str | None:
    """A stable code for what is wrong with a call, or None."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return "unknown_tool"
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return "malformed_call"
    if not isinstance(arguments, dict):
        return "malformed_call"
    return None if conforms(arguments, tool.parameters) else "invalid_arguments"


def json_fault(text: str, schema: Mapping[str, Any]) -> str | None:
    """A stable code for what is wrong with JSON text, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "invalid_json"
    return None if conforms(value, schema) else "not_the_schema"


def conforms(value: Any, schema: Any) -> bool:
    """Whether a JSON value meets what is known here of a schema."""
    return _conforms(value, schema, schema, _MAX_DEPTH)


def _conforms(value: Any, schema: Any, root: Any, depth: int) -> bool:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping) or depth == 0:
        return True
    if isinstance(reference := schema.get("$ref"), str):
        return _conforms(value, _resolve(reference, root), root, depth - 1)
    return (
        _is_allowed(value, schema)
        and _parts_conform(value, schema, root, depth - 1)
        and _members_conform(value, schema, root, depth - 1)
    )


def _is_allowed(value: Any, schema: Mapping[str, Any]) -> bool:
    """By ``const``, ``enum`` and ``type``."""
    if "const" in schema and value != schema["const"]:
        return False
    choices = schema.get("enum")
    if isinstance(choices, list) and value not in choices:
        return False
    return _has_type(value, schema.get("type"))


def _parts_conform(value: Any, schema: Mapping[str, Any], root: Any, depth: int) -> bool:
    """By ``anyOf``, ``oneOf`` (as if it were ``anyOf``) and ``allOf``."""
    for name, combine in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        parts = schema.get(name)
        met = (_conforms(value, one, root, depth) for one in parts or ())
        if isinstance(parts, list) and parts and not combine(met):
            return False
    return True


def _members_conform(value: Any, schema: Mapping[str, Any], root: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return _object_conforms(value, schema, root, depth)
    if isinstance(value, list) and "items" in schema:
        return all(_conforms(item, schema["items"], root, depth) for item in value)
    return True


def _object_conforms(
    value: Mapping[str, Any], schema: Mapping[str, Any], root: Any, depth: int
) -> bool:
    required = schema.get("required")
    if isinstance(required, list) and any(name not in value for name in required):
        return False
    found = schema.get("properties")
    properties: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    further = {} if "patternProperties" in schema else schema.get("additionalProperties", {})
    return all(
        _conforms(item, properties.get(name, further), root, depth) for name, item in value.items()
    )


def _has_type(value: Any, kinds: Any) -> bool:
    if kinds is None:
        return True
    names = kinds if isinstance(kinds, list) else [kinds]
    return any(_is(value, name) for name in names)


def _is(value: object, name: object) -> bool:
    wanted = _TYPES.get(name) if isinstance(name, str) else None
    if wanted is None:
        return True
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, wanted)


def _resolve(reference: str, root: Any) -> Any:
    """What ``#/$defs/Name`` points at; True, which everything meets, for what is not there."""
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            return True
        found = found[name]
    return found if reference.startswith("#") else True
