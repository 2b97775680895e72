"""The parent's faces: an engine and an embedder whose work is done in a worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from overspill import errors
from overspill.engines.base import Engine, EngineHealth
from overspill.engines.embedder import Embedder
from overspill.engines.options import EngineOptions
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.worker.options import WorkerOptions
from overspill.worker.supervisor import Supervisor


class WorkerEngine(Engine):
    """The engine of ``spec`` in a worker process, started on ``start`` or by the first request.

    Raises on ``start`` and on requests what the engine itself would raise; ``ModelInvalid`` when
    the file took the worker down while it was loaded, ``EngineDied`` when the worker died at work
    or was killed.
    """

    def __init__(
        self,
        spec: str,
        *,
        name: str | None = None,
        options: EngineOptions | None = None,
        worker: WorkerOptions | None = None,
    ) -> None:
        self.supervisor = Supervisor(
            spec, name, options or EngineOptions(), worker or WorkerOptions(), role="engine"
        )

    @property
    def card(self) -> ModelCard:
        """Facts about the model; before ``start`` only its name and runtime, and context 0."""
        return self.supervisor.card

    @property
    def pid(self) -> int | None:
        """The running worker's process id."""
        return self.supervisor.pid

    async def start(self) -> None:
        """Start the worker and load the model; concurrent calls share one start."""
        await self.supervisor.ready()

    async def aclose(self) -> None:
        """End the worker; running streams end with ``EngineDied``."""
        await self.supervisor.aclose()

    async def health(self) -> EngineHealth:
        """The engine's own health, asked of the worker; not ok when it is gone or silent."""
        return await self.supervisor.health()

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """Tokens of the prompt, counted by the worker."""
        process = await self.supervisor.ready()
        try:
            return await process.client.count_tokens(request)
        except errors.OverspillError as error:
            raise await self.supervisor.explain(process, error, "") from error

    @property
    def loading(self) -> float | None:
        """As the worker tells while it starts."""
        return self.supervisor.loading

    def queue_position(self, request_id: str) -> int | None:
        """The last position that the worker told."""
        client = self.supervisor.client
        return None if client is None else client.queue_position(request_id)

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        process = await self.supervisor.ready()
        said: list[str] = []
        try:
            async with aclosing(process.client.chat(request)) as chunks:
                async for chunk in chunks:
                    said.append(chunk.text)
                    yield chunk
        except errors.OverspillError as error:
            raise await self.supervisor.explain(process, error, "".join(said)) from error


class WorkerEmbedder(Embedder):
    """The embedder of ``spec`` in a worker process; as :class:`WorkerEngine`."""

    def __init__(
        self,
        spec: str,
        *,
        name: str | None = None,
        options: EngineOptions | None = None,
        worker: WorkerOptions | None = None,
    ) -> None:
        self.supervisor = Supervisor(
            spec, name, options or EngineOptions(), worker or WorkerOptions(), role="embedder"
        )

    @property
    def card(self) -> ModelCard:
        """Facts about the model; before ``start`` only its name and runtime, and context 0."""
        return self.supervisor.card

    @property
    def pid(self) -> int | None:
        """The running worker's process id."""
        return self.supervisor.pid

    async def start(self) -> None:
        """Start the worker and load the model."""
        await self.supervisor.ready()

    async def aclose(self) -> None:
        """End the worker; what is being embedded ends with ``EngineDied``."""
        await self.supervisor.aclose()

    async def health(self) -> EngineHealth:
        """The embedder's own health, asked of the worker."""
        return await self.supervisor.health()

    async def _embed(self, request: EmbedRequest) -> EmbedReply:
        process = await self.supervisor.ready()
        try:
            return await process.client.embed(request)
        except errors.OverspillError as error:
            raise await self.supervisor.explain(process, error, "") from error
