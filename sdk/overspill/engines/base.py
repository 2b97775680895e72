"""The engine seam: what a local model, a worker process and an attested cloud have in common.

An implementer writes ``_generate`` (and what is abstract below) and owes this:

- yield :class:`~overspill.types.chat.Chunk` objects; the last one, and only it, has ``finish``;
- text is valid UTF-8 at every boundary and is never repeated or dropped;
- refuse (``UnsupportedOption``, ``ContextOverflow``) before the first chunk, or not at all;
- stop working within one decode step when the generator is closed;
- ``finish.model`` names the model that really answered.

``generate`` guards the seam: foreign exceptions leave it as :class:`~overspill.errors.EngineError`
and a stream without its end is an error, never a short answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from overspill.errors import EngineError, OverspillError, UnsupportedOption
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request
from overspill.types.shown import check_shown


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """``ok`` means that the engine moved in the last seconds, not that something listens.

    Of ``drafted_tokens`` guesses that were checked since the start, ``accepted_tokens`` were right.
    ``notes`` are what was asked for and is not done, though answers are right without it.
    """

    ok: bool
    detail: str = ""
    active: int = 0
    queued: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    notes: tuple[str, ...] = ()


def no_vision(model: str) -> UnsupportedOption:
    """The refusal of a picture by a model that cannot see it."""
    return UnsupportedOption(
        f"{model} cannot read images: it has no vision part (a projector, mmproj).",
        param="messages",
        mend="Send text only, or use a model that reads images.",
    )


class Engine(ABC):
    """Anything that answers a :class:`Request` with a stream of :class:`Chunk`."""

    @property
    @abstractmethod
    def card(self) -> ModelCard:
        """Facts about the model that answers."""

    @abstractmethod
    def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        """Answer the request; see the module's docstring for what is owed."""

    @abstractmethod
    async def count_prompt_tokens(self, request: Request) -> int | None:
        """Tokens of the rendered prompt by the model's own tokenizer; None where unknown."""

    async def start(self) -> None:  # noqa: B027 - most engines load nothing
        """Load what is needed. Raises ``ModelNotFound``, ``ModelInvalid`` or ``DoesNotFit``."""

    async def aclose(self) -> None:  # noqa: B027 - most engines hold nothing
        """Stop all generations and free everything. May be called twice."""

    async def health(self) -> EngineHealth:
        """Whether the engine really moves."""
        return EngineHealth(ok=True)

    def queue_position(self, request_id: str) -> int | None:
        """How many requests wait ahead of this one; None when it isn't queued, or unknown."""
        return None

    @property
    def loading(self) -> float | None:
        """The share of the model that is loaded, as far as anybody knows, while it is being loaded;
        None at all other times."""
        return None

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        """Yield the answer; closing the generator cancels the work.

        Raises :class:`~overspill.errors.OverspillError` only.
        """
        if request.has_images and "image" not in self.card.modalities:
            raise no_vision(self.card.name)
        check_shown(request.messages)
        finished = False
        try:
            async with aclosing(self._generate(request)) as chunks:
                async for chunk in chunks:
                    if finished:
                        raise EngineError(f"{self.card.name} went on after its end.")
                    finished = chunk.finish is not None
                    yield chunk
        except OverspillError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self.card.name} failed: {type(error).__name__}: {error}",
                mend="Run `overspill doctor`, or try another model.",
            ) from error
        if not finished:
            raise EngineError(f"{self.card.name} stopped without an end.")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
