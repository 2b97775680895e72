"""From messages to a prompt, by the model's own jinja2 template.

A model file is untrusted input, so its template runs in a sandbox with a budget of steps and of
text (``chat_sandbox.py``). That stops loops and floods; a template that eats time some other way
is held by the worker process.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import jinja2

from overspill.engines.backend import Backend
from overspill.engines.chat_bounds import MAX_PROMPT_CHARS, BudgetSpent, budget
from overspill.engines.chat_probe import RenderStyle, TemplateAbilities, probe
from overspill.engines.chat_sandbox import Sandbox
from overspill.errors import InvalidRequest, ModelInvalid, UnsupportedOption
from overspill.types.chat import Message, Tool

MAX_TEMPLATE_CHARS = 256 * 1024
_MAX_INDENT = 16
_FAIL = "raise_exception"

Mark: TypeAlias = Callable[[str], str]
"""What is done to each text that a request brings, before the template sees it."""


def _as_it_is(text: str) -> str:
    return text


class _TemplateRefusal(Exception):
    """The template itself refused the messages by ``raise_exception``."""


class _Given(list[Any]):
    """A list that a template may read only."""


class ChatTemplates:
    """A model's templates: the one named for tools, where it has one, and the one for the rest.

    Hermes and Command R keep two: the other one has no place for tools. Raises
    :class:`ModelInvalid` for a template that doesn't compile.
    """

    def __init__(self, backend: Backend, *, model: str) -> None:
        vocabulary = backend.vocabulary
        compiled = functools.partial(
            ChatTemplate, model=model, bos_text=vocabulary.bos_text, eos_text=vocabulary.eos_text
        )
        self.plain = self.for_tools = compiled(backend.chat_template)
        if backend.tool_template is not None:
            named = compiled(backend.tool_template)
            # Calls in a form that is not known here would be refused.
            if named.abilities.dialect is not None:
                self.for_tools = named

    def choose(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> ChatTemplate:
        """The one for a conversation: with tools on offer, or calls in its past, the one for tools.

        Its abilities are those of every conversation of this kind.
        """
        called = any(message.tool_calls or message.role == "tool" for message in messages)
        return self.for_tools if tools or called else self.plain


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

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), mark: Mark = _as_it_is
    ) -> str:
        """The prompt, ready for the answer's first token.

        ``mark`` goes over all texts of messages, calls and tools, names and keys too.
        Raises :class:`InvalidRequest` where the template refuses the messages,
        :class:`UnsupportedOption` for what it would leave out without a word,
        :class:`ModelInvalid` where it fails by itself.
        """
        self._refuse_lost(messages, tools)
        if self._template is None:
            return mark(self._plain(messages))
        dialect = self.abilities.dialect
        if dialect is not None:
            messages = [_with_ids(message, dialect.call_id) for message in messages]
        return self._run(self._template, messages, tools, self.abilities.style, mark)

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
        try:
            return Sandbox({"tojson": _to_json}).compiled(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            self._invalid(f"does not compile: {_line(error)}", error)

    def _run(
        self,
        template: jinja2.Template,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        style: RenderStyle,
        mark: Mark = _as_it_is,
    ) -> str:
        parts: list[str] = []
        written = 0
        try:
            with budget():
                for part in template.generate(**self._variables(messages, tools, style, mark)):
                    parts.append(part)
                    written += len(part)
                    if written > MAX_PROMPT_CHARS:
                        raise BudgetSpent
        except _TemplateRefusal as refusal:
            raise InvalidRequest(
                f"The chat template of {self._model} refuses these messages: {refusal}",
                param="messages",
            ) from refusal
        except BudgetSpent as error:
            self._invalid("runs too long or writes too much", error)
        except Exception as error:
            # Any exception can come out of a stranger's template.
            self._invalid(f"fails: {_line(error)}", error)
        return "".join(parts)

    def _variables(
        self, messages: Sequence[Message], tools: Sequence[Tool], style: RenderStyle, mark: Mark
    ) -> dict[str, Any]:
        return {
            "messages": _Given(_message(message, style, mark) for message in messages),
            "tools": [_tool(tool, mark) for tool in tools]
            or ([] if style.tools_as_empty_list else None),
            "add_generation_prompt": True,
            _FAIL: _refuse,
            "strftime_now": _strftime_now,
            **self._texts,
        }

    def _invalid(self, what: str, cause: BaseException | None = None) -> NoReturn:
        raise ModelInvalid(
            f"The chat template of {self._model} {what}.", mend="Use another file of this model."
        ) from cause


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


def _message(message: Message, style: RenderStyle, mark: Mark) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": mark(message.content)}
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": mark(call.id),
                "type": "function",
                "function": {
                    "name": mark(call.name),
                    "arguments": _marked(_arguments(call.arguments, style), mark),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shown["tool_call_id"] = mark(message.tool_call_id)
    if message.name is not None:
        shown["name"] = mark(message.name)
    return shown


def _arguments(text: str, style: RenderStyle) -> Any:
    # Most templates write arguments with tojson: they expect the object, not its text.
    if style.arguments_as_text:
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _marked(value: Any, mark: Mark) -> Any:
    """A JSON value with its texts marked, keys too, and otherwise a copy."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, Mapping):
        return {_marked(key, mark): _marked(inner, mark) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(inner, mark) for inner in value]
    return value


def _tool(tool: Tool, mark: Mark) -> Mapping[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": mark(tool.name),
            "description": mark(tool.description),
            "parameters": _marked(tool.parameters, mark),
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
    if max(indent or 0, *map(len, separators or ("",))) > _MAX_INDENT:
        raise BudgetSpent
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return encoder.encode(value)
    parts, written = [], 0
    # What is deep grows by its depth on every line.
    for part in encoder.iterencode(value):
        parts.append(part)
        written += len(part)
        if written > MAX_PROMPT_CHARS:
            raise BudgetSpent
    return "".join(parts)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
