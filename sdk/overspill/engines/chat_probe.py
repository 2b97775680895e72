"""Finds out what a chat template can express, by letting it write a few short conversations.

Templates drop what they don't know without a word, and write arguments as objects or as text; a
model's name tells neither. What is found here decides what is refused, and in which form the
model's tool calls are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from overspill.engines.dialects import Dialect, detect
from overspill.engines.reasoning import CLOSE, OPEN
from overspill.errors import InvalidRequest, ModelInvalid
from overspill.types.chat import Message, Tool, ToolCall

_NAME, _KEY, _VALUE = "probe_tool", "probe_key", "probe_value"
_TOOL = Tool(
    _NAME,
    "probe_about",
    {
        "type": "object",
        "properties": {_KEY: {"type": "string", "description": "probe_what"}},
        "required": [_KEY],
    },
)
_ASKED, _SYSTEM, _RESULT = "probe_question", "probe_system", "probe_result"
_USER = Message("user", _ASKED)


@dataclass(frozen=True, slots=True)
class RenderStyle:
    """Two choices that a template leaves to its caller without saying so."""

    arguments_as_text: bool = False
    tools_as_empty_list: bool = False


Render = Callable[[Sequence[Message], Sequence[Tool], RenderStyle], str]


@dataclass(frozen=True, slots=True)
class TemplateAbilities:
    """``dialect`` None: offered tools, or the model's calls, would be lost or misread.

    ``thinks``: answers may begin with ``<think>``; ``thinking_is_open``: prompts end with it.
    """

    system: bool = True
    tool_results: bool = False
    parallel_calls: bool = False
    dialect: Dialect | None = None
    style: RenderStyle = RenderStyle()
    thinks: bool = False
    thinking_is_open: bool = False


def probe(render: Render, source: str) -> TemplateAbilities:
    """Try a template out. ``render`` raises ``InvalidRequest`` or ``ModelInvalid`` as in use."""

    def attempt(
        messages: Sequence[Message], tools: Sequence[Tool] = (), style: RenderStyle = RenderStyle()
    ) -> str:
        try:
            return render(messages, tools, style)
        except (InvalidRequest, ModelInvalid):
            return ""

    plain = RenderStyle()
    if not attempt((_USER,)):
        plain = RenderStyle(tools_as_empty_list=True)
    prompt = attempt((_USER,), (), plain)
    system = _SYSTEM in attempt((Message("system", _SYSTEM), _USER), (), plain)
    style, dialect = _dialect(attempt, plain)
    thinks = CLOSE in source
    return TemplateAbilities(
        system=system,
        tool_results=_RESULT in attempt(_conversation(1), (_TOOL,), style),
        parallel_calls=attempt(_conversation(2), (_TOOL,), style).count(_VALUE) == 2,
        dialect=dialect,
        style=style,
        thinks=thinks,
        thinking_is_open=thinks and prompt.rstrip().endswith(OPEN),
    )


def _dialect(
    attempt: Callable[[Sequence[Message], Sequence[Tool], RenderStyle], str], plain: RenderStyle
) -> tuple[RenderStyle, Dialect | None]:
    for as_text in (False, True):
        style = RenderStyle(as_text, plain.tools_as_empty_list)
        written = attempt(_conversation(1), (_TOOL,), style)
        offered = _NAME in attempt((_USER,), (_TOOL,), style)
        # Behind the question stands the call, before the result; what is listed comes earlier.
        sample = written[written.rfind(_ASKED) :].split(_RESULT)[0]
        dialect = detect(sample, _NAME) if offered and _VALUE in sample else None
        # Arguments given as text come out quoted twice where a template wants an object.
        if dialect is not None and f'\\"{_KEY}' not in sample:
            return style, dialect
    return plain, None


def _conversation(calls: int) -> tuple[Message, ...]:
    made = tuple(ToolCall(f"probe000{i}", _NAME, f'{{"{_KEY}": "{_VALUE}"}}') for i in range(calls))
    results = tuple(Message("tool", _RESULT, tool_call_id=call.id, name=call.name) for call in made)
    return (_USER, Message("assistant", "", tool_calls=made), *results)
