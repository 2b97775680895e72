"""Holds an answer to a grammar, token by token, by llguidance.

The common step is cheap: the sampler draws as it always does and asks whether that one token is
allowed (microseconds). Only when it isn't, the mask over the whole vocabulary is computed and the
token drawn again from what is allowed. llguidance reads the vocabulary from the backend
(``Vocabulary`` and ``token_bytes``), so llama.cpp, MLX and echo are held alike.

Source: https://github.com/guidance-ai/llguidance, docs/syntax.md and docs/json_schema.md.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from overspill.engines.backend import Backend
from overspill.errors import EngineError, InvalidRequest, MissingExtra, UnsupportedOption

if TYPE_CHECKING:
    import numpy.typing as npt
    from llguidance import LLMatcher, LLTokenizer

    Ids = npt.NDArray[np.intp]

MAX_GRAMMAR_CHARS = 512 * 1024
"""Longer grammars are refused before they are compiled."""

MAX_COMPILED = 32
"""Compiled grammars that are kept."""

_SATISFIED = frozenset({"NoExtension", "NoExtensionBias", "EndOfSentence"})


def is_available() -> bool:
    """Whether llguidance is installed."""
    return find_spec("llguidance") is not None


class Constraint:
    """One answer's place in the grammar that ``param`` asks for. Used by one thread at a time."""

    def __init__(
        self, matcher: LLMatcher, *, vocabulary_size: int, end_ids: Sequence[int], param: str
    ) -> None:
        self._matcher = matcher
        self._param = param
        self._has_begun = False
        self._size = vocabulary_size
        self._end_ids = frozenset(end_ids)
        self._broken = ""

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow: the answer is complete and may only end."""
        return self._matcher.is_stopped() and self._matcher.stop_reason() in _SATISFIED

    def allows(self, token: int) -> bool:
        """Whether the answer may go on with this token, or end where it is an end token.

        Raises :class:`EngineError` where llguidance gave up on the grammar.
        """
        if self._broken:
            self._fail(self._broken)
        if token in self._end_ids:
            return self._matcher.is_accepting()
        return self._matcher.validate_tokens([token]) == 1

    def allowed_ids(self) -> Ids:
        """Ids of all tokens that may follow, ascending; never empty.

        Raises :class:`EngineError` where llguidance gave up on the grammar, and
        :class:`InvalidRequest` where it allows no answer at all (it refers to itself alone, say).
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        reason = self._matcher.stop_reason()
        if self._matcher.is_error() or (reason != "NotStopped" and reason not in _SATISFIED):
            self._fail(reason)
        ids = np.flatnonzero(np.unpackbits(bits, count=self._size, bitorder="little"))
        if not ids.size:
            self._fail("it allows no token of this model here")
        return ids

    def advance(self, token: int) -> None:
        """Take a token of the answer; what goes wrong is raised when the next one is asked for."""
        self._has_begun = True
        if token not in self._end_ids and not self._matcher.consume_token(token):
            self._broken = self._matcher.stop_reason()

    def advance_text(self, tokens: Sequence[int]) -> bool:
        """Take tokens that the answer already begins with; False where they break the grammar."""
        self._has_begun = True
        return self._matcher.try_consume_tokens(list(tokens)) == len(tokens)

    def _fail(self, why: str) -> None:
        if not self._has_begun:
            raise InvalidRequest(
                f"The grammar of '{self._param}' allows no answer at all.",
                param=self._param,
                mend="Give one that some text meets.",
            )
        raise EngineError(
            f"The answer cannot be held to its grammar any further: {why}.",
            mend="Use a simpler schema or grammar.",
        )


class Constrainer:
    """Makes constraints for one loaded model. Methods may be called from any thread.

    The vocabulary is read on first use (about a second for 150,000 tokens) and kept. So are the
    last compiled grammars of each scope: a schema takes milliseconds to compile and a copy of the
    result microseconds, but by that time others could tell who asked for the same before.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._vocabulary: _GuidanceVocabulary | None = None
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[Hashable, str], LLMatcher] = OrderedDict()

    def constrain(
        self, grammar: str, *, param: str, prefix: str = "", scope: Hashable | None = None
    ) -> Constraint:
        """A constraint at the start of ``grammar`` (Lark, in llguidance's dialect).

        ``prefix`` is text that the answer already has. ``scope`` says with whom the compiled
        grammar may be shared; None shares with nobody. Raises :class:`InvalidRequest` naming
        ``param`` for a grammar that doesn't compile or that the prefix breaks,
        :class:`MissingExtra`, :class:`UnsupportedOption` for a model without an end token.
        """
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise InvalidRequest(
                f"The grammar of '{param}' is {len(grammar)} characters long "
                f"(limit {MAX_GRAMMAR_CHARS}).",
                param=param,
            )
        tokenizer, end_ids = self._prepared(param)
        matcher = self._matcher(tokenizer, grammar, scope)
        if matcher.is_error():
            raise InvalidRequest(
                f"The grammar of '{param}' is refused: {one_line(matcher.get_error())}.",
                param=param,
            )
        size = self._backend.vocabulary.size
        constraint = Constraint(matcher, vocabulary_size=size, end_ids=end_ids, param=param)
        if prefix and not constraint.advance_text(tokenizer.greedy_tokenize(prefix)):
            raise InvalidRequest(f"The answer's prefix already breaks '{param}'.", param="prefix")
        return constraint

    def _matcher(self, tokenizer: LLTokenizer, grammar: str, scope: Hashable | None) -> LLMatcher:
        """A matcher at the start of the grammar, which may be in error."""
        from llguidance import LLMatcher

        key = scope, grammar
        with self._lock:
            if scope is not None and key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key].deep_copy()
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if scope is not None and not matcher.is_error():
            with self._lock:
                self._compiled[key] = matcher.deep_copy()
                while len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
        return matcher

    def _prepared(self, param: str) -> tuple[LLTokenizer, Sequence[int]]:
        need_llguidance()
        with self._lock:
            if self._vocabulary is None or self._tokenizer is None:
                self._vocabulary = _GuidanceVocabulary(self._backend)
                if not self._vocabulary.end_ids:
                    raise UnsupportedOption(
                        f"{self._backend.card.name} has no end token: an answer held to a grammar "
                        "could not end.",
                        param=param,
                        mend="Use another model.",
                    )
                self._tokenizer = _tokenizer(self._vocabulary)
            return self._tokenizer, self._vocabulary.end_ids


class _GuidanceVocabulary:
    """A backend's vocabulary in the shape that llguidance's TokenizerWrapper reads.

    Control tokens have no bytes, so no text of a grammar matches them; a grammar names them by
    id (``<[128010]>``).
    """

    def __init__(self, backend: Backend) -> None:
        vocabulary = backend.vocabulary
        self._backend = backend
        ids = range(vocabulary.size)
        self.end_ids = [token for token in ids if token in vocabulary.end_ids]
        self.tokens = [backend.token_bytes(token) for token in ids]
        for token in self.end_ids:
            self.tokens[token] = b""
        self.eos_token_id = self.end_ids[0] if self.end_ids else 0
        self.bos_token_id = vocabulary.bos_id
        self.special_token_ids: list[int] = []

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens that spell exactly this text: llguidance asks how the model would go on."""
        data = text.encode() if isinstance(text, str) else text
        tokens = self._backend.tokenize(data.decode("utf-8", "replace"), special=False)
        if b"".join(self.tokens[token] for token in tokens) == data:
            return tokens
        # SentencePiece puts a space before a text of its own.
        return self._longest_first(data)

    @functools.cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        return {data: token for token, data in enumerate(self.tokens) if data}

    def _longest_first(self, data: bytes) -> list[int]:
        longest = max(map(len, self._by_bytes))
        tokens, at = [], 0
        while at < len(data):
            sizes = range(min(longest, len(data) - at), 0, -1)
            size = next((n for n in sizes if data[at : at + n] in self._by_bytes), 0)
            if not size:
                break
            tokens.append(self._by_bytes[data[at : at + size]])
            at += size
        return tokens


def need_llguidance() -> None:
    """Raise :class:`MissingExtra` where llguidance is not installed."""
    if not is_available():
        raise MissingExtra("Holding an answer to a schema or grammar", "local")


def one_line(message: str) -> str:
    """llguidance's message without its pictures and parser states, on one line."""
    head = message.split("\n<state>")[0]
    lines = [line.strip() for line in head.splitlines() if "|" not in line[:8]]
    text = " ".join(line for line in lines if line and set(line) != {"^"})
    return text[:300].rstrip(". ")


def _tokenizer(vocabulary: _GuidanceVocabulary) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    wrapped: Any = TokenizerWrapper(vocabulary)
    return LLTokenizer(wrapped, n_vocab=len(vocabulary.tokens), eos_token=list(vocabulary.end_ids))
