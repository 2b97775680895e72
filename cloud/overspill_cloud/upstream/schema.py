"""Which JSON schemas an upstream can be trusted to hold an answer to.

llama-server turns a schema into a grammar and passes over what it has no rule for; so only
keywords that all of them enforce are let through, and the rest is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from overspill.errors import UnsupportedOption

_SCHEMAS_BY_NAME: Final = frozenset({"properties", "$defs", "definitions"})
_SCHEMAS: Final = frozenset({"anyOf", "prefixItems"})
_SCHEMA: Final = frozenset({"items", "additionalProperties"})
_PLAIN: Final = frozenset(
    {
        "type", "required", "enum", "const", "minItems", "maxItems", "minLength", "maxLength",
        "$ref", "title", "description", "default", "examples", "$schema", "$id", "$comment",
    }
)  # fmt: skip


def check_schema(schema: Mapping[str, Any], who: str, param: str) -> None:
    """Raises ``UnsupportedOption`` naming the first keyword that is not held to everywhere."""
    for keyword in _unknown(schema):
        raise UnsupportedOption(
            f"{who} does not hold an answer to the schema's '{keyword}'.",
            param=param,
            mend="Leave it out of the schema and check the answer, or use another model.",
        )


def _unknown(schema: Any) -> Iterator[str]:
    if not isinstance(schema, Mapping):
        return  # true and false are schemas too
    for keyword, value in schema.items():
        if keyword in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            inner = list(value.values())
        elif keyword in _SCHEMAS and isinstance(value, list):
            inner = value
        elif keyword in _SCHEMA:
            inner = [value]
        elif keyword in _PLAIN:
            inner = []
        else:
            yield keyword
            continue
        for one in inner:
            yield from _unknown(one)
