"""Stage 0: a request in one canonical form, or a typed error.

What reaches the model is never changed here: the form is what the later stages look at.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from operator import attrgetter, le
from typing import NamedTuple

from overspill.errors import InvalidRequest
from overspill.routing.language import language_of
from overspill.routing.lexis import Lexis, both_ends, lexis_of_ends
from overspill.types.chat import Message, Request
from overspill.types.shown import check_shown

_ROLES = ("system", "user", "assistant", "tool")
_MAX_TOP_LOGPROBS = 20


class NormalForm(NamedTuple):
    """What the stages look at: the user's turns in one spacing, and the conversation's shape.

    Of a long turn ``user_turns`` has both ends, see ``lexis.both_ends``.
    ``in_tool_chain`` is true while the model is owed an answer to a tool's result.
    ``history_chars`` counts all turns but the last. ``lexis`` and ``language`` (an ISO 639-1 code
    or ``unknown``) are the last user turn's.
    """

    user_turns: tuple[str, ...]
    in_tool_chain: bool
    has_system: bool
    history_chars: int
    language: str
    lexis: Lexis

    @property
    def last_user(self) -> str:
        """The user's latest turn."""
        return self.user_turns[-1]

    def until(self, turns: int) -> NormalForm:
        """The form with only the first so many of the user's turns."""
        kept = self.user_turns[:turns]
        return self._replace(user_turns=kept, lexis=lexis_of_ends(kept[-1]))


def normalise(request: Request) -> NormalForm:
    """Check the request and bring it into its normal form.

    Raises :class:`~overspill.errors.InvalidRequest`, naming the part in ``param``.
    """
    _check_messages(request.messages)
    _check_tool_turns(request.messages)
    _check_tools(request)
    _check_options(request)
    messages = request.messages
    turns = tuple([both_ends(m.content) for m in messages if m.role == "user"])
    lexis = lexis_of_ends(turns[-1])
    return NormalForm(
        user_turns=turns,
        in_tool_chain=messages[-1].role == "tool",
        has_system=messages[0].role == "system",
        history_chars=sum([len(m.content) for m in messages[:-1]]),
        language=language_of(lexis),
        lexis=lexis,
    )


def outgoing_text(request: Request) -> Iterator[str]:
    """Every piece of the request that would be sent if it left the device."""
    for message in request.messages:
        yield message.content
        if message.name is not None:
            yield message.name
        for call in message.tool_calls:
            yield call.name
            yield call.arguments
            if "\\" in call.arguments:
                yield from _decoded(call.arguments)
    for tool in request.tools:
        yield tool.name
        yield tool.description
        yield from _strings(tool.parameters)
    if request.json_schema is not None:
        yield from _strings(request.json_schema)
    if request.grammar is not None:
        yield request.grammar.text
    yield from request.stop
    yield request.prefix
    yield request.draft


def _decoded(arguments: str) -> Iterator[str]:
    """The strings of JSON text with escapes: what is written so is sent all the same."""
    try:
        yield from _strings(json.loads(arguments))
    except ValueError:  # malformed, as models write it: it was yielded as it stands
        return
    except RecursionError:  # what cannot be read cannot be looked through for personal data
        raise InvalidRequest(
            "A tool call's arguments are nested too deeply.", param="messages"
        ) from None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _check_messages(messages: tuple[Message, ...]) -> None:
    if not messages:
        raise InvalidRequest("There are no messages.", param="messages", mend="Send at least one.")
    for index, message in enumerate(messages):
        _check_message(message, index)
    check_shown(messages)
    if not [m for m in messages if m.role == "user" and (m.images or m.content.strip())]:
        raise InvalidRequest(
            "No message of the user has any text.", param="messages", mend="Add one to answer."
        )
    if messages[-1].role == "assistant":
        raise InvalidRequest(
            "The last message is the assistant's own: there is nothing to answer.",
            param=f"messages[{len(messages) - 1}]",
            mend="End with a turn of the user, or with a tool's result.",
        )


def _check_message(message: Message, index: int) -> None:
    where = f"messages[{index}]"
    if message.role not in _ROLES:
        raise InvalidRequest(
            f"{where} has the unknown role {message.role!r}.",
            param=f"{where}.role",
            mend=f"Use one of {', '.join(_ROLES)}.",
        )
    if not isinstance(message.content, str):
        raise InvalidRequest(
            f"{where} has content of type {type(message.content).__name__}.",
            param=f"{where}.content",
            mend="Only text is supported.",
        )
    _check_text(message.content, where)
    if message.name is not None:
        _check_text(message.name, where)
    if message.tool_calls:
        _check_calls(message, where)


def _check_calls(message: Message, where: str) -> None:
    for call in message.tool_calls:
        _check_text(call.name, where)
        _check_text(call.arguments, where)
    if message.role != "assistant":
        raise InvalidRequest(
            f"{where} has tool calls, but only an assistant makes them.",
            param=f"{where}.tool_calls",
        )


def _check_text(text: str, where: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{where} holds a lone surrogate, which is no text.", param=f"{where}.content"
        ) from None


def _check_tool_turns(messages: tuple[Message, ...]) -> None:
    """Each result answers one open call, and no call is left open when another turn begins."""
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        if message.role == "tool":
            where = f"messages[{index}]"
            if message.tool_call_id not in open_calls:
                raise InvalidRequest(
                    f"{where} answers the tool call {message.tool_call_id!r}, which nobody made.",
                    param=f"{where}.tool_call_id",
                    mend="A tool message follows the assistant message with its call.",
                )
            open_calls.discard(message.tool_call_id)
        elif open_calls:
            break
        elif message.tool_calls:
            open_calls = {call.id for call in message.tool_calls}
    if open_calls:
        raise InvalidRequest(
            f"The tool call {min(open_calls)!r} has no result.",
            param="messages",
            mend="Add a tool message for each call before the next turn.",
        )


def _check_tools(request: Request) -> None:
    names = Counter([tool.name for tool in request.tools]) if request.tools else {}
    for name, count in names.items():
        if not name or count > 1:
            problem = f"is named {count} times" if name else "has no name"
            raise InvalidRequest(f"The tool {name!r} {problem}.", param="tools")
    if request.tool_name is not None and request.tool_name not in names:
        raise InvalidRequest(
            f"tool_choice names {request.tool_name!r}, which is not among the tools.",
            param="tool_choice",
        )
    if request.tool_choice == "required" and not names:
        raise InvalidRequest(
            "tool_choice is 'required', but there are no tools.", param="tool_choice"
        )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 10),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("top_k", 0, math.inf),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("repeat_penalty", 0, math.inf),
)
_LEAST = tuple(low for _, low, _ in _RANGES)
_MOST = tuple(high for *_, high in _RANGES)
_sampling_values = attrgetter(*(name for name, *_ in _RANGES))


def _check_options(request: Request) -> None:
    limits: tuple[tuple[str, float | None, float, float], ...] = (
        ("max_tokens", request.max_tokens, 1, math.inf),
        ("top_logprobs", request.top_logprobs, 0, _MAX_TOP_LOGPROBS),
        ("deadline_s", request.deadline_s, 0, math.inf),
        ("first_token_s", request.first_token_s, 0, math.inf),
    )
    for name, value, low, high in limits:
        if value is not None:
            _check_range(name, value, low, high)
    values = _sampling_values(request.sampling)
    if not (all(map(le, _LEAST, values)) and all(map(le, values, _MOST))):
        for (name, low, high), value in zip(_RANGES, values, strict=True):
            _check_range(name, value, low, high)
    if "" in request.stop:
        raise InvalidRequest("A stop string is empty.", param="stop", mend="Leave it out.")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN, which compares false to everything, is refused as well.
    if not low <= value <= high:
        raise InvalidRequest(f"{name} is {value}; it must be from {low:g} to {high:g}.", param=name)
