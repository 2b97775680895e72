"""JSON schemas that answers are held to: checked, and refused with the place that is wrong.

What llguidance cannot enforce is an error here and never ignored. It names no place, so the
deepest subschema that fails with the same words is looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from overspill.engines.constraint import need_llguidance, one_line
from overspill.errors import InvalidRequest, UnsupportedOption

WHITESPACE = r"( |\n[ \t]{0,20})?"
"""Between JSON's tokens: compact, spaced or indented, and no room for a weak model to stall in.
It is the ``space`` rule of llama.cpp's json-schema-to-grammar."""

MAX_SCHEMA_CHARS = 256 * 1024
_MAX_TRIES = 400
_SHOWN_PATH = 200
_DEFINITIONS = ("$defs", "definitions")
_MAPS = (*_DEFINITIONS, "properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else",
           "contains", "propertyNames", "unevaluatedProperties", "unevaluatedItems")  # fmt: skip


def schema_text(schema: Mapping[str, Any], where: str, *, param: str | None = None) -> str:
    """The schema as llguidance takes it, on one line.

    Raises :class:`UnsupportedOption` for a part that cannot be enforced and
    :class:`InvalidRequest` for one that no answer satisfies or that is no schema; both name
    ``param`` (by default ``where``) and the path, as in ``json_schema#/properties/a``.
    """
    param = param or where
    need_llguidance()
    try:
        text = _dump(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"'{where}' is no JSON: {error}.", param=param) from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise InvalidRequest(
            f"'{where}' is {len(text)} characters long (limit {MAX_SCHEMA_CHARS}).", param=param
        )
    if why := _problem(text):
        _refuse(schema, why, where, param)
    return text


def _refuse(schema: Mapping[str, Any], why: str, where: str, param: str) -> None:
    path = _deepest(schema, why)
    place = where + (path if len(path) <= _SHOWN_PATH else f"{path[:_SHOWN_PATH]}...")
    if why.startswith(("Unimplemented", "Unknown format")) or "not supported" in why:
        raise UnsupportedOption(
            f"{place}: {why}; it cannot be enforced.",
            param=param,
            mend="Leave it out and check the answer, or say it another way.",
        )
    raise InvalidRequest(f"{place}: {why}.", param=param)


def _dump(schema: Any) -> str:
    # x-guidance would let a schema switch the refusals off ("lenient").
    ours = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return json.dumps(ours, ensure_ascii=False, allow_nan=False)


def _problem(text: str) -> str:
    """What llguidance says against a schema; "" for one that it can enforce."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(text)
    is_error, said = LLMatcher.validate_grammar_with_warnings(grammar)
    return one_line(said[0]) if is_error else ""


def _deepest(schema: Mapping[str, Any], why: str) -> str:
    """JSON pointer of the deepest part that is refused with the same words."""
    definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
    path, node, tries = "#", schema, 0
    while True:
        for step, child in _parts(node):
            tries += 1
            if tries > _MAX_TRIES:
                return path
            if _problem(_dump({**definitions, **_without(child, definitions)})) == why:
                path, node = path + step, child
                definitions = {} if _is_definition(step) else definitions
                break
        else:
            return path


def _without(child: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in child.items() if key not in definitions}


def _is_definition(step: str) -> bool:
    return step.startswith(tuple(f"/{name}/" for name in _DEFINITIONS))


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Pointer steps and subschemas, one level down."""
    for key in _MAPS:
        inner = schema.get(key)
        for name, part in inner.items() if isinstance(inner, Mapping) else ():
            if isinstance(part, Mapping):
                yield f"/{key}/{_escape(str(name))}", part
    for key in _LISTS:
        inner = schema.get(key)
        for index, part in enumerate(inner if isinstance(inner, list | tuple) else ()):
            if isinstance(part, Mapping):
                yield f"/{key}/{index}", part
    for key in _SINGLE:
        part = schema.get(key)
        if isinstance(part, Mapping):
            yield f"/{key}", part


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
