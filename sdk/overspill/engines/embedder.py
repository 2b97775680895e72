"""The seam beside :class:`~overspill.engines.base.Engine`: what turns texts into vectors.

A runtime implements :class:`EmbeddingModel`, which is synchronous; :class:`ThreadedEmbedder` gives
it a thread of its own and batches the texts. A worker process is an :class:`Embedder` too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, TypeVar, get_args

from overspill.engines.base import EngineHealth
from overspill.errors import (
    ContextOverflow,
    EngineDied,
    EngineError,
    InvalidRequest,
    OverspillError,
    UnsupportedOption,
)
from overspill.types.card import ModelCard
from overspill.types.embedding import Embedding, EmbedReply, EmbedRequest, Pooling

MAX_TEXTS = 2048
STALL_TOKENS = 256
"""A batch may take ``stall_after_s`` for each so many tokens: a text is computed whole, where a
generating engine takes a step for each chunk of it."""
_T = TypeVar("_T")


class Embedder(ABC):
    """Anything that answers an :class:`EmbedRequest`. Implementers write ``_embed`` and owe:

    - one embedding for each text, in order, whatever else is embedded beside it;
    - a text over the context is ``ContextOverflow``, before anything is computed: never cut;
    - what cannot be honoured is refused by name (``UnsupportedOption``).
    """

    @property
    @abstractmethod
    def card(self) -> ModelCard:
        """Facts about the model; before ``start`` only its name and runtime."""

    @abstractmethod
    async def _embed(self, request: EmbedRequest) -> EmbedReply:
        """Answer the request; see the class's docstring for what is owed."""

    async def start(self) -> None:  # noqa: B027 - some load nothing
        """Load what is needed. Raises ``ModelNotFound``, ``ModelInvalid`` or ``DoesNotFit``."""

    async def aclose(self) -> None:  # noqa: B027 - some hold nothing
        """Stop and free everything. May be called twice."""

    async def health(self) -> EngineHealth:
        """Whether it can answer."""
        return EngineHealth(ok=True)

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """The vectors. Raises :class:`~overspill.errors.OverspillError` only."""
        check_embedding(request)
        try:
            reply = await self._embed(request)
        except OverspillError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self.card.name} failed: {type(error).__name__}: {error}",
                mend="Run `overspill doctor`, or try another model.",
            ) from error
        if len(reply.embeddings) != len(request.texts):
            raise EngineError(f"{self.card.name} did not embed all texts.")
        return reply

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


def check_embedding(request: EmbedRequest) -> None:
    """Refuse, before anything runs, what no embedder can honour."""
    if not 1 <= len(request.texts) <= MAX_TEXTS:
        raise InvalidRequest(
            f"There are {len(request.texts)} texts; an embedding takes 1 to {MAX_TEXTS}.",
            param="texts",
        )
    if request.pooling not in get_args(Pooling):
        raise InvalidRequest(
            f"'pooling' is {request.pooling!r}.",
            param="pooling",
            mend=f"Use {', '.join(get_args(Pooling))}.",
        )
    if request.dimensions is not None and request.dimensions < 1:
        raise InvalidRequest(
            f"dimensions is {request.dimensions}; it must be at least 1.", param="dimensions"
        )


class EmbeddingModel(Protocol):
    """A loaded model, used by one thread only but for ``interrupt`` and ``rearm``.

    ``pooling`` is its own, None where the file names none. ``run`` takes token lists that hold at
    most ``batch_tokens`` together, or one that is longer (up to ``context``), and returns raw
    float32 values in bytes for each.
    """

    @property
    def card(self) -> ModelCard:
        """Facts about it; ``context`` is the most tokens that one text may have."""

    @property
    def dimensions(self) -> int:
        """Values of one vector."""

    @property
    def pooling(self) -> Pooling | None:
        """What it was trained with."""

    @property
    def batch_tokens(self) -> int:
        """Tokens that one ``run`` takes from several texts."""

    @property
    def max_texts(self) -> int:
        """Texts that one ``run`` takes."""

    def tokenize(self, text: str) -> list[int]:
        """With the special tokens that the model wants; marks in the text stay text."""

    def run(
        self, texts: Sequence[Sequence[int]], pooling: Pooling, *, normalize: bool
    ) -> list[bytes]:
        """The vectors of each text."""

    def interrupt(self) -> None:
        """Make the running ``run``, or the next, raise as soon as it can. *Any thread.*"""

    def rearm(self) -> None:
        """Forget an ``interrupt``: the next ``run`` is another's. *Any thread.*"""

    def close(self) -> None:
        """Free everything; may be called twice."""


@dataclass(eq=False, slots=True)
class _Work:
    """What one call has the thread do: some tokens, since when, and whether nobody wants it."""

    tokens: int
    began_s: float = 0.0
    unwanted: bool = False


@dataclass(slots=True)
class _Loaded:
    """A model and its thread, and what that works at."""

    model: EmbeddingModel
    thread: ThreadPoolExecutor
    clock: Callable[[], float]
    guard: threading.Lock = field(default_factory=threading.Lock)
    work: _Work | None = None
    closing: bool = False

    async def run(self, do: Callable[[], _T], tokens: int) -> _T:
        """Have it done on the thread; whoever leaves stops his own work, begun or not."""
        work = _Work(tokens)
        try:
            return await _on(self.thread, lambda: self._do(work, do))
        except asyncio.CancelledError:
            self._leave(work)
            raise

    def stop(self) -> None:
        """Break off what runs, and begin nothing more."""
        with self.guard:
            self.closing = True
            self.model.interrupt()

    def is_stuck(self, stall_after_s: float) -> bool:
        """Whether what runs takes longer than ``stall_after_s`` for each ``STALL_TOKENS``."""
        with self.guard:
            work = self.work
        if work is None:
            return False
        parts = -(-work.tokens // STALL_TOKENS) or 1
        return self.clock() - work.began_s > stall_after_s * parts

    def _do(self, work: _Work, do: Callable[[], _T]) -> _T:
        with self.guard:
            if self.closing or work.unwanted:
                raise EngineDied("The embedder was closed while it worked.", mend="Start it again.")
            work.began_s, self.work = self.clock(), work
            self.model.rearm()
        try:
            return do()
        finally:
            with self.guard:
                self.work = None

    def _leave(self, work: _Work) -> None:
        with self.guard:
            work.unwanted = True
            if self.work is work:
                self.model.interrupt()


class ThreadedEmbedder(Embedder):
    """An :class:`EmbeddingModel` on a thread of its own; requests take turns batch by batch."""

    def __init__(
        self,
        open_model: Callable[[], EmbeddingModel],
        *,
        name: str,
        runtime: str,
        stall_after_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_model = open_model
        self._card = ModelCard(name=name, context=0, runtime=runtime)
        self._stall_after_s = stall_after_s
        self._clock = clock
        self._loaded: _Loaded | None = None
        self._guard = asyncio.Lock()

    @property
    def card(self) -> ModelCard:
        """Facts about the model; before ``start`` only its name and runtime."""
        return self._card

    async def start(self) -> None:
        """Load the model; concurrent calls share one loading."""
        await self._ready()

    async def aclose(self) -> None:
        """Stop what runs and free the model."""
        async with self._guard:
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.stop()
            await _on(loaded.thread, loaded.model.close)
            loaded.thread.shutdown(wait=False, cancel_futures=True)

    async def health(self) -> EngineHealth:
        """``ok`` when loaded, unless a batch takes far too long."""
        if self._loaded is None:
            return EngineHealth(ok=False, detail="not loaded")
        if self._loaded.is_stuck(self._stall_after_s):
            return EngineHealth(ok=False, detail="the batch that runs has not ended in time")
        return EngineHealth(ok=True)

    async def _embed(self, request: EmbedRequest) -> EmbedReply:
        loaded = await self._ready()
        model = loaded.model
        pooling = _pooling(request, model)
        _check_dimensions(request, model)
        tokens = await loaded.run(
            lambda: [model.tokenize(text) for text in request.texts],
            sum(len(text) for text in request.texts),
        )
        _check_lengths(tokens, model.card)
        found: dict[int, bytes] = {}
        for batch in batches([len(text) for text in tokens], model.batch_tokens, model.max_texts):
            vectors = await _run(loaded, [tokens[index] for index in batch], pooling, request)
            found.update(zip(batch, vectors, strict=True))
        embeddings = tuple(
            Embedding(found[index], model.dimensions, len(text))
            for index, text in enumerate(tokens)
        )
        return EmbedReply(embeddings, model.card.name, pooling)

    async def _ready(self) -> _Loaded:
        async with self._guard:
            if self._loaded is None:
                thread = ThreadPoolExecutor(1, thread_name_prefix="overspill-embedder")
                try:
                    model = await _on(thread, self._open_model)
                except BaseException:
                    thread.shutdown(wait=False)
                    raise
                self._loaded, self._card = _Loaded(model, thread, self._clock), model.card
            return self._loaded


async def _run(
    loaded: _Loaded, texts: list[list[int]], pooling: Pooling, request: EmbedRequest
) -> list[bytes]:
    return await loaded.run(
        lambda: loaded.model.run(texts, pooling, normalize=request.normalize),
        sum(len(text) for text in texts),
    )


async def _on(thread: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)


def batches(lengths: Sequence[int], batch_tokens: int, max_texts: int) -> Iterator[list[int]]:
    """Indices of texts that run together: texts of like length, up to the limits.

    A text that is longer than a batch runs alone.
    """
    batch: list[int] = []
    room = batch_tokens
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (lengths[index] > room or len(batch) == max_texts):
            yield batch
            batch, room = [], batch_tokens
        batch.append(index)
        room -= lengths[index]
    if batch:
        yield batch


def _pooling(request: EmbedRequest, model: EmbeddingModel) -> Pooling:
    if request.pooling != "model":
        return request.pooling
    if model.pooling is None:
        raise UnsupportedOption(
            f"{model.card.name} names no pooling of its own: it was not made for embeddings.",
            param="pooling",
            mend="Say pooling: mean, cls, last or none; or use an embedding model.",
        )
    return model.pooling


def _check_dimensions(request: EmbedRequest, model: EmbeddingModel) -> None:
    if request.dimensions not in (None, model.dimensions):
        raise UnsupportedOption(
            f"{model.card.name} gives vectors of {model.dimensions} values; it does not say that "
            f"it was trained for {request.dimensions}.",
            param="dimensions",
            mend="Leave dimensions out.",
        )


def _check_lengths(texts: Sequence[Sequence[int]], card: ModelCard) -> None:
    for index, tokens in enumerate(texts):
        if len(tokens) > card.context:
            raise ContextOverflow(len(tokens), 0, card.context, card.name)
        if not tokens:
            raise InvalidRequest(
                f"Text {index} is empty: it has no token.", param="texts", mend="Leave it out."
            )
