"""Keeps one worker running: starts it, says how it is, explains its death, starts the next."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from overspill import errors
from overspill.engines.base import EngineHealth
from overspill.engines.options import EngineOptions
from overspill.engines.registry import name_of, runtime_of
from overspill.transport.local.worker_client import WorkerClient
from overspill.types.card import ModelCard
from overspill.worker.options import Role, WorkerOptions
from overspill.worker.process import DiedLoading, WorkerProcess

_DEATH_PATIENCE_S = 1.0


class Supervisor:
    """One worker at a time for one model; the first call of ``ready`` starts it.

    Raises :class:`ModelNotFound` or :class:`ModelInvalid` at once for a spec that names nothing.
    """

    def __init__(
        self,
        spec: str,
        name: str | None,
        engine_options: EngineOptions,
        options: WorkerOptions,
        *,
        role: Role,
    ) -> None:
        runtime, _ = runtime_of(spec)
        self._spec = spec
        self._role = role
        self._engine_options = engine_options
        self._options = options
        self._card = ModelCard(
            name=name or name_of(spec),
            context=0,
            runtime=runtime,
            modalities=("text",) if engine_options.mmproj is None else ("text", "image"),
        )
        self._process: WorkerProcess | None = None
        self._starting: asyncio.Task[WorkerProcess] | None = None
        self.is_silent = False
        """Whether a worker that runs left the last question for its health unanswered."""
        self._deaths: deque[float] = deque(maxlen=options.max_deaths)
        self._share = 0.0

    @property
    def card(self) -> ModelCard:
        """What the worker told of its model; before it started only name and runtime."""
        return self._card

    @property
    def process(self) -> WorkerProcess | None:
        """The worker that was started last; it may be dead."""
        return self._process

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether there is a worker process, well or not, or one that starts."""
        starting = self._starting is not None and not self._starting.done()
        return starting or (self._process is not None and self._process.is_alive)

    @property
    def client(self) -> WorkerClient | None:
        """The connection to it."""
        return None if self._process is None else self._process.client

    @property
    def loading(self) -> float | None:
        """The share of the model that a worker has loaded which is being started."""
        starting = self._starting
        return None if starting is None or starting.done() else self._share

    async def ready(self) -> WorkerProcess:
        """A worker that runs; concurrent calls share one start.

        Raises what loading the model raised, and ``EngineDied`` after too many deaths.
        """
        process = self._process
        if process is not None and process.is_alive:
            return process
        if self._starting is None or self._starting.cancelled():
            self._starting = asyncio.create_task(self._start())
        starting = self._starting
        try:
            # Whoever leaves while it starts leaves alone: others may wait for it too.
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise errors.EngineDied(
                f"The worker of {self._card.name} was closed while it started.",
                mend="Start it again.",
            ) from None
        finally:
            if starting.done() and self._starting is starting:
                self._starting = None

    async def end(self) -> None:
        """Kill the worker as it is; its streams end with ``EngineDied``, and the next ``ready``
        starts another."""
        if self._process is not None:
            self._process.kill()
            await self._process.has_ended(within_s=self._options.stop_timeout_s)

    async def aclose(self) -> None:
        """End the worker."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait({starting})
        process, self._process = self._process, None
        if process is not None:
            await process.stop(self._options.stop_timeout_s)

    async def health(self) -> EngineHealth:
        """Asked of the worker; not ok when it is gone or silent."""
        process = self._process
        if process is None:
            return EngineHealth(ok=False, detail="no worker process yet")
        if not process.is_alive:
            return EngineHealth(
                ok=False, detail=f"{process.epitaph()}; the next request starts a new one"
            )
        try:
            told = await process.client.status(self._options.health_timeout_s)
            self.is_silent = False
            return told.health
        except errors.TransportError as error:
            self.is_silent = True
            return EngineHealth(ok=False, detail=f"the worker does not answer: {error.message}")

    async def explain(
        self, process: WorkerProcess, error: errors.OverspillError, partial: str
    ) -> errors.OverspillError:
        """What an error at work means, with the text that came before it.

        A lost connection means that the worker is dead; or silent, and is then killed. A worker
        whose engine died is of no use and is killed too: the next request gets a new one.
        """
        if not isinstance(error, errors.TransportError):
            error.partial = error.partial or partial
            if isinstance(error, errors.EngineDied):
                process.kill()
            return error
        if await process.has_ended(within_s=_DEATH_PATIENCE_S):
            why = process.epitaph()
        else:
            process.kill()
            await process.has_ended(within_s=self._options.stop_timeout_s)
            why = f"did not answer ({error.message})"
        return errors.EngineDied(
            f"The worker of {self._card.name} is gone: it {why}.",
            mend="Ask again: a new worker is started.",
            partial=partial,
        )

    async def _start(self) -> WorkerProcess:
        if self._process is not None:
            self._deaths.append(time.monotonic())
            await self._process.stop(0.0)
            self._process = None
        self._refuse_if_dying()
        try:
            process = await WorkerProcess.start(
                self._spec,
                self._card.name,
                self._engine_options,
                self._options,
                self._role,
                self._note_share,
            )
        except DiedLoading as death:
            # A model that is refused is told, and no death: another try does no harm.
            self._deaths.append(time.monotonic())
            raise death.error from death.__cause__
        self._process, self._card = process, process.card
        return process

    def _note_share(self, share: float) -> None:
        self._share = share

    def _refuse_if_dying(self) -> None:
        window_s = self._options.deaths_window_s
        if len(self._deaths) == self._options.max_deaths and (
            time.monotonic() - self._deaths[0] < window_s
        ):
            raise errors.EngineDied(
                f"The worker of {self._card.name} died {len(self._deaths)} times "
                f"within {window_s:g} s.",
                mend="Try another model file; `overspill doctor` checks the installation.",
            )
