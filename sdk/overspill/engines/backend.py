"""What a runtime owes the scheduler: open a model, run a batch, edit the KV cache. Nothing else.

A backend knows no request, no queue, no sampling and no text format; it is synchronous and is
called on the scheduler's thread only, but for what is marked *any thread*. To add one, write a
class with these members, add a line to ``registry`` and a row to the conformance suite.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from overspill.types.card import ModelCard

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Logits: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BatchRow:
    """Tokens to append to one sequence, from ``position`` on (0 is the sequence's first token).

    ``wants_logits`` asks for the logits after the last of these tokens.
    """

    sequence: int
    position: int
    tokens: Sequence[int]
    wants_logits: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Facts about a model's tokens.

    ``bos_id`` is set only when the model expects its prompts to begin with it. ``end_ids`` end
    an answer. ``bos_text`` and ``eos_text`` are what a chat template calls ``bos_token`` and
    ``eos_token``. ``control_texts`` are the texts of control tokens: what a message must not
    be able to write.
    """

    size: int
    end_ids: Container[int]
    bos_id: int | None = None
    bos_text: str = ""
    eos_text: str = ""
    control_texts: tuple[str, ...] = ()


class Interrupted(Exception):
    """``run`` was stopped by ``interrupt``; the sequences of the batch are to be forgotten."""


class Backend(Protocol):
    """A loaded model. Opening one raises ``ModelNotFound``, ``ModelInvalid``, ``DoesNotFit``.

    Owed by an implementer:

    - ``run`` appends every row to its sequence and returns float32 logits, one row of
      ``vocabulary.size`` for each :class:`BatchRow` that wants them, in batch order. The array
      may be a view that the next ``run`` overwrites. Rows of different sequences don't influence
      each other. A failure raises :class:`~overspill.errors.EngineError`.
    - ``forget(sequence, position)`` drops the cache of that sequence from ``position`` on.
    - ``copy_prefix`` makes the first ``tokens`` tokens of ``source`` those of ``target`` too.
    - ``token_bytes`` gives the bytes that a token adds to an answer: parts of UTF-8 characters
      are fine, control tokens give ``b""``.
    - ``tokenize`` never adds tokens of its own; control tokens written in the text are
      recognised when ``special`` is true.
    - ``interrupt`` makes a running ``run`` raise :class:`Interrupted` as soon as it can; when
      nothing runs, it does nothing.
    - ``close`` frees everything and may be called twice.
    """

    @property
    def card(self) -> ModelCard:
        """Facts about the model; ``card.context`` equals ``context_per_sequence``."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Facts about its tokens."""

    @property
    def chat_template(self) -> str | None:
        """The model's own jinja2 template, untrusted; None for a model without one."""

    @property
    def max_sequences(self) -> int:
        """Sequences that can live at once: numbered from 0."""

    @property
    def context_per_sequence(self) -> int:
        """Tokens that one sequence can hold."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that all sequences together can hold."""

    @property
    def batch_tokens(self) -> int:
        """Tokens that one ``run`` can take."""

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text. *Any thread.*"""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to an answer. *Any thread.*"""

    def run(self, rows: Sequence[BatchRow]) -> Logits:
        """Append the rows, at most ``batch_tokens`` tokens together, and return logits."""

    def forget(self, sequence: int, position: int) -> None:
        """Drop a sequence's cache from ``position`` on."""

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Let ``target`` begin with the first ``tokens`` tokens of ``source``."""

    def set_threads(self, threads: int) -> None:
        """CPU threads from the next ``run`` on; ignored where the runtime has no choice."""

    def interrupt(self) -> None:
        """Stop a running ``run``. *Any thread.*"""

    def close(self) -> None:
        """Free the model."""
