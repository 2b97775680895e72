"""What a dialect is: how a body becomes one of our requests, and an answer becomes its events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

from pydantic import Field

from overspill.errors import InvalidRequest
from overspill.types.chat import Grammar, Privacy, Request
from overspill.types.reply import ReplyChunk
from overspill_edge.body import NonEmpty, Strict
from overspill_edge.problems import HttpProblem

AUTO_MODEL = "auto"
"""The model name that leaves the choice to the policy."""


class _Grammar(Strict):
    syntax: Literal["regex", "lark"]
    text: NonEmpty


class OverspillOptions(Strict):
    """What no dialect has a word for: the ``overspill`` object of a body.

    ``privacy`` can only tighten the daemon's floor; ``adapter`` names one that the daemon was
    started with; with ``wait`` false a model that has to be loaded first is 503. ``keep_alive`` is
    how long the device's model stays loaded after this answer: seconds, or as ``10m``.
    """

    privacy: Literal["device", "attested", "any"] | None = None
    deadline_s: Annotated[float, Field(gt=0, le=86400)] | None = None
    first_token_s: Annotated[float, Field(gt=0, le=86400)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    lane: Literal["interactive", "batch"] | None = None
    adapter: NonEmpty | None = None
    grammar: _Grammar | None = None
    wait: bool | None = None
    keep_alive: str | Annotated[float, Field(ge=-1, le=10**7)] | None = None

    def common(self, source: Source, model: str) -> dict[str, Any]:
        """The fields of :class:`Request` that are the same in every dialect."""
        return {
            "model": None if model == AUTO_MODEL else model,
            "app": source.app,
            "cache_scope": "app",
            "privacy": source.tightened(self.privacy),
            "deadline_s": self.deadline_s,
            "first_token_s": self.first_token_s,
            "lane": self.lane or "interactive",
            "adapter": self.adapter,
            "grammar": self.grammar and Grammar(self.grammar.syntax, self.grammar.text),
        }

    def sampling(self) -> dict[str, Any]:
        """The fields of :class:`Sampling` that are ours."""
        return {
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
        }


NOTHING = OverspillOptions()
"""Of a body without ours; frozen, and so everybody's."""


@dataclass(frozen=True, slots=True)
class Source:
    """Who asks, under the daemon's floor and what a header may have tightened it to."""

    app: str
    floor: Privacy
    header_privacy: str | None = None

    def tightened(self, asked: str | None) -> Privacy:
        """The floor of one request: header and body can only tighten it."""
        floor = self.floor
        for value in (self.header_privacy, asked):
            if value is not None and value not in tuple(Privacy):
                raise InvalidRequest(
                    "The privacy that is asked for is none.",
                    param="privacy",
                    mend="Use device, attested or any.",
                )
            if value is not None:
                floor = floor.tightened_by(Privacy(value))
        return floor


class Asked(Protocol):
    """A body that was read and checked."""

    @property
    def stream(self) -> bool | None:
        """Whether the answer is to come in events."""

    @property
    def overspill(self) -> OverspillOptions | None:
        """What is ours."""


class Shape(Protocol):
    """One answer in its dialect, whole or as server-sent events (bytes, framed).

    ``opening`` comes once with the first piece, ``piece`` for each of them, the first and the
    last too, ``closing`` or ``failing`` once at the end.
    """

    def opening(self, first: ReplyChunk) -> Iterable[bytes]:
        """What comes before any of the answer."""

    def piece(self, piece: ReplyChunk) -> Iterable[bytes]:
        """One piece of the answer."""

    def closing(self, last: ReplyChunk) -> Iterable[bytes]:
        """The end of an answer that is whole."""

    def failing(self, problem: HttpProblem) -> Iterable[bytes]:
        """The end of one that broke off, before or after ``opening``."""

    def whole(self, pieces: Sequence[ReplyChunk]) -> dict[str, Any]:
        """The whole answer as a document."""


_Asked = TypeVar("_Asked", bound=Asked)


@dataclass(frozen=True, slots=True)
class Dialect(Generic[_Asked]):
    """``names`` are the dialect's for parameters that an engine refuses by ours.

    ``fills_window``: its ``max_tokens`` is a bound that the context may come before.
    """

    parse: Callable[[bytes], _Asked]
    to_request: Callable[[_Asked, Source], Request]
    shape: Callable[[_Asked, Request], Shape]
    names: Mapping[str, str] = field(default_factory=dict)
    fills_window: bool = False


def data_event(document: Mapping[str, Any]) -> bytes:
    """An event without a name (WHATWG HTML, 9.2)."""
    return b"data: " + json_bytes(document) + b"\n\n"


def named_event(document: Mapping[str, Any]) -> bytes:
    """An event that is named as its ``type`` says."""
    return b"event: " + str(document["type"]).encode() + b"\n" + data_event(document)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Made once: ``json.dumps`` would make one for each event."""


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8."""
    return _encode(document).encode()
