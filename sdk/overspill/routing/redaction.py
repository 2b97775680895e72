"""Redact and restore: placeholders leave the device, and the answer gets its values back here.

::

    veil = redact(request, policy)          # None where there is nothing to hide
    remote.generate(veil.request)           # "[EMAIL_1] asked ..." is all that anybody sees
    restorer = Restorer(veil)
    shown = restorer.chunk(chunk)           # and the answer's "[EMAIL_1]" is an address again

One value has one placeholder in a request, and the same conversation the same ones again, so
that a prefix cache still fits. A placeholder that the model misspells stays as it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from overspill.routing.detectors import Wanted, find
from overspill.routing.normalise import outgoing_text
from overspill.routing.policy import RoutingPolicy
from overspill.types.chat import Chunk, Message, Request, Tool, ToolCall, ToolCallDelta

_NAMES = {
    "email": "EMAIL",
    "phone": "PHONE",
    "card": "CARD",
    "iban": "IBAN",
    "api_key": "KEY",
    "listed": "TERM",
}


@dataclass(frozen=True, slots=True)
class Veil:
    """``request`` is what may leave; ``values`` maps its placeholders to what they stand for."""

    request: Request
    values: Mapping[str, str] = field(repr=False)


def redact(request: Request, policy: RoutingPolicy) -> Veil | None:
    """The request with placeholders for the kinds that the policy redacts; where the request asks
    for it (``redact``) for all kinds that are looked for. None where nothing was found.
    """
    return hide(request, policy, policy.wanted.kinds if request.redact else policy.redact)


def hide(request: Request, policy: RoutingPolicy, kinds: tuple[str, ...]) -> Veil | None:
    """As :func:`redact`, for some kinds.

    A grammar is left as it is: a placeholder in it would mean something else. Whoever relies on
    nothing being left looks at the veil's request again, as stage 2 does.
    """
    if not kinds:
        return None
    hider = _Hider(replace(policy.wanted, kinds=kinds), "\n".join(outgoing_text(request)))
    hider.request(request)
    if not hider.values:
        return None
    # Once more, for what is only found by its value: a name that a word runs into, say.
    return Veil(hider.request(request), hider.values)


class _Hider:
    """Gives each value its placeholder, in the order in which values are met."""

    def __init__(self, wanted: Wanted, everything: str) -> None:
        self._wanted = wanted
        self._everything = everything
        self._placeholders: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    @property
    def values(self) -> dict[str, str]:
        return {placeholder: value for value, placeholder in self._placeholders.items()}

    def request(self, request: Request) -> Request:
        """All that a model would see of a request, but for a grammar."""
        return replace(
            request,
            messages=tuple(self.message(message) for message in request.messages),
            tools=tuple(self.tool(tool) for tool in request.tools),
            tool_name=None if request.tool_name is None else self.text(request.tool_name),
            json_schema=None if request.json_schema is None else self.value(request.json_schema),
            stop=tuple(map(self.text, request.stop)),
            prefix=self.text(request.prefix),
            draft=self.text(request.draft),
        )

    def text(self, text: str) -> str:
        """The text with placeholders."""
        hidden: list[str | tuple[str, str]] = []
        end = len(text)
        for kind, start, stop in reversed(_merged(text, self._wanted)):
            hidden += [text[stop:end], (kind, text[start:stop])]
            end = start
        hidden.append(text[:end])
        # In reading order, so that the first value met is the first of its kind.
        return "".join(
            self._known(part) if isinstance(part, str) else self._placeholder(*part)
            for part in reversed(hidden)
        )

    def _known(self, text: str) -> str:
        """The text between findings, where a value may stand that was found elsewhere."""
        for value, placeholder in self._placeholders.items():
            if value in text:
                text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", placeholder, text)
        return text

    def message(self, message: Message) -> Message:
        """One turn; its pictures are what they are, and stand where they stood."""
        content, images, start = "", [], 0
        for image in message.images:
            content += self.text(message.content[start : image.at])
            images.append(replace(image, at=len(content)))
            start = image.at
        return replace(
            message,
            content=content + self.text(message.content[start:]),
            name=None if message.name is None else self.text(message.name),
            tool_calls=tuple(self._call(call) for call in message.tool_calls),
            images=tuple(images),
        )

    def tool(self, tool: Tool) -> Tool:
        """A tool's description and schema."""
        return replace(
            tool,
            name=self.text(tool.name),
            description=self.text(tool.description),
            parameters=self.value(tool.parameters),
        )

    def value(self, value: Any) -> Any:
        """A JSON value: every string in it, keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = json.dumps(value)
            hidden = self.text(text)
            return value if hidden == text else hidden
        return value

    def _call(self, call: ToolCall) -> ToolCall:
        """Arguments are JSON text, where a value may be written in escapes: they are read."""
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            return replace(call, name=self.text(call.name), arguments=self.text(call.arguments))
        hidden = self.value(arguments)
        text = call.arguments if hidden == arguments else json.dumps(hidden, ensure_ascii=False)
        return replace(call, name=self.text(call.name), arguments=text)

    def _placeholder(self, kind: str, value: str) -> str:
        known = self._placeholders.get(value)
        while known is None:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            name = f"[{_NAMES[kind]}_{self._counts[kind]}]"
            # What the text says already, nobody could tell from a placeholder.
            if name not in self._everything:
                known = self._placeholders[value] = name
        return known


def _merged(text: str, wanted: Wanted) -> list[tuple[str, int, int]]:
    """Findings in order, those that overlap as one, by the kind of the first."""
    merged: list[tuple[str, int, int]] = []
    for one in sorted(find(text, wanted), key=lambda one: (one.start, -one.end)):
        if merged and one.start < merged[-1][2]:
            kind, start, end = merged[-1]
            merged[-1] = (kind, start, max(end, one.end))
        else:
            merged.append((one.kind, one.start, one.end))
    return merged


class Restorer:
    """Puts the values back into an answer as it streams.

    The end of a piece that may be the beginning of a placeholder is held back until the next.
    Arguments of tools, and answers that are held to a schema, are JSON: there values are escaped.
    """

    def __init__(self, veil: Veil) -> None:
        self._plain = dict(veil.values)
        self._json = {name: json.dumps(v)[1:-1] for name, v in veil.values.items()}
        is_json = veil.request.json_schema is not None
        self._text = _Piece(self._json if is_json else self._plain)
        self._reasoning = _Piece(self._plain)
        self._deltas: dict[int, _Piece] = {}

    def chunk(self, chunk: Chunk) -> Chunk:
        """The chunk with values, less what is held back; the last one brings all that was."""
        ends = chunk.finish is not None
        # A call comes after the text that leads to it, so that is complete.
        over = ends or bool(chunk.tool_calls or chunk.tool_call_deltas)
        deltas = [self._delta(delta) for delta in chunk.tool_call_deltas]
        if ends or chunk.tool_calls:
            deltas += self._rest_of_deltas()
        return replace(
            chunk,
            text=self._text.feed(chunk.text) + (self._text.rest() if over else ""),
            reasoning=self._reasoning.feed(chunk.reasoning)
            + (self._reasoning.rest() if over or chunk.text else ""),
            tool_calls=tuple(self._call(call) for call in chunk.tool_calls),
            tool_call_deltas=tuple(deltas),
        )

    def _delta(self, delta: ToolCallDelta) -> ToolCallDelta:
        piece = self._deltas.setdefault(delta.index, _Piece(self._json))
        name = _all_restored(delta.name, self._plain)
        return replace(delta, name=name, arguments=piece.feed(delta.arguments))

    def _rest_of_deltas(self) -> Iterator[ToolCallDelta]:
        for index, piece in self._deltas.items():
            if rest := piece.rest():
                yield ToolCallDelta(index, arguments=rest)

    def _call(self, call: ToolCall) -> ToolCall:
        return replace(
            call,
            name=_all_restored(call.name, self._plain),
            arguments=_all_restored(call.arguments, self._json),
        )


class _Piece:
    """One stream of text that grows."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._held = ""

    def feed(self, text: str) -> str:
        if not text:
            return ""
        text = self._held + text
        keep = _unfinished(text, self._values)
        self._held = text[keep:]
        return _all_restored(text[:keep], self._values)

    def rest(self) -> str:
        held, self._held = self._held, ""
        return held


def _unfinished(text: str, values: Mapping[str, str]) -> int:
    """Where the beginning of a placeholder stands at the text's end; its length if none does."""
    start = text.rfind("[")
    if start < 0:
        return len(text)
    tail = text[start:]
    begun = any(name.startswith(tail) and name != tail for name in values)
    return start if begun else len(text)


def _all_restored(text: str, values: Mapping[str, str]) -> str:
    if "[" not in text:
        return text
    pattern = "|".join(map(re.escape, values))
    return re.sub(pattern, lambda match: values[match.group()], text)
