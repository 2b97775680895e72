"""The SDK's own records as JSON: routes, plans, availability, receipts, progress.

What explains an answer grows from version to version. So it travels by field name: a reader passes
over what it does not know, and takes the default for what is missing.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from overspill.errors import InvalidRequest

_T = TypeVar("_T")


def to_json(record: Any) -> str:
    """A dataclass as one JSON object; bytes as base64, enumerations and paths as text."""
    return json.dumps(_plain(record), ensure_ascii=False, separators=(",", ":"))


def from_json(kind: type[_T], text: str) -> _T:
    """Inverse of :func:`to_json`. Raises ``InvalidRequest`` for what is no such record."""
    try:
        return _read(kind, json.loads(text))  # type: ignore[no-any-return]  # of the kind that was asked
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidRequest(f"What was told is no {kind.__name__}: {error}.") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(each) for name, each in found}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_optional(arguments, value)
    if origin is Literal or kind is Any:
        return value
    if origin is tuple:
        each = arguments[0] if arguments[-1] is Ellipsis else None
        pairs = ((each, v) for v in value) if each else zip(arguments, value, strict=True)
        return tuple(_read(one, v) for one, v in pairs)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {_read(arguments[0], k): _read(arguments[1], v) for k, v in value.items()}
    if origin is not None:
        raise TypeError(f"{kind} is not told")
    if dataclasses.is_dataclass(kind):
        return _read_record(kind, value)
    return _read_plain(kind, value)


def _read_optional(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None:
        return None
    (kind,) = (k for k in kinds if k is not NoneType)
    return _read(kind, value)


def _read_record(kind: Any, value: Mapping[str, Any]) -> Any:
    hints = _hints(kind)
    names = {f.name for f in dataclasses.fields(kind) if f.init} & value.keys()
    return kind(**{name: _read(hints[name], value[name]) for name in names})


def _read_plain(kind: type, value: Any) -> Any:
    if issubclass(kind, Enum) or kind is Path:
        return kind(value)
    if kind is bytes:
        return base64.b64decode(value, validate=True)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value
