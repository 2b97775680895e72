"""overspill: language models that run where the user is and spill over into a proven cloud.

    from overspill import Overspill

    with Overspill(app="notes") as ai:
        print(ai.chat("Sort: 3, 1, 2").text)

Public names are loaded when they are first used: importing the package loads no third-party
package and no engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from overspill._version import __version__

if TYPE_CHECKING:
    from overspill.checkup import SelfTest
    from overspill.client import AsyncOverspill
    from overspill.config import Settings, load_settings
    from overspill.errors import OverspillError
    from overspill.freeze import freeze_support
    from overspill.openai_access import OpenAIAccess
    from overspill.receipts import verify_receipt
    from overspill.sync import Overspill, selftest
    from overspill.tools import BoundTool, tool
    from overspill.types.card import ModelCard
    from overspill.types.chat import Grammar, Message, Privacy, Request, Sampling, Tool, ToolCall
    from overspill.types.embedding import Embedding, EmbedReply
    from overspill.types.reply import (
        Availability,
        ReceiptRecord,
        Reply,
        ReplyChunk,
        RunReply,
        Step,
        ToolResult,
        TypedReply,
    )
    from overspill.types.route import Grant, Plan, Route, RouteDecision, RouteReason, RouteTaken

_HOMES = {
    "AsyncOverspill": "client",
    "Availability": "types.reply",
    "BoundTool": "tools",
    "EmbedReply": "types.embedding",
    "Embedding": "types.embedding",
    "Grammar": "types.chat",
    "Grant": "types.route",
    "Message": "types.chat",
    "ModelCard": "types.card",
    "OpenAIAccess": "openai_access",
    "Overspill": "sync",
    "OverspillError": "errors",
    "Plan": "types.route",
    "Privacy": "types.chat",
    "ReceiptRecord": "types.reply",
    "Reply": "types.reply",
    "ReplyChunk": "types.reply",
    "Request": "types.chat",
    "Route": "types.route",
    "RouteDecision": "types.route",
    "RouteReason": "types.route",
    "RouteTaken": "types.route",
    "RunReply": "types.reply",
    "Sampling": "types.chat",
    "SelfTest": "checkup",
    "Settings": "config",
    "Step": "types.reply",
    "Tool": "types.chat",
    "ToolCall": "types.chat",
    "ToolResult": "types.reply",
    "TypedReply": "types.reply",
    "freeze_support": "freeze",
    "load_settings": "config",
    "selftest": "sync",
    "tool": "tools",
    "verify_receipt": "receipts",
}

__all__ = [
    "AsyncOverspill",
    "Availability",
    "BoundTool",
    "EmbedReply",
    "Embedding",
    "Grammar",
    "Grant",
    "Message",
    "ModelCard",
    "OpenAIAccess",
    "Overspill",
    "OverspillError",
    "Plan",
    "Privacy",
    "ReceiptRecord",
    "Reply",
    "ReplyChunk",
    "Request",
    "Route",
    "RouteDecision",
    "RouteReason",
    "RouteTaken",
    "RunReply",
    "Sampling",
    "SelfTest",
    "Settings",
    "Step",
    "Tool",
    "ToolCall",
    "ToolResult",
    "TypedReply",
    "__version__",
    "freeze_support",
    "load_settings",
    "selftest",
    "tool",
    "verify_receipt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'overspill' has no attribute {name!r}")
    value = getattr(import_module(f"overspill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
