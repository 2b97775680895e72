"""Answers by the daemon of this user: found in the runtime folder, asked over its own socket.

A daemon that restarted (an upgrade, say) is greeted again before anybody notices. One that is gone
raises ``PeerGone`` before an answer began, and then somebody else may give it; an answer that had
begun ends with ``StreamBroken``, which carries its text.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from overspill.config import Settings
from overspill.errors import ConfigurationError, DaemonRefused, VersionMismatch
from overspill.transport.handshake import Hello, PeerGone, Welcome, greet
from overspill.types.card import ModelCard
from overspill.types.chat import Privacy, Request
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.types.reply import Availability, ReceiptRecord, ReplyChunk
from overspill.types.route import Plan

if TYPE_CHECKING:
    from overspill.models.files import OnProgress
    from overspill.models.store import StoredModel
    from overspill.transport.local.daemon_client import DaemonClient

DaemonUse = Literal["auto", "never", "require"]
"""``auto`` uses a daemon where one runs, accepts the app and does the same work; ``require`` raises
where it does not; ``never`` uses engines of the app's own."""

GREETING_TIMEOUT_S = 2.0
"""A daemon that is silent for so long is none."""

GREETINGS = 2
"""One for a daemon that came back, one more for one that handed over at that very moment."""

_DECISIVE = (
    "model",
    "embedding_model",
    "cloud",
    "third_party",
    "routing_policy",
    "adapters",
    "draft_model",
    "mmproj",
)
_T = TypeVar("_T")


def work_digest(settings: Settings) -> str:
    """What of the settings decides who answers, as a digest: a daemon with the same one would
    answer as this app's own engines."""
    told = {name: _plain(getattr(settings, name)) for name in _DECISIVE}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value if value is None else str(value)


class ThroughDaemon:
    """Asks the daemon at ``path``, for one app, under its ``floor``.

    ``work`` None takes whatever the daemon does; else its work has to have that digest.
    """

    def __init__(self, path: Path, app: str, *, floor: Privacy, work: str | None = None) -> None:
        self.path = path
        self._app = app
        self._floor = floor
        self._work = work
        self._client: DaemonClient | None = None
        self._retiring: dict[asyncio.Task[None], DaemonClient] = {}
        self._greeting = asyncio.Lock()
        self._cards: tuple[ModelCard, ...] = ()
        self.welcome: Welcome | None = None
        """What the daemon said when it was greeted last."""

    async def open(self) -> None:
        """Shake hands. Raises ``PeerGone``, ``VersionMismatch`` or ``DaemonRefused``."""
        from anyio.to_thread import run_sync

        from overspill.transport.local.daemon_client import DaemonClient

        hello = Hello(self._app)
        welcome = await run_sync(lambda: greet(self.path, hello, timeout_s=GREETING_TIMEOUT_S))
        if self._work is not None and welcome.work != self._work:
            raise DaemonRefused(
                f"The daemon serves '{welcome.model}' by other settings than this app's.",
                mend='Start it with the same settings, or use Overspill(daemon="never").',
            )
        if self._client is not None:
            self._retire(self._client)
        self.welcome = welcome
        self._client = DaemonClient(welcome.target, token=welcome.ticket)

    async def aclose(self) -> None:
        """Cancel what runs for this app and close the connection."""
        client, self._client = self._client, None
        retiring = tuple(self._retiring.items())
        for task, old in retiring:
            task.cancel()
            await old.aclose()
        if client is not None:
            await client.aclose()

    def _retire(self, client: DaemonClient) -> None:
        """What a daemon that handed over has begun, it ends."""
        task = asyncio.create_task(client.retire())
        self._retiring[task] = client
        task.add_done_callback(lambda done: self._retiring.pop(done, None))

    async def run(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """The answer in pieces."""
        for tries_left in range(GREETINGS, -1, -1):
            client = self._open
            try:
                async with aclosing(client.run(self._tightened(request))) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except PeerGone:
                if not tries_left:
                    raise
                await self._greet_again(client)

    async def plan(self, request: Request) -> Plan:
        """Where the daemon would run it."""
        return await self._asked(lambda client: client.plan(self._tightened(request)))

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """The vectors, by the daemon's embedding model."""
        return await self._asked(lambda client: client.embed(request))

    async def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now."""
        self._cards = await self._asked(lambda client: client.models())
        return self._cards

    async def priced(self, model: str) -> tuple[ModelCard, ...]:
        """The cards that were told, asked for again where ``model`` is none of them."""
        if all(card.name != model for card in self._cards):
            await self.models()
        return self._cards

    async def availability(self) -> Availability:
        """As the daemon sees it."""
        return await self._asked(lambda client: client.availability())

    async def receipts(self, limit: int) -> tuple[ReceiptRecord, ...]:
        """From the daemon's store."""
        return await self._asked(lambda client: client.receipts(limit))

    async def pull(self, model: str | None, on_progress: OnProgress | None) -> StoredModel:
        """Fetched by the daemon, into its store."""
        return await self._asked(lambda client: client.pull(model, on_progress))

    def queue_position(self, request_id: str) -> int | None:
        """As the daemon told last."""
        return None if self._client is None else self._client.queue_position(request_id)

    # ----------------------------------------------------------------------------------------

    @property
    def _open(self) -> DaemonClient:
        if self._client is None:
            raise ConfigurationError("The daemon was not greeted.", mend="Open the client first.")
        return self._client

    def _tightened(self, request: Request) -> Request:
        """The app's own floor holds there too, beside the daemon's."""
        floor = request.privacy.tightened_by(self._floor)
        return dataclasses.replace(request, privacy=floor)

    async def _asked(self, ask: Callable[[DaemonClient], Awaitable[_T]]) -> _T:
        client = self._open
        try:
            return await ask(client)
        except PeerGone:
            await self._greet_again(client)
            return await ask(self._open)

    async def _greet_again(self, gone: DaemonClient) -> None:
        """Whoever finds the daemon gone first greets it for all."""
        async with self._greeting:
            if self._client is not gone:
                return
            try:
                await self.open()
            except (DaemonRefused, VersionMismatch) as error:
                # Another daemon than the one that was accepted: for what runs, that one is gone.
                raise PeerGone(error.message, mend=error.mend) from error
