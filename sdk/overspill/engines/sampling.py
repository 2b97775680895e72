"""Choosing tokens from logits: numpy over the vocabulary, never a Python loop over it.

Order: penalties and bias, temperature, top-k, top-p, min-p, draw. A constraint looks at the token
that was drawn; one that is not allowed is drawn again from those that are, by the same filters and
a second number of the same seed and position. The draw at a position comes from Philox with the
seed as key and the position as counter (Salmon et al., SC 2011), so it is the same whatever runs
beside it, and a continuation elsewhere is a legal continuation.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from overspill.engines.distributions import certainty, draw, log_normalizer, top_tokens, uniform
from overspill.errors import EngineError, InvalidRequest
from overspill.types.chat import Sampling, TokenSignal, Watch

if TYPE_CHECKING:
    import numpy.typing as npt

    from overspill.engines.constraint import Constraint

    Row: TypeAlias = npt.NDArray[np.float32]
    Ids: TypeAlias = npt.NDArray[np.intp]

MAX_TOP_LOGPROBS = 20
_LEAST = np.float32(-1e30)
_LEAST_LOGPROB = -100.0
"""Of a token that the model rules out: a signal is a finite number."""
_MOST_LOGIT = 1e4
MAX_STATE_IDS = 4096


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; ``logprob`` and ``top`` (id, log-probability) only where asked for, and
    ``signal`` for a watched one.

    With ``failure`` there is none: its row holds no numbers, or its constraint gave up. That is
    this request's affair, and the others go on.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    failure: EngineError | InvalidRequest | None = None
    signal: TokenSignal | None = None


def check_sampling(sampling: Sampling, vocabulary_size: int) -> None:
    """Raise :class:`InvalidRequest` for values that mean nothing."""
    ranges = (
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("top_p", sampling.top_p, 1e-9, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("top_k", sampling.top_k, 0, math.inf),
        ("presence_penalty", sampling.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0),
        ("repeat_penalty", sampling.repeat_penalty, 1e-3, 1e3),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise InvalidRequest(
                f"{name} is {value}; it must be between {low:g} and {high:g}.", param=name
            )
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary_size or not math.isfinite(bias):
            raise InvalidRequest(
                f"logit_bias names token {token} with {bias}; tokens go from 0 to "
                f"{vocabulary_size - 1} and a bias is a finite number.",
                param="logit_bias",
            )


def check_watch(watch: Watch | None, vocabulary_size: int) -> None:
    """Raise :class:`InvalidRequest` for signals that there are none of."""
    if watch is None:
        return
    if watch.tokens < 0 or len(watch.state_ids) > MAX_STATE_IDS:
        raise InvalidRequest(
            f"watch asks for {watch.tokens} tokens and {len(watch.state_ids)} logits; it goes from "
            f"0 tokens, and to {MAX_STATE_IDS} logits.",
            param="watch",
        )
    for token in watch.state_ids:
        if not 0 <= token < vocabulary_size:
            raise InvalidRequest(
                f"watch names token {token}; tokens go from 0 to {vocabulary_size - 1}.",
                param="watch",
                mend="The policy's monitor was fitted on another model: calibrate again.",
            )


class TokenSampler:
    """One request's sampler: its options, its seed and the tokens it has seen."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        vocabulary_size: int,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
        watch: Watch | None = None,
    ) -> None:
        check_sampling(sampling, vocabulary_size)
        check_watch(watch, vocabulary_size)
        self._sampling = sampling
        self._top_logprobs = top_logprobs
        self._constraint = constraint
        self._watch = watch
        self._taken = 0
        self._seen: Counter[int] = Counter()
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.intp)
        self._biases = np.fromiter(sampling.logit_bias.values(), np.float32)
        self._penalised = (
            sampling.presence_penalty != 0
            or sampling.frequency_penalty != 0
            or sampling.repeat_penalty != 1
        )

    @property
    def is_argmax(self) -> bool:
        """Whether the choice is the largest raw logit and nothing else is asked."""
        return (
            self._sampling.temperature == 0
            and not self._penalised
            and not self._biases.size
            and self._top_logprobs is None
            and self._constraint is None
            and not self.is_watched
        )

    @property
    def is_watched(self) -> bool:
        """Whether the next token is one of those that come with a signal."""
        return self._watch is not None and self._taken < self._watch.tokens

    def observe(self, token: int) -> None:
        """Take a token of the answer: the penalties count it, the constraint moves on."""
        self._taken += 1
        if self._constraint is not None:
            self._constraint.advance(token)
        if self._penalised:
            self._seen[token] += 1

    @property
    def is_complete(self) -> bool:
        """Whether a constraint leaves nothing to say."""
        return self._constraint is not None and self._constraint.is_finished

    def choose(self, logits: Row, position: int) -> Choice:
        """The token for ``position``, with log-probabilities where asked for."""
        adjusted = self._adjusted(logits)
        token = self._draw(adjusted, position)
        if self._constraint is not None:
            try:
                if not self._constraint.allows(token):
                    token = self._draw_allowed(adjusted, position, self._constraint)
            except (EngineError, InvalidRequest) as error:
                return Choice(token, failure=error)
        signal = self._signal(logits, token) if self.is_watched else None
        if self._top_logprobs is None:
            return Choice(token, signal=signal)
        largest, normalizer = float(logits.max()), log_normalizer(logits)
        best = top_tokens(logits, self._top_logprobs) if self._top_logprobs else ()
        top = tuple((int(i), float(logits[i]) - largest - normalizer) for i in best)
        return Choice(token, float(logits[token]) - largest - normalizer, top, signal=signal)

    def _signal(self, logits: Row, token: int) -> TokenSignal:
        """Of the raw distribution, as the model gave it."""
        found = certainty(logits)
        ids = () if self._watch is None or self._taken else self._watch.state_ids
        return TokenSignal(
            token,
            max(_LEAST_LOGPROB, float(logits[token]) - found.largest - found.normalizer),
            found.margin,
            found.entropy,
            tuple(min(_MOST_LOGIT, max(-_MOST_LOGIT, float(logits[i]))) for i in ids),
        )

    def _adjusted(self, logits: Row) -> Row:
        if not self._seen and not self._biases.size:
            return logits
        adjusted = logits.copy()
        if self._seen:
            self._penalise(adjusted)
        if self._biases.size:
            adjusted[self._bias_ids] += self._biases
        return adjusted

    def _penalise(self, logits: Row) -> None:
        ids = np.fromiter(self._seen.keys(), np.intp)
        counts = np.fromiter(self._seen.values(), np.float32)
        values = logits[ids]
        repeat = self._sampling.repeat_penalty
        values = np.where(values > 0, values / repeat, values * repeat)
        values -= counts * self._sampling.frequency_penalty + self._sampling.presence_penalty
        logits[ids] = values

    def _draw_allowed(self, logits: Row, position: int, constraint: Constraint) -> int:
        allowed = constraint.allowed_ids()
        # What a model rules out by -inf may be all that the grammar allows.
        return int(allowed[self._draw(np.maximum(logits[allowed], _LEAST), position, attempt=1)])

    def _draw(self, logits: Row, position: int, attempt: int = 0) -> int:
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        return draw(logits, self._sampling, uniform(self.seed, position, attempt))


def choose_tokens(
    samplers: Sequence[TokenSampler], logits: Row, positions: Sequence[int]
) -> list[Choice]:
    """One choice for each row of ``logits``; plain greedy rows are done together.

    That of a row without a number to choose by is a ``failure``.
    """
    plain = [i for i, sampler in enumerate(samplers) if sampler.is_argmax]
    choices: dict[int, Choice] = {}
    if plain:
        rows = logits if len(plain) == len(samplers) else logits[plain]
        choices = {
            i: Choice(int(token)) for i, token in zip(plain, rows.argmax(axis=1), strict=True)
        }
    for i, sampler in enumerate(samplers):
        # argmax and max both find a NaN where there is one.
        best = logits[i, choices[i].token] if i in choices else logits[i].max()
        if not math.isfinite(best):
            choices[i] = Choice(0, failure=_not_numbers())
        elif i not in choices:
            choices[i] = sampler.choose(logits[i], positions[i])
    return [choices[i] for i in range(len(samplers))]


def _not_numbers() -> EngineError:
    return EngineError(
        "The model computed logits that are not numbers.",
        mend="Its weights may be damaged: check the file, or try another quantization.",
    )
