"""A chat request and what comes back from an engine.

One frozen :class:`Request` goes down through session, engine and wire; a stream of
:class:`Chunk` comes up. Names follow OpenAI's chat interface where it has one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from overspill.types.budget import Left
from overspill.types.route import Grant
from overspill.types.usage import Usage

Role = Literal["system", "user", "assistant", "tool"]


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


class Privacy(StrEnum):
    """The floor for a request: where it may run and what must be proven.

    ``DEVICE`` never leaves; ``ATTESTED`` may go to a node whose hardware evidence verified
    (or that a policy file names explicitly); ``ANY`` may also go to a third party, with a
    grant for that one interaction.
    """

    DEVICE = "device"
    ATTESTED = "attested"
    ANY = "any"

    __hash__ = str.__hash__  # a member equals its value

    @property
    def strictness(self) -> int:
        """2 for device, 1 for attested, 0 for any."""
        return _STRICTNESS[self]

    def tightened_by(self, other: Privacy) -> Privacy:
        """The stricter of the two: a floor is only ever raised."""
        return self if _STRICTNESS[self] >= _STRICTNESS[other] else other


_STRICTNESS = {Privacy.DEVICE: 2, Privacy.ATTESTED: 1, Privacy.ANY: 0}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wants made. ``arguments`` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call while the model writes it.

    ``index`` counts the calls of one answer from 0. The first piece of a call has its ``id`` and
    ``name``, the others have neither; ``arguments`` put together are those of the whole
    :class:`ToolCall`, which follows once it is complete. A call that never becomes complete (the
    answer was cut off, or turned out to be malformed) is handed out as text instead.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; ``parameters`` is a JSON schema.

    With ``strict`` the arguments of every call are held to that schema, also where the model is
    free to call or not.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer is held to: a ``regex`` (Rust's syntax, of the whole answer) or ``lark``.

    Lark is llguidance's dialect of it; its start rule is ``start``.
    """

    syntax: Literal["regex", "lark"]
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message, encoded as ``media_type`` says (``image/png`` and the like).

    ``at`` is the character of the message's ``content`` before which it stands.
    """

    data: bytes
    media_type: str
    at: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``tool_call_id`` names the call that a ``tool`` turn answers."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0 is greedy.

    ``seed`` and the token's position key a counter-based generator, so the same seed gives the
    same draw at the same position whatever else runs in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


ToolChoice = Literal["auto", "none", "required"]
"""``auto``, ``none`` or ``required``; a named tool is given by :attr:`Request.tool_name`."""


Lane = Literal["interactive", "batch"]
"""``interactive`` goes first; ``batch`` runs when nothing else waits, or once it has aged."""


def new_request_id() -> str:
    """128 random bits in hex."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Watch:
    """What an engine is to tell about its own certainty, for whoever judges an answer as it grows.

    The first ``tokens`` sampled tokens come with a :class:`TokenSignal` each, the one that ends an
    answer included. ``state_ids`` are token ids whose raw logits after the prompt go with the
    first: logits are a linear image of the model's last hidden state, so that a linear probe on
    them is one on that state, and no runtime has to give it out.
    """

    tokens: int
    state_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One generation, complete and frozen: everything that any layer below needs.

    ``max_tokens`` None means as many as the context leaves, at most the engine's default limit.
    ``top_logprobs`` None asks for no log-probabilities; 0 for the chosen token's only.
    ``deadline_s`` is seconds from the start until the last token; ``first_token_s`` until the
    first. ``attempt`` counts continuations elsewhere of the same interaction. ``prefix`` is text
    that the answer already begins with (a device's draft).

    ``adapter`` names a LoRA adapter that the engine was given. ``draft`` is a guess at the
    answer's text: an engine may check it faster than it writes, and never lets it change a token.
    One that a model of another tokenizer made (``draft_tokenizer``, where known) is dropped.
    ``json_schema`` or ``grammar``, of which one may be set, is what the answer's text is held to.
    ``tool_choice`` ``required`` and ``tool_name`` are enforced, and so is
    ``parallel_tool_calls`` False: at most one call in an answer.
    ``left`` is what a chain of calls has left; it is weighed on the device and never leaves it.
    ``cache_scope`` says with whom computed prompts may be shared: requests of the same ``app`` and
    the same scope; None shares with nobody. ``watch`` asks a local engine for signals; it never
    leaves the device. With ``raw`` there is one message, whose content is the prompt itself: no
    template is laid around it, and control tokens that it spells count as such.
    ``redact`` has placeholders leave the device for all that its detectors find in the request.
    """

    messages: tuple[Message, ...]
    id: str = field(default_factory=new_request_id)
    model: str | None = None
    app: str = "default"
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    json_schema: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    privacy: Privacy = Privacy.ATTESTED
    deadline_s: float | None = None
    first_token_s: float | None = None
    attempt: int = 0
    prefix: str = ""
    lane: Lane = "interactive"
    adapter: str | None = None
    draft: str = ""
    draft_tokenizer: str = ""
    cache_scope: str | None = None
    left: Left | None = None
    grammar: Grammar | None = None
    parallel_tool_calls: bool = True
    watch: Watch | None = None
    grant: Grant | None = None
    """A person's consent to one third party, for this request alone; it never leaves the device."""
    raw: bool = False
    redact: bool = False

    @property
    def has_images(self) -> bool:
        """Whether a message shows a picture."""
        return sum([len(message.images) for message in self.messages]) > 0

    @property
    def offers_tools(self) -> bool:
        """Whether the model may call a tool."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def needs_constraint(self) -> bool:
        """Whether an engine has to hold the answer to something, token by token."""
        return self.holds_content or (self.offers_tools and not self.parallel_tool_calls)

    @property
    def holds_content(self) -> bool:
        """Whether what is said, or which tool is called how, is held to something."""
        if self.json_schema is not None or self.grammar is not None:
            return True
        if not self.offers_tools:
            return False
        forced = self.tool_choice == "required" or self.tool_name is not None
        return forced or any(tool.strict for tool in self.tools)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of a chosen token under the model, before sampling filters."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()
    """Alternatives as (token id, text, log-probability), best first."""


@dataclass(frozen=True, slots=True)
class TokenSignal:
    """How sure the model was of a token, in natural logs, before sampling filters.

    ``margin`` is by how much the best token led the second (at most 100), ``entropy`` that of the
    whole distribution, in nats. ``state`` is set on the first token only: the raw logits of the
    watch's ``state_ids``, in their order.
    """

    token_id: int
    logprob: float
    margin: float
    entropy: float
    state: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a stream: always the last thing an engine yields."""

    reason: FinishReason
    usage: Usage
    model: str
    adapter: str | None = None
    receipt: bytes | None = None
    """The node's signed receipt; set by a remote engine once FINAL was verified."""
    stop_sequence: str | None = None
    """The stop string that ended it, if one did."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. Text is valid UTF-8 at every boundary.

    ``token_ids`` are the tokens that this piece came from (may be empty when text was held back
    for a possible stop string). ``tool_calls`` are complete calls; ``tool_call_deltas`` are their
    pieces, which come first. ``reasoning`` is what a model thought aloud where its format keeps
    that apart. ``signals`` come with a watched request only. ``finish`` is set on the last chunk
    only.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    finish: Finish | None = None
    tool_call_deltas: tuple[ToolCallDelta, ...] = ()
    reasoning: str = ""
    signals: tuple[TokenSignal, ...] = ()

    @property
    def is_visible(self) -> bool:
        """Whether a reader sees something of it."""
        return bool(self.text or self.reasoning or self.tool_calls or self.tool_call_deltas)

    @property
    def has_content(self) -> bool:
        """Whether there is more to it than a possible end."""
        return bool(
            self.text
            or self.token_ids
            or self.logprobs
            or self.tool_calls
            or self.tool_call_deltas
            or self.reasoning
            or self.signals
        )


def merge_chunks(chunks: Iterable[Chunk]) -> Chunk:
    """Neighbouring chunks, at least one, as one."""
    chunks = list(chunks)
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        finish=chunks[-1].finish,
        tool_call_deltas=tuple(delta for chunk in chunks for delta in chunk.tool_call_deltas),
        reasoning="".join(chunk.reasoning for chunk in chunks),
        signals=tuple(signal for chunk in chunks for signal in chunk.signals),
    )
