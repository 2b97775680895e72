"""One request inside the scheduler: its prompt, its answer so far, its deadlines and its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from overspill.engines.answer_stream import AnswerStream
from overspill.engines.answer_text import AnswerText
from overspill.engines.backend import Backend
from overspill.engines.dialects import Parsed
from overspill.engines.picture_prompt import PicturePrompt
from overspill.engines.prefix_cache import PrefixKey
from overspill.engines.sampling import Choice, TokenSampler
from overspill.errors import OverspillError
from overspill.types.chat import (
    Chunk,
    Finish,
    FinishReason,
    Lane,
    Request,
    TokenLogprob,
    TokenSignal,
    merge_chunks,
)
from overspill.types.usage import Usage

if TYPE_CHECKING:
    from overspill.engines.drafts import PromptLookup


@dataclass(slots=True, eq=False)
class Generation:
    """State of one request; the scheduler's thread alone changes it, but for ``cancelled``."""

    request: Request
    prompt: list[int]
    max_tokens: int
    sampler: TokenSampler
    text: AnswerText
    stream: AnswerStream
    submitted_s: float
    slot: int = -1
    computed: int = 0
    """Tokens, the prompt's first, that its slot holds."""
    cached_tokens: int = 0
    pictures: PicturePrompt | None = None
    """Its images, where it shows any; their tokens in ``prompt`` are negative."""
    lookup: PromptLookup | None = None
    drafted: int = 0
    accepted: int = 0
    leader: Generation | None = None
    """Somebody who computes the prompt's first ``leader_tokens`` tokens just now: they are copied
    as soon as they are there."""
    leader_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    cancelled: bool = False
    ended: bool = False
    failure: OverspillError | None = None
    """Why it ended, where that is this request's own affair and not the step's."""
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0

    @property
    def lane(self) -> Lane:
        """The request's lane."""
        return self.request.lane

    @property
    def kv_tokens(self) -> int:
        """What it reserves of the KV cache."""
        return len(self.prompt) + self.max_tokens

    @property
    def adapter(self) -> str | None:
        """The request's adapter."""
        return self.request.adapter

    @property
    def prefix_key(self) -> PrefixKey | None:
        """With whom it shares computed prompts."""
        request = self.request
        if self.pictures is not None and not self.pictures.shares:
            return None
        scope = request.cache_scope
        return None if scope is None else (request.app, scope, request.adapter)

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt is computed."""
        return self.computed >= len(self.prompt)

    @property
    def waits_for_picture(self) -> bool:
        """Whether its prompt goes on with a picture that is not encoded yet."""
        return self.pictures is not None and self.pictures.waits(self.computed)

    @property
    def held_tokens(self) -> list[int]:
        """The tokens that its slot holds."""
        return (self.prompt + self.tokens)[: self.computed]

    @property
    def next_position(self) -> int:
        """Where in the sequence the next sampled token will stand."""
        return len(self.prompt) + len(self.tokens)

    def is_late(self, now_s: float) -> bool:
        """Whether a deadline has passed."""
        waited = now_s - self.submitted_s
        whole, first = self.request.deadline_s, self.request.first_token_s
        if whole is not None and waited > whole:
            return True
        return first is not None and not self.tokens and waited > first

    def accept(self, choice: Choice, backend: Backend, now_s: float) -> Chunk:
        """Take a sampled token; returns what can be shown, with ``finish`` at the end."""
        self.first_token_s = self.first_token_s or now_s
        self.last_token_s = now_s
        if choice.failure is not None:
            self.failure, self.ended = choice.failure, True
            return Chunk()
        if choice.token in backend.vocabulary.end_ids:
            return self._finish(FinishReason.STOP, Chunk(signals=_signals(choice)), backend)
        self.tokens.append(choice.token)
        self.sampler.observe(choice.token)
        parsed = self.text.feed_token(choice.token, backend.token_bytes(choice.token))
        logprobs = () if choice.logprob is None else (_logprob(choice, backend),)
        chunk = _chunk(parsed, (choice.token,), logprobs, signals=_signals(choice))
        if self.text.stopped or self.sampler.is_complete:
            return self._finish(FinishReason.STOP, chunk, backend)
        if len(self.tokens) >= self.max_tokens:
            return self._finish(FinishReason.LENGTH, chunk, backend)
        return chunk

    def _finish(self, reason: FinishReason, last: Chunk, backend: Backend) -> Chunk:
        rest = self.text.flush()
        if self.text.called_tools and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        self.ended = True
        finish = Finish(
            reason,
            self._usage(),
            backend.card.name,
            self.adapter,
            stop_sequence=self.text.stop_sequence,
        )
        return merge_chunks((last, _chunk(rest, finish=finish)))

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.prompt),
            completion_tokens=len(self.tokens),
            cached_tokens=self.cached_tokens,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            queue_s=self.admitted_s - self.submitted_s,
            prefill_s=self.first_token_s - self.admitted_s,
            decode_s=self.last_token_s - self.first_token_s,
        )


def _chunk(
    parsed: Parsed,
    tokens: tuple[int, ...] = (),
    logprobs: tuple[TokenLogprob, ...] = (),
    finish: Finish | None = None,
    signals: tuple[TokenSignal, ...] = (),
) -> Chunk:
    return Chunk(
        parsed.text,
        tokens,
        logprobs,
        parsed.calls,
        finish,
        parsed.deltas,
        parsed.reasoning,
        signals,
    )


def _signals(choice: Choice) -> tuple[TokenSignal, ...]:
    return () if choice.signal is None else (choice.signal,)


def _logprob(choice: Choice, backend: Backend) -> TokenLogprob:
    def show(token: int) -> str:
        return backend.token_bytes(token).decode("utf-8", "replace")

    return TokenLogprob(
        choice.token,
        show(choice.token),
        0.0 if choice.logprob is None else choice.logprob,
        tuple((token, show(token), logprob) for token, logprob in choice.top),
    )
