"""Tool calls, which requests tell of and answers make."""

from __future__ import annotations

from collections.abc import Iterable

from overspill.types.chat import ToolCall
from overspill.wire.v1 import chat_pb2


def tool_call_to_proto(call: ToolCall) -> chat_pb2.ToolCall:
    """Encode a complete call."""
    return chat_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments)


def tool_calls_from_proto(messages: Iterable[chat_pb2.ToolCall]) -> tuple[ToolCall, ...]:
    """Decode complete calls."""
    return tuple(ToolCall(m.id, m.name, m.arguments) for m in messages)
