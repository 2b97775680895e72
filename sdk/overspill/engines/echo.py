"""`echo`: a backend without weights, so that every feature can be tried in seconds.

It is a language model over bytes whose most likely answer is ``echo: `` and the last user
message, spelled byte by byte. It says what it is in every answer. With tools offered, the
message ``call NAME {"argument": ...}`` is answered by that tool call. An adapter of whatever
name makes it answer ``echo[NAME]: ``. A raw prompt, without turns, goes on with a line break and
the same answer to all of it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from overspill.engines.backend import Abilities, BatchRow, Interrupted, SavedState, Vocabulary
from overspill.errors import EngineError, InvalidRequest
from overspill.types.card import ModelCard

if TYPE_CHECKING:
    from overspill.engines.backend import Logits

START = 256
END = 257
VOCABULARY_SIZE = 258
DEFAULT_CONTEXT_TOKENS = 8192
HEAD = b"assistant\n"
PEAK = 16.0
"""Logit of the next byte of the answer; the others lie in [0, 1)."""

_MARKS = {"<|im_start|>": START, "<|im_end|>": END}
_MARK_PATTERN = re.compile("(" + "|".join(re.escape(mark) for mark in _MARKS) + ")")
_CALL_PATTERN = re.compile(r"call (\w+) (\{.*\})", re.DOTALL)

TEMPLATE = """\
{%- if tools %}<|im_start|>system
<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools><|im_end|>
{% endif -%}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}\
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>\
{%- endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


@dataclass(frozen=True, slots=True)
class EchoOptions:
    """``token_delay_s`` is waited once in each step, as a model's time would be."""

    name: str = "echo"
    context_tokens: int = DEFAULT_CONTEXT_TOKENS
    max_sequences: int = 16
    batch_tokens: int = 2048
    token_delay_s: float = 0.0
    adapters: tuple[str, ...] = ()


@dataclass(slots=True)
class _Sequence:
    """A cache: its tokens, where the assistant's turn begins, and what it is to say there."""

    tokens: list[int] = field(default_factory=list)
    begin: int = 0
    answer: bytes | None = None
    adapter: str | None = None
    is_raw: bool = False

    def append(self, tokens: Sequence[int]) -> None:
        said = len(self.tokens) - self.begin
        self.tokens.extend(tokens)
        # A turn begins, or a raw prompt goes on with something else than its answer.
        if START in tokens or (self.is_raw and not self._goes_on(said, tokens)):
            self.answer = None

    def _goes_on(self, said: int, tokens: Sequence[int]) -> bool:
        expected = b"" if self.answer is None else self.answer[said : said + len(tokens)]
        return list(expected) == list(tokens)

    def cut(self, position: int) -> None:
        del self.tokens[position:]
        self.answer = None

    def next_token(self, adapter: str | None) -> int:
        if self.answer is None or adapter != self.adapter:
            turn = _last_turn(self.tokens)
            self.adapter, self.is_raw = adapter, turn is None
            if turn is None:
                self.begin, self.answer = _continuation(self.tokens, adapter)
            else:
                prompt, self.begin = turn
                self.answer = _answer(prompt, adapter)
        said = len(self.tokens) - self.begin
        if said < 0:
            # A draft may end within the turn's head.
            return HEAD[said]
        return self.answer[said] if said < len(self.answer) else END


class EchoBackend:
    """See the module's docstring; everything it knows of a prompt it reads from its cache.

    Threads, exact attention and a smaller context where memory is short are taken and change
    nothing: it computes nothing, and has no weights.
    """

    def __init__(self, options: EchoOptions | None = None) -> None:
        self._options = options or EchoOptions()
        if self._options.context_tokens < 1 or self._options.max_sequences < 1:
            raise InvalidRequest("echo needs room for one sequence of one token at least.")
        self._cache = [_Sequence() for _ in range(self._options.max_sequences)]
        self._interrupted = threading.Event()
        self._adapter: str | None = None
        # Fixed, so that sampling has something to choose from and every run is the same.
        self._noise = np.random.Generator(np.random.Philox(key=1)).random(
            VOCABULARY_SIZE, dtype=np.float32
        )

    @property
    def card(self) -> ModelCard:
        """It names itself: nobody is to take its answers for a model's."""
        return ModelCard(
            name=self._options.name,
            context=self._options.context_tokens,
            runtime="echo",
            quantization="none",
            tools=True,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """256 bytes and two marks."""
        return Vocabulary(
            VOCABULARY_SIZE, frozenset({END}), eos_text="<|im_end|>", control_texts=tuple(_MARKS)
        )

    @property
    def abilities(self) -> Abilities:
        """All, but for threads: it computes nothing."""
        return Abilities(cuts=True, saves_state=True, adapters=self._options.adapters)

    @property
    def chat_template(self) -> str | None:
        """ChatML, with tools."""
        return TEMPLATE

    @property
    def tool_template(self) -> str | None:
        """The same."""
        return None

    @property
    def max_sequences(self) -> int:
        """As the options say."""
        return self._options.max_sequences

    @property
    def context_per_sequence(self) -> int:
        """As the options say."""
        return self._options.context_tokens

    @property
    def kv_tokens(self) -> int:
        """Every sequence may fill its context."""
        return self._options.context_tokens * self._options.max_sequences

    @property
    def batch_tokens(self) -> int:
        """As the options say."""
        return self._options.batch_tokens

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """UTF-8 bytes; ChatML's marks are one token each."""
        if not special:
            return list(text.encode())
        tokens: list[int] = []
        for part in _MARK_PATTERN.split(text):
            tokens += [_MARKS[part]] if part in _MARKS else part.encode()
        return tokens

    def token_bytes(self, token: int) -> bytes:
        """The byte itself; marks show nothing."""
        return bytes([token]) if token < START else b""

    def run(self, rows: Sequence[BatchRow]) -> Logits:
        """Append, wait the delay, and point at the next byte of each answer."""
        wanted: list[Logits] = []
        for row in rows:
            cache = self._cache[row.sequence]
            if len(cache.tokens) != row.position:
                raise EngineError(
                    f"echo: sequence {row.sequence} holds {len(cache.tokens)} tokens, "
                    f"not {row.position}."
                )
            plain = len(row.tokens) - (row.outputs if row.wants_logits else 0)
            cache.append(row.tokens[:plain])
            for token in row.tokens[plain:]:
                cache.append([token])
                wanted.append(self._logits(cache))
        if self._interrupted.wait(self._options.token_delay_s):
            raise Interrupted
        return np.array(wanted, np.float32).reshape(len(wanted), VOCABULARY_SIZE)

    def forget(self, sequence: int, position: int) -> None:
        """Cut the sequence's cache."""
        self._cache[sequence].cut(position)

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copy the tokens."""
        self._cache[target].cut(0)
        self._cache[target].append(self._cache[source].tokens[:tokens])

    def save_state(self, sequence: int) -> SavedState:
        """Its tokens."""
        tokens = list(self._cache[sequence].tokens)
        return SavedState(tokens, 4 * len(tokens))

    def load_state(self, sequence: int, state: SavedState) -> None:
        """Those tokens."""
        if not isinstance(state.data, list):
            raise EngineError("echo: that is no state of mine.")
        self._cache[sequence].cut(0)
        self._cache[sequence].append(state.data)

    def use_adapter(self, name: str | None) -> None:
        """Answer in this name."""
        self._adapter = name

    def set_threads(self, threads: int) -> None:
        """It computes nothing."""

    def interrupt(self) -> None:
        """End a running delay."""
        self._interrupted.set()

    def rearm(self) -> None:
        """Wait again."""
        self._interrupted.clear()

    def close(self) -> None:
        """Forget everything."""
        for cache in self._cache:
            cache.cut(0)

    def _logits(self, cache: _Sequence) -> Logits:
        logits = np.roll(self._noise, len(cache.tokens))
        logits[cache.next_token(self._adapter)] = PEAK
        return logits


def _last_turn(tokens: list[int]) -> tuple[list[int], int] | None:
    """The prompt before the assistant's turn, and where that turn's text begins."""
    for at in range(len(tokens) - 1, -1, -1):
        if tokens[at] == START:
            return tokens[:at], at + 1 + len(HEAD)
    return None


def _continuation(tokens: list[int], adapter: str | None) -> tuple[int, bytes]:
    """Where a raw prompt ends, and what follows it: at the first line break behind which there is
    nothing but what would be said there, else at the end."""
    text = bytes(token for token in tokens if token < START)
    at = text.find(b"\n", 1)
    while at > 0:
        answer = b"\n" + _name(adapter) + text[:at]
        if answer.startswith(text[at:]):
            return at, answer
        at = text.find(b"\n", at + 1)
    return len(text), b"\n" + _name(adapter) + text


def _name(adapter: str | None) -> bytes:
    return f"echo[{adapter}]: ".encode() if adapter else b"echo: "


def _answer(prompt: list[int], adapter: str | None) -> bytes:
    """``echo: `` and the last user or tool turn; or the tool call that it asks for."""
    turns = bytes(token if token < START else 0 for token in prompt).split(b"\0")
    spoken = [turn for turn in turns if turn.startswith((b"user\n", b"tool\n"))]
    last = spoken[-1].partition(b"\n")[2] if spoken else b""
    return _tool_call(turns, last) or _name(adapter) + last


def _tool_call(turns: list[bytes], message: bytes) -> bytes | None:
    found = _CALL_PATTERN.fullmatch(message.decode("utf-8", "replace").strip())
    if found is None or not any(turn.startswith(b"system\n<tools>") for turn in turns):
        return None
    name, arguments = found.groups()
    try:
        call = {"name": name, "arguments": json.loads(arguments)}
    except json.JSONDecodeError:
        return None
    return f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>".encode()
