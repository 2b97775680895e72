"""Who answers for one client now: this user's daemon where one is to be used, else its own engines.

A daemon that is gone before the first piece of an answer is left for good: one that comes and goes
would cost each time. One that fails in the middle of an answer is an error, never a silent switch.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar, get_args

from overspill.answerer import Answerer
from overspill.config import Settings
from overspill.daemon import DaemonUse, ThroughDaemon, work_digest
from overspill.errors import (
    ConnectFailed,
    DaemonRefused,
    NotOpen,
    OverspillError,
    UsageError,
    VersionMismatch,
)
from overspill.in_process import InProcess
from overspill.transport.handshake import SOCKET_NAME, PeerGone
from overspill.turns import check_text
from overspill.types.chat import Request
from overspill.types.reply import ReplyChunk

_T = TypeVar("_T")


def check_parts(app: object, settings: object, use: object) -> None:
    """Raise ``UsageError`` for what no client is made of."""
    check_text(app, "app")
    if settings is not None and not isinstance(settings, Settings):
        raise UsageError(
            f"'settings' is of the type {type(settings).__name__}.",
            mend="Give what overspill.load_settings() returns, or leave it out.",
        )
    if use not in get_args(DaemonUse):
        raise UsageError(f"'daemon' is {use!r:.40}.", mend=f"Use {', '.join(get_args(DaemonUse))}.")


class Placement:
    """Opens whoever answers, and moves to the app's own engines when the daemon is gone.

    ``own`` are those engines, opened only when they are needed. ``for_work``: a daemon has to do
    the work that these settings name, for the app brought them.
    """

    def __init__(
        self, app: str, settings: Settings, own: InProcess, use: DaemonUse, *, for_work: bool
    ) -> None:
        self._app, self._settings = app, settings
        self._own, self._use = own, use
        self._for_work = for_work and use == "auto"
        self._answerer: Answerer | None = None
        self._moving = asyncio.Lock()
        self._home: tuple[asyncio.AbstractEventLoop, int] | None = None
        self.daemon_problem: OverspillError | None = None
        """Why a daemon that was looked for is not used."""

    async def open(self) -> None:
        """Find the daemon, else open the app's own engines. Raises what keeps a required daemon
        away, and what the engines raise; ``UsageError`` where it is open."""
        if self._answerer is not None:
            raise UsageError("AsyncOverspill is open already.", mend="Use one block for each.")
        self._home = (asyncio.get_running_loop(), os.getpid())
        self._answerer = await self._find_daemon() if self._use != "never" else None
        if self._answerer is None:
            await self._own.open()
            self._answerer = self._own

    async def aclose(self) -> None:
        """Cancel what runs and free everything. May be called twice."""
        answerer, self._answerer = self._answerer, None
        if answerer is not None:
            await answerer.aclose()
        await self._own.aclose()

    @property
    def answerer(self) -> Answerer:
        """Whoever answers now."""
        if self._answerer is None:
            raise NotOpen("AsyncOverspill is not open.", mend="Use it in an async with block.")
        return self._answerer

    @property
    def daemon(self) -> ThroughDaemon | None:
        """The daemon, where it answers; None too once it was lost, or before :meth:`open`."""
        return self._answerer if isinstance(self._answerer, ThroughDaemon) else None

    def own(self, what: str) -> InProcess:
        """The app's own engines. Raises ``UsageError`` where the daemon has them; ``what`` is
        said of who does it."""
        if self.answerer is not self._own:
            raise UsageError(
                f"{what} by the process that talks to the cloud, and that is the daemon.",
                mend='Use the command `overspill cloud`, or Overspill(daemon="never").',
            )
        return self._own

    async def run(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """By the daemon, or where it is gone before the first piece by the app's own engines."""
        answerer, started = self._at_home, False
        try:
            async with aclosing(answerer.run(request)) as chunks:
                async for chunk in chunks:
                    started = True
                    yield chunk
            return
        except ConnectFailed as error:
            if started or not self._may_leave(answerer, error):
                raise
            own = await self._move(answerer, error)
        async with aclosing(own.run(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def ask(self, ask: Callable[[Answerer], Awaitable[_T]]) -> _T:
        """What whoever answers says, as :meth:`run` does."""
        answerer = self._at_home
        try:
            return await ask(answerer)
        except ConnectFailed as error:
            if not self._may_leave(answerer, error):
                raise
            return await ask(await self._move(answerer, error))

    # ----------------------------------------------------------------------------------------

    @property
    def _at_home(self) -> Answerer:
        """Whoever answers, for who asks where the client was opened: sockets, locks and engines
        are of one event loop, and elsewhere would be waited for without end."""
        answerer = self.answerer
        if self._home != (asyncio.get_running_loop(), os.getpid()):
            raise NotOpen(
                "This AsyncOverspill was opened in another event loop or process.",
                mend="Open one here; threads and loops may share an Overspill, which has its own.",
            )
        return answerer

    async def _find_daemon(self) -> ThroughDaemon | None:
        """A daemon that was greeted; None where there is none to use, unless one is required."""
        path = self._settings.places.runtime / SOCKET_NAME
        work = work_digest(self._settings) if self._for_work else None
        found = ThroughDaemon(path, self._app, floor=self._settings.privacy, work=work)
        try:
            await found.open()
        except (ConnectFailed, DaemonRefused, VersionMismatch) as error:
            self.daemon_problem = error
            if self._use == "require":
                raise
            if isinstance(error, VersionMismatch):
                warnings.warn(f"The daemon is not used: {error}", stacklevel=2)
            return None
        return found

    def _may_leave(self, answerer: Answerer, error: ConnectFailed) -> bool:
        """Whether the daemon itself is gone, rather than what it asked for us."""
        through_daemon = isinstance(answerer, ThroughDaemon) and self._use == "auto"
        return through_daemon and isinstance(error, PeerGone)

    async def _move(self, gone: Answerer, error: OverspillError) -> Answerer:
        """To the app's own engines, for good.

        Whoever finds the daemon gone first opens them; ``open`` may be called by one task only.
        """
        async with self._moving:
            if self.answerer is gone:
                await self._own.open()
                self.daemon_problem, self._answerer = error, self._own
                await gone.aclose()
        return self.answerer
