"""``output=``: from a type to the JSON schema that an answer is held to, and back to a value.

Pydantic does both for its own models, dataclasses, ``TypedDict`` and everything else that type
hints can say; it comes with the extra ``typed``. A JSON schema needs nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache, reduce
from operator import or_
from types import GenericAlias, UnionType
from typing import (
    Any,
    NotRequired,
    Required,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from overspill.errors import InvalidRequest, MissingExtra, OutputInvalid
from overspill.types.chat import Grammar
from overspill.types.reply import Reply, ReplyChunk, TypedReply

Reader = Callable[[str], Any]
"""From an answer's text to the value; raises ``OutputInvalid``, with the text in ``partial``."""


def is_type(output: object) -> bool:
    """Whether it is a type, or one with arguments such as ``list[int]``."""
    return isinstance(output, type | GenericAlias) or get_origin(output) is not None


def schema_of(output: Any) -> Mapping[str, Any]:
    """The JSON schema of a type. Raises ``InvalidRequest`` for one that JSON cannot say, and
    ``MissingExtra`` where a type needs pydantic."""
    own = getattr(output, "model_json_schema", None)
    if isinstance(output, type) and callable(own):
        schema: Mapping[str, Any] = own()
        return schema
    adapter = _adapter(output)
    try:
        found: Mapping[str, Any] = adapter.json_schema()
    except Exception as error:  # pydantic's errors about types are of several roots
        raise _no_schema(output, error) from error
    return found


def reader_of(output: Any) -> Reader | None:
    """What reads an answer; None where ``output`` asks for text (a grammar, or nothing)."""
    if output is None or isinstance(output, Grammar):
        return None
    if isinstance(output, Mapping):
        return lambda text: _read(text, json.loads, "JSON")
    own = getattr(output, "model_validate_json", None)
    validate = own if callable(own) else _adapter(output).validate_json
    name = getattr(output, "__name__", str(output))
    return lambda text: _read(text, validate, name)


def partial_of(text: str) -> Any:
    """What a JSON text that is still being written says so far: complete members, and the last
    string up to where it is. None before anything can be told, and without the extra ``typed``."""
    try:
        from pydantic_core import from_json
    except ModuleNotFoundError:
        return None
    try:
        return from_json(text, allow_partial="trailing-strings")
    except ValueError:  # "tru", say
        return None


def read_reply(reply: Reply, read: Reader | None) -> Reply:
    """The reply with its text as a value, where that was asked for and there is a text."""
    if read is None:
        return reply
    value = None if reply.tool_calls and not reply.text else read(reply.text)
    return TypedReply(**fields_of(reply), output=value)


def read_chunk(chunk: ReplyChunk, said: str, read: Reader) -> ReplyChunk:
    """With the value that was asked for, at the end; before it with what there is of one."""
    if chunk.finish is not None:
        return replace(chunk, output=read(said))
    return replace(chunk, partial=partial_of(said)) if chunk.text else chunk


def fields_of(reply: Reply) -> dict[str, Any]:
    """A reply's fields, as they are: what another kind of reply is made from."""
    return {field.name: getattr(reply, field.name) for field in fields(reply)}


def _read(text: str, validate: Callable[[str], Any], name: str) -> Any:
    try:
        return validate(text)
    # ValueError is what json and pydantic raise; a model's own validators may raise others.
    except Exception as error:
        raise OutputInvalid(
            f"The answer is no {name}: {_first_line(error)}",
            mend="Ask again, or allow more max_tokens; the text is in the error's 'partial'.",
            partial=text,
        ) from error


def _first_line(error: Exception) -> str:
    """What is wrong, without pydantic's echo of the input."""
    listed = getattr(error, "errors", None)
    if callable(listed):
        found = listed(include_url=False, include_context=False, include_input=False)
        first = found[0]
        where = ".".join(map(str, first["loc"]))
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{where + ': ' if where else ''}{first['msg']}{more}."
    return f"{str(error).splitlines()[0] if str(error) else type(error).__name__}."


@lru_cache(maxsize=256)
def _cached_adapter(output: Any) -> Any:
    try:
        from pydantic import TypeAdapter
    except ModuleNotFoundError:
        raise MissingExtra("Output of a Python type", "typed") from None
    try:
        return TypeAdapter(_portable(output))
    except Exception as error:  # as above
        raise _no_schema(output, error) from error


def _portable(kind: Any) -> Any:
    """Before Python 3.12 pydantic reads ``typing_extensions``' typed dictionaries alone, since
    :mod:`typing`'s own did not yet tell all that it needs: so they are made again as such."""
    if sys.version_info >= (3, 12):
        return kind
    import typing_extensions

    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        made: Any = typing_extensions.TypedDict  # to be called with what only run time knows
        return made(kind.__name__, {n: _key(kind, n, hint) for n, hint in hints.items()})
    arguments = tuple(_portable(argument) for argument in get_args(kind))
    if arguments == get_args(kind):
        return kind
    if get_origin(kind) is UnionType:
        return reduce(or_, arguments)
    return get_origin(kind)[arguments]


def _key(kind: Any, name: str, hint: Any) -> Any:
    bare = get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint
    found = _portable(bare)
    return found if name in kind.__required_keys__ else NotRequired[found]


def _adapter(output: Any) -> Any:
    try:
        return _cached_adapter(output)
    except TypeError:  # unhashable: Annotated with a list in it, say
        return _cached_adapter.__wrapped__(output)


def _no_schema(output: Any, error: Exception) -> InvalidRequest:
    name = getattr(output, "__name__", str(output))
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InvalidRequest(
        f"'output' is {name:.80}, which is no type of JSON values: {reason}",
        param="output",
        mend="Give a pydantic model, a dataclass, a TypedDict or a JSON schema.",
    )
