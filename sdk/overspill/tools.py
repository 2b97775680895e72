"""Python functions as tools: their schema by signature and docstring, their arguments checked.

Pydantic reads the type hints (extra ``typed``); a :class:`Tool` with a schema of its own and a
function beside it needs nothing.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from overspill.errors import InvalidRequest, MissingExtra
from overspill.turns import tool_of
from overspill.types.chat import Tool

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PARAMETER = re.compile(r"^\s*(?::param\s+)?(\w+)\s*(?:\([^)]*\))?\s*:\s*(\S.*)$")
_UNBOUND = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


class BadArguments(ValueError):
    """What a model wrote is no call of the function; the text is for the model."""


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A tool as the model sees it, and the function (plain or async) that does it.

    ``read`` turns the arguments' JSON text into the function's keyword arguments; raises
    ``BadArguments``.
    """

    tool: Tool
    function: Callable[..., Any]
    read: Callable[[str], dict[str, Any]]


ToolArgument = Callable[..., Any] | BoundTool | Tool | Mapping[str, Any]
"""What ``run(tools=[...])`` takes: a function, one with its description, or a description without
a function, whose calls are the caller's to make."""


def tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> BoundTool:
    """A function as a tool, with what its signature and docstring do not say, or say otherwise.

    With ``parameters``, a JSON schema, its type hints are not looked at. Raises ``InvalidRequest``
    for a function whose parameters have no place in JSON, ``MissingExtra`` without pydantic.
    """
    name = name or str(getattr(function, "__name__", ""))
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"A tool cannot be called '{name[:80]}'.",
            param="tools",
            mend="Name it with tool(function, name=...): letters, digits, - and _.",
        )
    about, of_parameters = _described(inspect.getdoc(function) or "")
    about = about if description is None else description
    if parameters is not None:
        return BoundTool(Tool(name, about, parameters, strict), function, _plain_reader(function))
    schema, read = _by_signature(function, name, of_parameters)
    return BoundTool(Tool(name, about, schema, strict), function, read)


def bound(given: Sequence[ToolArgument]) -> tuple[list[Tool], dict[str, BoundTool]]:
    """The tools as a request takes them, and those that have a function by name.

    Raises ``InvalidRequest`` for two of one name.
    """
    tools: list[Tool] = []
    functions: dict[str, BoundTool] = {}
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidRequest(
            f"'tools' is of the type {type(given).__name__}.",
            param="tools",
            mend="Give a list of functions.",
        )
    for one in given:
        if isinstance(one, Tool | Mapping):
            tools.append(tool_of(one))
            continue
        found = one if isinstance(one, BoundTool) else tool(one)
        tools.append(found.tool)
        functions[found.tool.name] = found
    names = [t.name for t in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(
            f"Two tools are called '{twice}'.", param="tools", mend="Name one otherwise."
        )
    return tools, functions


def _described(docstring: str) -> tuple[str, dict[str, str]]:
    """What comes before the parameters (Google's or Sphinx's way), and each one's description."""
    lines = docstring.splitlines()
    at = next(
        (n for n, text in enumerate(lines) if re.match(r"\s*(Args:|Arguments:|:param\s)", text)),
        len(lines),
    )
    found = {}
    for text in lines[at:]:
        if re.match(r"\s*(Returns?|Raises|Yields):", text):
            break
        if match := _PARAMETER.match(text):
            found[match[1]] = match[2].strip()
    return "\n".join(lines[:at]).strip(), found


def _by_signature(
    function: Callable[..., Any], name: str, described: Mapping[str, str]
) -> tuple[Mapping[str, Any], Callable[[str], dict[str, Any]]]:
    """The parameters' schema, and what reads a call's arguments by it."""
    try:
        from pydantic import ConfigDict, Field, ValidationError, create_model
    except ModuleNotFoundError:
        raise MissingExtra("A Python function as a tool", "typed") from None
    parameters = _parameters(function, name)
    # By alias: a parameter may be called as a model's own method is, or begin with an underscore.
    fields: dict[str, Any] = {
        f"p{index}": (
            kind,
            Field(default, alias=parameter, title=parameter, description=described.get(parameter)),
        )
        for index, (parameter, kind, default) in enumerate(parameters)
    }
    try:
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = model.model_json_schema(by_alias=True)
    except Exception as error:  # pydantic's errors about types are of several roots
        raise InvalidRequest(
            f"The tool '{name}' has a parameter that JSON cannot say: "
            f"{(str(error).splitlines() or [''])[0]}",
            param="tools",
            mend="Annotate it with a type of JSON values, or give tool(..., parameters=SCHEMA).",
        ) from error
    schema.pop("title", None)
    for described_field in schema.get("properties", {}).values():
        described_field.pop("title", None)

    def read(arguments: str) -> dict[str, Any]:
        try:
            values = model.model_validate_json(arguments or "{}")
        except ValidationError as error:
            raise BadArguments(_what_is_wrong(error)) from error
        given = {info.alias: key for key, info in model.model_fields.items()}
        return {str(alias): getattr(values, key) for alias, key in given.items()}

    return schema, read


def _parameters(function: Callable[..., Any], name: str) -> list[tuple[str, Any, Any]]:
    """(name, type, default; ``...`` for none) of each parameter."""
    try:
        hints = get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"The tool '{name}' has a signature that cannot be read: {error}.", param="tools"
        ) from error
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind in _UNBOUND:
            raise InvalidRequest(
                f"The tool '{name}' has the parameter '{parameter}', which cannot be named.",
                param="tools",
                mend="Give it parameters with names.",
            )
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        found.append((parameter.name, hints.get(parameter.name, Any), default))
    return found


def _plain_reader(function: Callable[..., Any]) -> Callable[[str], dict[str, Any]]:
    """For a schema of the caller's own: a JSON object whose keys the function takes."""

    def read(arguments: str) -> dict[str, Any]:
        try:
            given = json.loads(arguments or "{}")
        except ValueError as error:
            raise BadArguments(f"The arguments are no JSON: {error}.") from error
        if not isinstance(given, dict):
            raise BadArguments("The arguments are no JSON object.")
        try:
            inspect.signature(function).bind(**given)
        except TypeError as error:
            raise BadArguments(f"The arguments do not fit: {error}.") from error
        return given

    return read


def _what_is_wrong(error: Any) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in found)
