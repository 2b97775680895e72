"""From what an app passes to one frozen :class:`~overspill.types.chat.Request`.

Anything that has no meaning raises ``InvalidRequest`` and names the parameter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict, Unpack, cast, get_args

from overspill.content import read_content
from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.typed import is_type, schema_of
from overspill.types.chat import (
    Grammar,
    Message,
    Privacy,
    Request,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from overspill.types.embedding import EmbedRequest, Pooling

Messages = str | Sequence[Message | Mapping[str, Any]]
"""A prompt, or turns as :class:`Message` or as OpenAI's dictionaries."""


class RunOptions(TypedDict, total=False):
    """What a run of tools may set beside them; each name as in :class:`Request` and
    :class:`Sampling`."""

    model: str | None
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repeat_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    response_format: Mapping[str, Any] | None
    top_logprobs: int | None
    privacy: Privacy | str
    deadline_s: float | None
    first_token_s: float | None
    adapter: str | None
    draft: str
    redact: bool


class CallOptions(RunOptions, total=False):
    """What a call may set beside ``output``."""

    tools: Sequence[Tool | Mapping[str, Any]]


class Options(CallOptions, total=False):
    """All that a call may set. ``output`` is what the answer is read as: a type, a JSON schema, or
    a grammar, which leaves it text."""

    output: Any


_KNOWN = (*RunOptions.__annotations__, "tools", "output")
_SAMPLING = frozenset(f.name for f in fields(Sampling))
_INT32, _INT64 = 2**31 - 1, 2**63
_IN_WORDS = {str: "text", int: "a whole number", (int, float): "a number"}
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("model", "adapter", "draft"), str),
    **dict.fromkeys(("max_tokens", "top_k", "seed", "top_logprobs"), int),
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repeat_penalty",
            "deadline_s",
            "first_token_s",
        ),
        (int, float),
    ),
}
_OPTIONAL = frozenset(
    {"model", "max_tokens", "seed", "top_logprobs", "deadline_s", "first_token_s", "adapter"}
)
_PASSED_ON = frozenset(
    {"model", "max_tokens", "top_logprobs", "deadline_s", "first_token_s", "adapter", "draft"}
    | {"redact"}
)


def build_embedding(
    texts: str | Sequence[str],
    *,
    app: str,
    pooling: Pooling,
    normalize: bool,
    dimensions: int | None,
) -> EmbedRequest:
    """The request for embeddings; raises ``InvalidRequest`` for what is no text."""
    found = (texts,) if isinstance(texts, str) else tuple(texts)
    if not all(isinstance(text, str) for text in found):
        raise InvalidRequest("'texts' holds what is no text.", param="texts")
    return EmbedRequest(found, app=app, pooling=pooling, normalize=normalize, dimensions=dimensions)


def build_request(
    messages: Messages, *, app: str, floor: Privacy, **options: Unpack[Options]
) -> Request:
    """One request. ``floor`` is the session's; an option may only raise it."""
    given: dict[str, Any] = {k: v for k, v in options.items() if k in _PASSED_ON}
    unknown = options.keys() - set(_KNOWN)
    if unknown:
        raise InvalidRequest(
            f"Unknown option '{min(unknown)}'.",
            param=min(unknown),
            mend=f"Known: {', '.join(_KNOWN)}.",
        )
    _check_types(options)
    tool_choice, tool_name = _tool_choice(options.get("tool_choice", "auto"))
    json_schema, grammar = _output(options.get("output"), options.get("response_format"))
    stop = options.get("stop", ())
    request = Request(
        messages=_messages(messages),
        app=app,
        cache_scope="app",
        sampling=Sampling(**{k: v for k, v in options.items() if k in _SAMPLING}),  # type: ignore[arg-type]  # narrowed by _SAMPLING
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        tools=tuple(tool_of(t) for t in options.get("tools", ())),
        tool_choice=tool_choice,
        tool_name=tool_name,
        json_schema=json_schema,
        grammar=grammar,
        parallel_tool_calls=options.get("parallel_tool_calls", True),
        privacy=floor.tightened_by(_privacy(options.get("privacy", floor))),
        **given,
    )
    check_ranges(request)
    return request


def _check_types(options: Mapping[str, Any]) -> None:
    """Raise ``InvalidRequest`` for a value of a type that the option cannot have."""
    for name, value in options.items():
        wanted = _TYPES.get(name)
        if value is None and name in _OPTIONAL:
            continue
        # bool is an int to Python, and `max_tokens=True` is a mistake.
        if wanted and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise InvalidRequest(
                f"'{name}' is {value!r:.80}.", param=name, mend=f"Give {_IN_WORDS[wanted]}."
            )
    for name in ("parallel_tool_calls", "redact"):
        if not isinstance(options.get(name, True), bool):
            raise InvalidRequest(f"'{name}' is no truth value.", param=name)
    for name in ("model", "adapter", "draft"):
        _check_text(str(options.get(name) or ""), name)
    for text in _texts(options.get("stop", ())):
        _check_text(text, "stop")


def _texts(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    texts = tuple(stop) if isinstance(stop, Iterable) else (stop,)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("'stop' holds something that is no text.", param="stop")
    return texts


def _check_text(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"'{param}' holds what is no text: a lone surrogate.",
            param=param,
            mend="Decode the bytes that it came from as UTF-8.",
        ) from None


def check_ranges(request: Request) -> None:
    """Raise ``InvalidRequest`` for numbers that no engine could honour."""
    s = request.sampling
    checks: tuple[tuple[str, bool, str], ...] = (
        ("temperature", 0 <= s.temperature <= 2, "between 0 and 2"),
        ("top_p", 0 < s.top_p <= 1, "above 0 and at most 1"),
        ("min_p", 0 <= s.min_p <= 1, "between 0 and 1"),
        ("top_k", 0 <= s.top_k <= _INT32, "0 or more, and less than 2^31"),
        ("seed", s.seed is None or -_INT64 <= s.seed < _INT64, "a 64-bit integer"),
        ("presence_penalty", -2 <= s.presence_penalty <= 2, "between -2 and 2"),
        ("frequency_penalty", -2 <= s.frequency_penalty <= 2, "between -2 and 2"),
        ("repeat_penalty", s.repeat_penalty > 0, "above 0"),
        (
            "max_tokens",
            request.max_tokens is None or 1 <= request.max_tokens <= _INT32,
            "1 or more, and less than 2^31",
        ),
        ("top_logprobs", request.top_logprobs is None or 0 <= request.top_logprobs <= 20, "0-20"),
        ("deadline_s", request.deadline_s is None or request.deadline_s > 0, "above 0"),
        ("first_token_s", request.first_token_s is None or request.first_token_s > 0, "above 0"),
        ("stop", all(request.stop) and len(request.stop) <= 16, "up to 16 non-empty strings"),
    )
    for name, ok, allowed in checks:
        if not ok:
            raise InvalidRequest(f"'{name}' is out of range.", param=name, mend=f"Use {allowed}.")


def _messages(messages: Messages) -> tuple[Message, ...]:
    if isinstance(messages, str):
        turns: tuple[Message, ...] = (Message("user", messages),)
    elif isinstance(messages, bytes) or not isinstance(messages, Iterable):
        raise InvalidRequest(
            f"'messages' is of the type {type(messages).__name__}.",
            param="messages",
            mend="Give a prompt, or a list of turns.",
        )
    else:
        turns = tuple(m if isinstance(m, Message) else message_from_dict(m) for m in messages)
    for turn in turns:
        _check_text(turn.content, "messages")
    return turns


def message_from_dict(raw: Mapping[str, Any]) -> Message:
    """One turn from OpenAI's dictionary; text parts are joined, images are kept."""
    if not isinstance(raw, Mapping):
        raise InvalidRequest(
            f"A message is of the type {type(raw).__name__}.",
            param="messages",
            mend="Give a Message, or a dictionary with role and content.",
        )
    role = raw.get("role")
    if role == "developer":
        role = "system"
    if role not in get_args(Role):
        raise InvalidRequest(
            f"A message has the role {role!r}.",
            param="messages",
            mend=f"Use one of: {', '.join(get_args(Role))}.",
        )
    content, images = read_content(raw.get("content"))
    return Message(
        role=cast(Role, role),
        content=content,
        images=images,
        tool_calls=tuple(_tool_call(c) for c in raw.get("tool_calls") or ()),
        tool_call_id=raw.get("tool_call_id"),
        name=raw.get("name"),
    )


def _tool_call(raw: Mapping[str, Any]) -> ToolCall:
    try:
        function = raw["function"]
        return ToolCall(str(raw.get("id", "")), str(function["name"]), str(function["arguments"]))
    except (KeyError, TypeError) as error:
        raise InvalidRequest(
            f"A tool call lacks {error}.", param="messages", mend="Give id, name and arguments."
        ) from None


def tool_of(raw: Tool | Mapping[str, Any]) -> Tool:
    """A tool from OpenAI's dictionary, or the function part of one."""
    if isinstance(raw, Tool):
        return raw
    if not isinstance(raw, Mapping):
        raise InvalidRequest("A tool is neither a Tool nor a dictionary.", param="tools")
    function = raw.get("function", raw)
    if raw.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise UnsupportedOption("Only function tools are supported.", param="tools")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidRequest("A tool has no name.", param="tools", mend="Name it.")
    parameters = function.get("parameters") or {}
    try:
        json.dumps(parameters)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"The tool '{function['name']}' has parameters that are not JSON: {error}.",
            param="tools",
        ) from None
    about, strict = str(function.get("description") or ""), function.get("strict")
    return Tool(function["name"], about, parameters, strict is True)


def _output(output: Any, response_format: Any) -> tuple[Mapping[str, Any] | None, Grammar | None]:
    """What the answer's text is held to: a schema or a grammar, or neither."""
    if output is not None and response_format is not None:
        raise InvalidRequest(
            "'output' and 'response_format' say the same thing.",
            param="response_format",
            mend="Give one of them.",
        )
    if response_format is not None:
        return _response_schema(response_format), None
    if isinstance(output, Grammar):
        _check_text(output.text, "output")
        return None, output
    if output is None or isinstance(output, Mapping):
        return output, None
    if is_type(output):
        return schema_of(output), None
    raise InvalidRequest(
        f"'output' is of the type {type(output).__name__}.",
        param="output",
        mend="Give a pydantic model, a dataclass, a TypedDict, a JSON schema or a Grammar.",
    )


def _response_schema(form: Any) -> Mapping[str, Any] | None:
    """The schema of OpenAI's ``response_format``."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    named = form.get("json_schema") if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        raise InvalidRequest(
            "'response_format' is none of the known forms.",
            param="response_format",
            mend='Use {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, '
            '{"type": "json_object"} or {"type": "text"}.',
        )
    return schema


def _tool_choice(choice: str | Mapping[str, Any]) -> tuple[ToolChoice, str | None]:
    if isinstance(choice, Mapping):
        name = choice.get("function", choice).get("name")
        if not isinstance(name, str):
            raise InvalidRequest("'tool_choice' names no function.", param="tool_choice")
        return "required", name
    if choice not in get_args(ToolChoice):
        raise InvalidRequest(
            f"'tool_choice' is {choice!r}.",
            param="tool_choice",
            mend="Use auto, none, required or a named function.",
        )
    return cast(ToolChoice, choice), None


def _privacy(value: Privacy | str) -> Privacy:
    try:
        return Privacy(value)
    except ValueError:
        raise InvalidRequest(
            f"'privacy' is {value!r}.", param="privacy", mend="Use device, attested or any."
        ) from None
