"""From messages to a prompt, by the model's own jinja2 template.

A model file is untrusted input, so its template runs in jinja2's immutable sandbox with a budget
of loop steps and of output. That stops loops and floods; a template that eats memory some other
way is held by the worker process.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from overspill.engines.chat_probe import RenderStyle, TemplateAbilities, probe
from overspill.errors import InvalidRequest, ModelInvalid, UnsupportedOption
from overspill.types.chat import Message, Tool

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_STEPS = 200_000
MAX_PROMPT_CHARS = 16 * 1024 * 1024
_TICK = "__overspill_tick__"
_FAIL = "raise_exception"


class _TemplateRefusal(Exception):
    """The template itself refused the messages by ``raise_exception``."""


class _BudgetSpent(Exception):
    """The template ran for too many steps or wrote too much."""


class _Given(list[Any]):
    """A list that a template may read only."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with growing operators bounded.

    A template's own lists may grow and shrink at their end: Kimi K2's keeps its calls' ids so.
    """

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) or (
            type(obj) is list and attr in ("append", "pop")
        )

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**":
            raise _BudgetSpent
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                sized = isinstance(text, str | bytes | list | tuple)
                if sized and isinstance(times, int) and len(text) * times > MAX_PROMPT_CHARS:
                    raise _BudgetSpent
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled chat template.

    ``source`` None is a model without one: it continues the text of a single user message, and
    refuses everything else. Raises :class:`ModelInvalid` for a template that doesn't compile.
    """

    def __init__(
        self, source: str | None, *, model: str, bos_text: str = "", eos_text: str = ""
    ) -> None:
        self._model = model
        self._texts = {"bos_token": bos_text, "eos_token": eos_text}
        self._source = source
        self._template = None if source is None else self._compile(source)

    @functools.cached_property
    def abilities(self) -> TemplateAbilities:
        """What it can express; the first look tries it out, which takes some milliseconds."""
        template, source = self._template, self._source
        if template is None or source is None:
            return TemplateAbilities(system=False)
        return probe(functools.partial(self._run, template), source)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The prompt, ready for the answer's first token.

        Raises :class:`InvalidRequest` where the template refuses the messages,
        :class:`UnsupportedOption` for what it would leave out without a word,
        :class:`ModelInvalid` where it fails by itself.
        """
        self._refuse_lost(messages, tools)
        if self._template is None:
            return self._plain(messages)
        dialect = self.abilities.dialect
        if dialect is not None:
            messages = [_with_ids(message, dialect.call_id) for message in messages]
        return self._run(self._template, messages, tools, self.abilities.style)

    def _refuse_lost(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """Refuse what the template, or whoever reads the answer, would lose."""
        abilities = self.abilities
        if tools and abilities.dialect is None:
            raise UnsupportedOption(
                f"{self._model} has no tool calls in its chat template, or none in a form that is "
                "known here.",
                param="tools",
                mend="Leave the tools out, or use a model that was trained for them.",
            )
        if self._template is None:
            return
        lost = (
            ("system messages", not abilities.system, lambda m: m.role == "system"),
            ("tool calls", abilities.dialect is None, lambda m: bool(m.tool_calls)),
            ("tool results", not abilities.tool_results, lambda m: m.role == "tool"),
            (
                "several tool calls in one turn",
                not abilities.parallel_calls,
                lambda m: len(m.tool_calls) > 1,
            ),
        )
        for what, is_lost, has_it in lost:
            if is_lost and any(has_it(message) for message in messages):
                raise UnsupportedOption(
                    f"The chat template of {self._model} has no place for {what}.",
                    param="messages",
                    mend="Leave them out, or use another model.",
                )

    def _plain(self, messages: Sequence[Message]) -> str:
        if len(messages) == 1 and messages[0].role == "user":
            return messages[0].content
        raise UnsupportedOption(
            f"{self._model} has no chat template: it only continues one user message.",
            param="messages",
            mend="Send a single user message, or use a chat model.",
        )

    def _compile(self, source: str) -> jinja2.Template:
        if len(source) > MAX_TEMPLATE_CHARS:
            self._invalid(f"is {len(source)} characters long (limit {MAX_TEMPLATE_CHARS})")
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        environment.filters["tojson"] = _to_json
        try:
            tree = environment.parse(source)
            _count_steps(tree)
            code = environment.compile(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            self._invalid(f"does not compile: {_line(error)}", error)
        return jinja2.Template.from_code(environment, code, dict(environment.globals))

    def _run(
        self,
        template: jinja2.Template,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        style: RenderStyle,
    ) -> str:
        parts: list[str] = []
        written = 0
        try:
            for part in template.generate(**self._variables(messages, tools, style)):
                parts.append(part)
                written += len(part)
                if written > MAX_PROMPT_CHARS:
                    raise _BudgetSpent
        except _TemplateRefusal as refusal:
            raise InvalidRequest(
                f"The chat template of {self._model} refuses these messages: {refusal}",
                param="messages",
            ) from refusal
        except _BudgetSpent as error:
            self._invalid("runs too long or writes too much", error)
        except Exception as error:
            # Any exception can come out of a stranger's template.
            self._invalid(f"fails: {_line(error)}", error)
        return "".join(parts)

    def _variables(
        self, messages: Sequence[Message], tools: Sequence[Tool], style: RenderStyle
    ) -> dict[str, Any]:
        return {
            "messages": _Given(_message(message, style) for message in messages),
            "tools": [_tool(tool) for tool in tools] or ([] if style.tools_as_empty_list else None),
            "add_generation_prompt": True,
            _FAIL: _refuse,
            "strftime_now": _strftime_now,
            _TICK: _Ticks(),
            **self._texts,
        }

    def _invalid(self, what: str, cause: BaseException | None = None) -> NoReturn:
        raise ModelInvalid(
            f"The chat template of {self._model} {what}.", mend="Use another file of this model."
        ) from cause


class _GenerationTag(Extension):
    """``{% generation %}``, by which transformers marks what a model is trained on: no effect."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Its body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Ticks:
    """Called once for each loop step and macro call of one rendering."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def __call__(self) -> str:
        self._left -= 1
        if self._left < 0:
            raise _BudgetSpent
        return ""


def _count_steps(tree: nodes.Template) -> None:
    """Put a tick at the head of each loop body and macro, where a template can repeat itself."""
    repeating: list[nodes.For | nodes.Macro] = [
        *tree.find_all(nodes.For),
        *tree.find_all(nodes.Macro),
    ]
    for node in repeating:
        tick = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        head = nodes.ExprStmt(tick)
        head.set_lineno(node.lineno).set_environment(tree.environment)  # type: ignore[arg-type]  # parse() always sets it
        node.body.insert(0, head)


def _with_ids(message: Message, call_id: Callable[[str], str]) -> Message:
    """The message with its calls' ids as the model's family takes them."""
    if not message.tool_calls and message.tool_call_id is None:
        return message
    return dataclasses.replace(
        message,
        tool_calls=tuple(
            dataclasses.replace(call, id=call_id(call.id)) for call in message.tool_calls
        ),
        tool_call_id=None if message.tool_call_id is None else call_id(message.tool_call_id),
    )


def _message(message: Message, style: RenderStyle) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments, style)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        shown["name"] = message.name
    return shown


def _arguments(text: str, style: RenderStyle) -> Any:
    # Most templates write arguments with tojson: they expect the object, not its text.
    if style.arguments_as_text:
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _tool(tool: Tool) -> Mapping[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": copy.deepcopy(dict(tool.parameters)),
        },
    }


def _refuse(message: str = "") -> NoReturn:
    raise _TemplateRefusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML, which models weren't trained on. The parameters are
    # those of transformers' filter, which templates are written for.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
