"""What a runtime owes the scheduler: open a model, run a batch, edit the KV cache. Nothing else.

A backend knows no request, no queue, no sampling and no text format; it is synchronous and is
called on the scheduler's thread only, but for what is marked *any thread*. To add one, write a
class with these members, add a line to ``registry`` and a row to the conformance suite.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from overspill.types.card import ModelCard
from overspill.types.chat import Image

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Logits: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """What a projector made of an image: vectors that stand where tokens would.

    ``vectors`` are [tokens, width]. ``positions`` are [sections, tokens] in the sequence where
    the model counts an image's in more than one dimension, else None. ``advance`` is by how many
    positions the sequence goes on; elsewhere that is one for each token. ``sees_itself``: its
    vectors see those behind them too.
    """

    vectors: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int32] | None
    advance: int
    sees_itself: bool = False


@dataclass(frozen=True, slots=True)
class BatchRow:
    """Tokens to append to one sequence, from ``position`` on (0 is the sequence's first token).

    ``wants_logits`` asks for the logits after the last ``outputs`` of these tokens, one row each.
    With a ``picture`` the row is as long a part of it as there are tokens, which say nothing
    themselves, from its ``picture_from`` on; such a row never wants logits.
    """

    sequence: int
    position: int
    tokens: Sequence[int]
    wants_logits: bool
    outputs: int = 1
    picture: Picture | None = None
    picture_from: int = 0


PromptPart: TypeAlias = "tuple[str, bool] | Image"
"""Text with whether control tokens count in it, or an image."""


@dataclass(frozen=True, slots=True)
class PictureSpan:
    """Where a picture stands in a prompt: ``tokens`` of them from ``start`` on.

    ``image`` counts the prompt's images; one may be cut into several pictures. ``whole``: its
    vectors see each other, so that they have to be computed in one row.
    """

    start: int
    tokens: int
    image: int
    whole: bool


class Vision(Protocol):
    """What makes pictures of images. All members may be called while the backend runs.

    ``shares``: a picture is the same wherever it stands, so that computed prompts can be reused.
    """

    @property
    def shares(self) -> bool:
        """Whether prompts with pictures may be reused by others."""

    def measure(self, parts: Sequence[PromptPart]) -> tuple[list[int], tuple[PictureSpan, ...]]:
        """A prompt's tokens, and where pictures stand in it; no image is decoded. *Any thread.*

        A picture's tokens are negative and tell images apart. Raises ``InvalidRequest`` or
        ``UnsupportedOption`` for an image that cannot be shown.
        """

    def encode(
        self, parts: Sequence[PromptPart], wanted: Sequence[int]
    ) -> Iterator[tuple[int, Picture]]:
        """Each wanted span's number and its picture, one by one as they are computed.

        One caller at a time. Raises ``InvalidRequest`` for an image that does not decode,
        ``EngineError`` where the runtime fails.
        """


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a runtime or a model may lack; by default it lacks everything.

    ``cuts``: ``forget`` works at every position, so that a prefix can be kept and a draft taken
    back. ``saves_state``: ``save_state`` and ``load_state`` work. ``adapters``: names that
    ``use_adapter`` takes. ``most_threads``: CPU threads that ``set_threads`` may choose up to;
    0 where there is nothing to choose, or somebody fixed them. ``vision``: what reads images, so
    that rows may have pictures.
    """

    cuts: bool = False
    saves_state: bool = False
    adapters: tuple[str, ...] = ()
    most_threads: int = 0
    vision: Vision | None = None


@dataclass(frozen=True, slots=True)
class SavedState:
    """A sequence's cache, kept outside the backend; ``data`` means something to its maker only."""

    data: object
    size_bytes: int


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

    - ``run`` appends every row to its sequence and returns float32 logits, ``outputs`` rows of
      ``vocabulary.size`` for each :class:`BatchRow` that wants them, in batch order. The array
      may be a view that the next ``run`` overwrites. Rows of different sequences don't influence
      each other. A failure raises :class:`~overspill.errors.EngineError`.
    - ``forget(sequence, position)`` drops the cache of that sequence from ``position`` on.
    - ``save_state`` copies a sequence's cache out; ``load_state`` makes it the whole cache of a
      sequence, whichever it came from. A failure raises ``EngineError`` and leaves that sequence
      to be forgotten. Called only where ``abilities`` say so, as is ``use_adapter``, which
      decides by which LoRA adapter (None: by none) the next ``run`` computes.
    - ``copy_prefix`` makes the first ``tokens`` tokens of ``source`` those of ``target`` too.
    - ``token_bytes`` gives the bytes that a token adds to an answer: parts of UTF-8 characters
      are fine, control tokens give ``b""``.
    - ``tokenize`` never adds tokens of its own; control tokens written in the text are
      recognised when ``special`` is true.
    - ``interrupt`` makes the ``run`` that runs, or else the next one, raise :class:`Interrupted` as
      soon as it can; ``rearm`` takes back an interrupt that came after the ``run`` it was for.
    - ``close`` frees everything and may be called twice.
    """

    @property
    def card(self) -> ModelCard:
        """Facts about the model; ``card.context`` equals ``context_per_sequence``."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Facts about its tokens."""

    @property
    def abilities(self) -> Abilities:
        """What this runtime can do with this model."""

    @property
    def chat_template(self) -> str | None:
        """The model's own jinja2 template, untrusted; None for a model without one."""

    @property
    def tool_template(self) -> str | None:
        """The one that the model keeps for tools (named ``tool_use``), untrusted; None where the
        other one serves for all."""

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

    def save_state(self, sequence: int) -> SavedState:
        """A copy of the sequence's cache."""

    def load_state(self, sequence: int, state: SavedState) -> None:
        """Make a saved cache the cache of ``sequence``."""

    def use_adapter(self, name: str | None) -> None:
        """Compute with this LoRA adapter from the next ``run`` on."""

    def set_threads(self, threads: int) -> None:
        """CPU threads from the next ``run`` on; ignored where the runtime has no choice."""

    def interrupt(self) -> None:
        """Stop ``run``. *Any thread.*"""

    def rearm(self) -> None:
        """Let the next ``run`` go on whatever was interrupted before."""

    def close(self) -> None:
        """Free the model."""


@runtime_checkable
class Rests(Protocol):
    """A backend that has something to let go while nothing is asked of it."""

    def rest(self) -> None:
        """Nothing is to be run for a while; told at once, and again every second of it."""
