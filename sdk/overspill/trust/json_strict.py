"""Strict JSON for what others signed: no duplicate keys, no NaN, no depth without end."""

from __future__ import annotations

import json
from typing import Any, Final

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected

MAX_BYTES: Final = 1 << 20


def loads(data: bytes, *, step: str) -> Any:
    """The value of a JSON document. Raises ``EvidenceRejected("json_malformed")``."""
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_BYTES} are read", step)
    try:
        return parse(data)
    except (ValueError, RecursionError) as error:
        raise _malformed(type(error).__name__, step) from error


def parse(data: bytes) -> Any:
    """The same for who names refusals in another way: ``ValueError`` or ``RecursionError``."""
    return json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_unique,
        parse_constant=_no_constant,
        parse_int=_short_int,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that occurs twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _short_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number of more than 64 bits")
    return int(text)


def _malformed(what: str, step: str) -> EvidenceRejected:
    return rejected("json_malformed", step, expected="strict JSON in UTF-8", actual=what)
