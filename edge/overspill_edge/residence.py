"""The device's model in memory: loaded when it is needed, let go when nobody needed it for a while.

A model that answers, or counts a prompt, is never let go of. Its card stays known while it is
away, so that where a request runs does not depend on what happens to be loaded.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal

from overspill.engines.base import Engine, EngineHealth
from overspill.errors import BusyError, EngineDied, EngineError, InvalidRequest, OverspillError
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request

logger = logging.getLogger(__name__)

FOREVER = math.inf
ResidenceState = Literal["unloaded", "loading", "loaded"]
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class ModelBusy(BusyError):
    """A model that answers is not let go of."""

    code = "model_busy"


def parse_keep_alive_s(value: str | float) -> float:
    """Seconds of ``"10m"``, ``"90s"``, ``300``; 0 lets go at once, below 0 is forever.

    Raises ``InvalidRequest``.
    """
    if isinstance(value, int | float) and math.isfinite(value):
        return FOREVER if value < 0 else float(value)
    match = _SPAN.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is not None:
        return float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, str) and (value == "forever" or value.strip().startswith("-")):
        return FOREVER
    raise InvalidRequest(
        "'keep_alive' is not a length of time.",
        param="keep_alive",
        mend='Say for example "10m", 300 (seconds), 0 (let go at once) or "forever".',
    )


@dataclass(frozen=True, slots=True)
class Residence:
    """Where the model is. ``unloads_in_s`` counts once nobody uses it; None is never, or unknown
    while it is in use or away. ``loaded_share`` is from 0 to 1, as far as anybody knows."""

    state: ResidenceState
    users: int
    keep_alive_s: float | None
    unloads_in_s: float | None
    loaded_share: float

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {
            "state": self.state,
            "users": self.users,
            "keep_alive_s": self.keep_alive_s,
            "unloads_in_s": self.unloads_in_s,
            "loaded_share": self.loaded_share,
        }


class ResidentEngine(Engine):
    """The engine that ``open_engine`` gives, opened anew after each time that it was let go of.

    ``keep_alive_s`` is how long it stays after the last use; a request may ask for another time
    (:meth:`keeping`), which holds until the next request.
    """

    def __init__(self, open_engine: Callable[[], Engine], *, keep_alive_s: float = FOREVER) -> None:
        self._open_engine = open_engine
        self._keep_alive_s = self._stays_s = keep_alive_s
        self._engine: Engine | None = None
        self._opening: Engine | None = None
        self._loading: asyncio.Task[Engine] | None = None
        self._card: ModelCard | None = None
        self._users = 0
        self._moving = asyncio.Lock()
        self._expiry: asyncio.TimerHandle | None = None
        self._asked: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def card(self) -> ModelCard:
        """Facts about the model, also while it is away; raises before it was ever loaded."""
        if self._card is None:
            raise EngineError("The model was not loaded yet.", mend="Start the engine first.")
        return self._card

    @property
    def is_known(self) -> bool:
        """Whether it was loaded once, and can be again."""
        return self._card is not None

    @property
    def residence(self) -> Residence:
        """Where the model is now."""
        left = None
        if self._expiry is not None:
            left = round(max(0.0, self._expiry.when() - asyncio.get_running_loop().time()), 3)
        stays = None if self._stays_s == FOREVER else self._stays_s
        return Residence(self._state, self._users, stays, left, self._share)

    @property
    def loaded_while_away(self) -> float | None:
        """The share that is loaded; None once all of it is there."""
        share = self.loading
        return 0.0 if share is None and self._engine is None else share

    @property
    def loading(self) -> float | None:
        """Also where an engine that was loaded is being started anew: its worker had died."""
        engine = self._opening or self._engine
        if engine is None:
            return None
        return engine.loading if self._opening is None else engine.loading or 0.0

    @property
    def _state(self) -> ResidenceState:
        if self.loading is not None:
            return "loading"
        return "unloaded" if self._engine is None else "loaded"

    @property
    def _share(self) -> float:
        share = self.loading
        return float(self._engine is not None) if share is None else share

    async def start(self) -> None:
        """Load the model. Raises what ``open_engine`` and its engine raise."""
        async with self._used():
            pass

    async def prewarm(self, keep_alive_s: float | None = None) -> None:
        """As :meth:`start`, to stay for so long."""
        self._stays_s = self._keep_alive_s if keep_alive_s is None else keep_alive_s
        await self.start()

    def load_soon(self) -> None:
        """Begin to load, without waiting for it; a failure is told to the next request."""
        if self._engine is None and self._opening is None:
            self._run(self._load_quietly())

    async def unload(self) -> bool:
        """Free the model; False where it was not loaded. Raises ``ModelBusy`` while it works."""
        async with self._moving:
            if self._users:
                raise ModelBusy(
                    f"{self.card.name} is at work ({self._users} at once).",
                    mend="Ask again when its answers have ended.",
                )
            return await self._let_go()

    @contextmanager
    def keeping(self, request_id: str, keep_alive_s: float | None) -> Iterator[None]:
        """What request ``request_id`` asks for; None is the daemon's own time."""
        if keep_alive_s is not None:
            self._asked[request_id] = keep_alive_s
        try:
            yield
        finally:
            self._asked.pop(request_id, None)

    async def aclose(self) -> None:
        """Free the model, whoever uses it."""
        self._cancel_expiry()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait({self._loading})
        async with self._moving:
            await self._let_go()

    async def health(self) -> EngineHealth:
        """The engine's own; a model that is away is well, and says so."""
        engine = self._engine
        if engine is None:
            return EngineHealth(ok=True, notes=("It is let go of until it is needed.",))
        return await engine.health()

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """As the engine counts; loads the model."""
        async with self._used() as engine:
            return await engine.count_prompt_tokens(request)

    def queue_position(self, request_id: str) -> int | None:
        """As the engine says."""
        return None if self._engine is None else self._engine.queue_position(request_id)

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        async with self._used() as engine:
            self._stays_s = self._asked.get(request.id, self._keep_alive_s)
            async with aclosing(engine.generate(request)) as chunks:
                async for chunk in chunks:
                    yield chunk

    @asynccontextmanager
    async def _used(self) -> AsyncIterator[Engine]:
        """The loaded engine, which stays while the block runs."""
        self._cancel_expiry()
        self._users += 1  # before anything is awaited: unload sees it
        try:
            yield self._engine or await self._loaded()
        finally:
            self._users -= 1
            if not self._users:
                self._expire_later()

    async def _loaded(self) -> Engine:
        """Whoever leaves while it loads leaves alone: others may wait for it too."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
            self._loading.add_done_callback(self._end_loading)
        try:
            return await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EngineDied("The model was let go of while it loaded.") from None

    def _end_loading(self, loading: asyncio.Task[Engine]) -> None:
        self._loading = None
        if not loading.cancelled():
            loading.exception()  # whoever waited has it; nobody may have
        if not self._users:
            self._expire_later()

    async def _load(self) -> Engine:
        async with self._moving:
            if self._engine is not None:
                return self._engine
            engine = self._opening = self._open_engine()
            try:
                await engine.start()
                self._engine, self._card = engine, engine.card
            except BaseException:
                await engine.aclose()
                raise
            finally:
                self._opening = None
            return engine

    async def _let_go(self) -> bool:
        engine, self._engine = self._engine, None
        self._cancel_expiry()
        if engine is None:
            return False
        started = time.perf_counter()
        await engine.aclose()
        logger.info(
            "let go of %s in %.0f ms", self.card.name, 1e3 * (time.perf_counter() - started)
        )
        return True

    async def _load_quietly(self) -> None:
        try:
            await self.start()
        except OverspillError as error:
            logger.warning("the model cannot be loaded: %s", error.code)

    def _expire_later(self) -> None:
        self._cancel_expiry()
        if self._engine is None or self._stays_s == FOREVER:
            return
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(self._stays_s, lambda: self._run(self._expire()))

    async def _expire(self) -> None:
        async with self._moving:
            if not self._users:
                await self._let_go()

    def _cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
