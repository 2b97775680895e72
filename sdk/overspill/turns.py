"""Turns and tools as an app says them, to the frozen ones of a request.

Anything that has no meaning raises ``InvalidRequest`` and names the parameter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

from overspill.content import read_content
from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.types.chat import Message, Role, Tool, ToolCall

Messages = str | Sequence[Message | Mapping[str, Any]]
"""A prompt, or turns as :class:`Message` or as OpenAI's dictionaries."""


def check_text(text: object, param: str) -> str:
    """The text. Raises ``InvalidRequest`` for what is none, or cannot be written as UTF-8."""
    if not isinstance(text, str):
        raise InvalidRequest(
            f"'{param}' holds what is no text, but of the type {type(text).__name__}.", param=param
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"'{param}' holds what is no text: a lone surrogate.",
            param=param,
            mend="Decode the bytes that it came from as UTF-8.",
        ) from None
    return text


def check_json(value: Mapping[str, Any], what: str, param: str) -> None:
    """Raise ``InvalidRequest`` for what JSON has no words for; ``what`` names it."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not JSON: {error}.", param=param) from None
    check_text(text, param)


def turns_of(messages: Messages) -> tuple[Message, ...]:
    """The turns, in order."""
    if isinstance(messages, str):
        return (Message("user", check_text(messages, "messages")),)
    if isinstance(messages, bytes | Mapping) or not isinstance(messages, Iterable):
        raise InvalidRequest(
            f"'messages' is of the type {type(messages).__name__}.",
            param="messages",
            mend="Give a prompt, or a list of turns.",
        )
    return tuple(_checked(m if isinstance(m, Message) else message_from_dict(m)) for m in messages)


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
        tool_calls=_tool_calls(raw.get("tool_calls")),
        tool_call_id=raw.get("tool_call_id"),
        name=raw.get("name"),
    )


def _checked(message: Message) -> Message:
    """The turn, whose every text is text: types that an app got wrong show here, by name."""
    check_text(message.content, "messages")
    for text in (message.name, message.tool_call_id):
        check_text("" if text is None else text, "messages")
    for call in message.tool_calls:
        for text in (call.id, call.name, call.arguments):
            check_text(text, "messages")
    return message


def _tool_calls(raw: object) -> tuple[ToolCall, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list | tuple):
        raise InvalidRequest("A message's tool_calls are no list.", param="messages")
    return tuple(_tool_call(call) for call in raw)


def _tool_call(raw: object) -> ToolCall:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(function, Mapping):
        raise InvalidRequest(
            "A tool call has no function.", param="messages", mend="Give id, name and arguments."
        )
    for key in ("name", "arguments"):
        if not isinstance(function.get(key), str):
            raise InvalidRequest(
                f"A tool call has no '{key}' that is text.",
                param="messages",
                mend="Give id, name and arguments; the arguments are JSON text.",
            )
    return ToolCall(raw.get("id") or "", function["name"], function["arguments"])


def tool_of(raw: Tool | Mapping[str, Any]) -> Tool:
    """A tool from OpenAI's dictionary, or the function part of one."""
    if isinstance(raw, Tool):
        return _checked_tool(raw)
    if not isinstance(raw, Mapping):
        raise InvalidRequest("A tool is neither a Tool nor a dictionary.", param="tools")
    function = raw.get("function", raw)
    if raw.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise UnsupportedOption("Only function tools are supported.", param="tools")
    about, strict = str(function.get("description") or ""), function.get("strict")
    name, parameters = function.get("name"), function.get("parameters") or {}
    return _checked_tool(Tool(cast(str, name), about, parameters, strict is True))


def _checked_tool(tool: Tool) -> Tool:
    if not isinstance(tool.name, str) or not tool.name:
        raise InvalidRequest("A tool has no name.", param="tools", mend="Name it.")
    for text in (tool.name, tool.description):
        check_text(text, "tools")
    if not isinstance(tool.parameters, Mapping):
        raise InvalidRequest(
            f"The parameters of the tool '{tool.name}' are no object.",
            param="tools",
            mend="Give a JSON schema with the type 'object'.",
        )
    check_json(tool.parameters, f"What the tool '{tool.name}' says of its parameters", "tools")
    return tool
