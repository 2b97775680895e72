"""An engine in a process of its own, and that process's entry point.

An abort in native code (a malformed model file is enough) ends the worker and not the app:
running streams end with ``EngineDied``, which carries the text so far, and the next request
starts a new worker. The parent starts ``python -m overspill.worker``, writes one line of JSON to
its stdin and reads one from its stdout; then the two speak the `Local` service over a 0600 Unix
socket in a 0700 folder, or over loopback on Windows, with a token either way. When the parent is
gone, the end of stdin ends the worker.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from overspill import errors
from overspill.config import child_environment
from overspill.engines.base import Engine, EngineHealth
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.registry import name_of, open_engine, runtime_of
from overspill.transport.local import LocalClient, LocalOptions, serve_local
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request
from overspill.wire import convert

# --- the parent's side --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """``max_deaths`` workers may die within ``deaths_window_s`` before no new one is started.

    ``loopback`` uses TCP on 127.0.0.1 instead of a Unix socket: always so on Windows.
    """

    max_deaths: int = 5
    deaths_window_s: float = 60.0
    stop_timeout_s: float = 5.0
    health_timeout_s: float = 3.0
    loopback: bool = os.name == "nt"
    local: LocalOptions = field(default_factory=LocalOptions)


class WorkerEngine(Engine):
    """The engine of ``spec`` in a worker process, started on ``start`` or by the first request.

    Raises on ``start`` and on requests what the engine itself would raise; ``ModelInvalid`` when
    the worker died while it loaded the model, ``EngineDied`` when it died at work.
    """

    def __init__(
        self,
        spec: str,
        *,
        name: str | None = None,
        options: EngineOptions | None = None,
        worker: WorkerOptions | None = None,
    ) -> None:
        runtime, _ = runtime_of(spec)
        self._spec = spec
        self._engine_options = options or EngineOptions()
        self._options = worker or WorkerOptions()
        self._card = ModelCard(name=name or name_of(spec), context=0, runtime=runtime)
        self._process: _Process | None = None
        self._starting: asyncio.Task[_Process] | None = None
        self._deaths: deque[float] = deque(maxlen=self._options.max_deaths)

    @property
    def card(self) -> ModelCard:
        """Facts about the model; before ``start`` only its name and runtime, and context 0."""
        return self._card

    @property
    def pid(self) -> int | None:
        """The running worker's process id."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the worker and load the model; concurrent calls share one start."""
        await self._ready()

    async def aclose(self) -> None:
        """End the worker; running streams end with ``EngineDied``."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait({starting})
        process, self._process = self._process, None
        if process is not None:
            await process.stop(self._options.stop_timeout_s)

    async def health(self) -> EngineHealth:
        """The engine's own health, asked of the worker; not ok when it is gone or silent."""
        process = self._process
        if process is None:
            return EngineHealth(ok=False, detail="no worker process yet")
        if not process.is_alive:
            return EngineHealth(
                ok=False, detail=f"{process.epitaph()}; the next request starts a new one"
            )
        try:
            return (await process.client.status(self._options.health_timeout_s)).health
        except errors.TransportError as error:
            return EngineHealth(ok=False, detail=f"the worker does not answer: {error.message}")

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """Tokens of the prompt, counted by the worker."""
        process = await self._ready()
        try:
            return await process.client.count_tokens(request)
        except errors.TransportError as error:
            raise await self._death(process, error, "") from error

    def queue_position(self, request_id: str) -> int | None:
        """The last position that the worker told."""
        return None if self._process is None else self._process.client.queue_position(request_id)

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        process = await self._ready()
        said: list[str] = []
        try:
            async with aclosing(process.client.chat(request)) as chunks:
                async for chunk in chunks:
                    said.append(chunk.text)
                    yield chunk
        except errors.TransportError as error:
            raise await self._death(process, error, "".join(said)) from error
        except errors.OverspillError as error:
            error.partial = error.partial or "".join(said)
            if isinstance(error, errors.EngineDied):
                # A process whose engine is gone is of no use: the next request gets a new one.
                process.kill()
            raise

    async def _ready(self) -> _Process:
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

    async def _start(self) -> _Process:
        if self._process is not None:
            self._deaths.append(time.monotonic())
            await self._process.stop(0.0)
            self._process = None
        self._refuse_if_dying()
        process = await _Process.start(
            self._spec, self._card.name, self._engine_options, self._options
        )
        self._process, self._card = process, process.card
        return process

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

    async def _death(
        self, process: _Process, error: errors.TransportError, partial: str
    ) -> errors.EngineDied:
        """What a lost connection means: the worker is dead, or silent and then killed."""
        if not await process.has_ended(within_s=1.0):
            process.kill()
            await process.has_ended(within_s=self._options.stop_timeout_s)
            why = f"did not answer ({error.message})"
        else:
            why = process.epitaph()
        return errors.EngineDied(
            f"The worker of {self._card.name} is gone: it {why}.",
            mend="Ask again: a new worker is started.",
            partial=partial,
        )


class _Process:
    """One running worker: its process, its folder and the connection to it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self.client: LocalClient
        self.card: ModelCard

    @classmethod
    async def start(
        cls, spec: str, name: str, engine: EngineOptions, options: WorkerOptions
    ) -> _Process:
        """Start a worker and wait until its model is loaded."""
        folder = Path(tempfile.mkdtemp(prefix="overspill-"))
        token = secrets.token_urlsafe(32)
        address = "127.0.0.1:0" if options.loopback else f"unix:{folder / 'engine.sock'}"
        orders = {
            "spec": spec,
            "name": name,
            "options": dataclasses.asdict(engine),
            "address": address,
            "token": token,
            "folder": str(folder),
            "local": dataclasses.asdict(options.local),
        }
        self = cls(await _spawn(folder), folder)
        try:
            address = await self._load(orders, name)
            self.client = LocalClient(address, token=token, options=options.local)
            self.card = (await self.client.status()).card
        except BaseException:
            self.kill()
            await self._process.wait()
            self._clean()
            raise
        return self

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._state()[0]

    async def has_ended(self, within_s: float) -> bool:
        """Wait a while for the process to end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), within_s)
        return not self.is_alive

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self, timeout_s: float) -> None:
        """Ask the process to end, then make it; frees connection and folder."""
        await self.client.aclose()
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._process.stdin.close()
        if not await self.has_ended(timeout_s):
            self.kill()
            await self._process.wait()
        self._clean()

    def epitaph(self) -> str:
        """How the process ended, in words."""
        _, code = self._state()
        ended = "ended" if code is None else f"ended with code {code}"
        if code is not None and code < 0:
            ended = f"ended by {signal.Signals(-code).name}"
        last = self._last_words()
        return f"{ended} ({last})" if last else ended

    def _state(self) -> tuple[bool, int | None]:
        """Whether it runs, and its exit code: known at once, where asyncio learns it later."""
        code = self._process.returncode
        # macOS has waitid from Python 3.13 on; without it, what asyncio has seen must do.
        if code is not None or sys.platform == "win32" or not hasattr(os, "waitid"):
            return code is None, code
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # asyncio has reaped it, and will tell the code in a moment.
            return False, None
        if ended is None:
            return True, None
        exited = ended.si_code == os.CLD_EXITED
        return False, ended.si_status if exited else -ended.si_status

    async def _load(self, orders: Mapping[str, Any], name: str) -> str:
        """Send the orders and wait; returns the address, or raises what the worker met."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018, S101 - pipes were asked for
        with suppress(ConnectionError):
            stdin.write(json.dumps(orders).encode() + b"\n")
            await stdin.drain()
        line = await stdout.readline()
        if not line:
            await self._process.wait()
            raise errors.ModelInvalid(
                f"Loading {name} took the worker process down: it {self.epitaph()}.",
                mend="The file may be damaged, or too large for this machine's memory.",
            )
        answer = json.loads(line)
        if "error" in answer:
            raise convert.error_from_bytes(base64.b64decode(answer["error"]))
        return str(answer["address"])

    def _last_words(self) -> str:
        try:
            lines = (self._folder / "stderr").read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        # Without the folders of the machine that the runtime was built on.
        return re.sub(r"\S*/", "", lines[-1]).strip()[:200] if lines else ""

    def _clean(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


_WORKER_ENVIRONMENT = {
    # Without it ggml starts a debugger to print a trace when it aborts.
    "GGML_NO_BACKTRACE": "1",
    # OpenMP's threads spin while they wait. On cores that have other work, that made a small
    # model eight to a hundred times slower; sleeping instead costs it nothing measurable.
    "OMP_WAIT_POLICY": "passive",
}


async def _spawn(folder: Path) -> asyncio.subprocess.Process:
    with (folder / "stderr").open("wb") as stderr:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "overspill.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=child_environment(_WORKER_ENVIRONMENT),
        )


# --- the worker's side --------------------------------------------------------------------------


def main() -> None:
    """Serve one engine until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    _forbid_core_dumps()
    answer = _take_stdout()
    orders = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not orders:
        sys.exit("overspill.worker is started by overspill itself.")
    threading.Thread(target=_end_with_parent, args=(orders["folder"],), daemon=True).start()
    asyncio.run(_work(orders, answer))


async def _work(orders: Mapping[str, Any], answer: BinaryIO) -> None:
    options = dict(orders["options"])
    scheduler = SchedulerOptions(**options.pop("scheduler"))
    try:
        engine = open_engine(
            orders["spec"],
            name=orders["name"],
            options=EngineOptions(**options, scheduler=scheduler),
        )
        await engine.start()
        old = os.umask(0o177)
        server, address = await serve_local(
            engine,
            orders["address"],
            token=orders["token"],
            options=LocalOptions(**orders["local"]),
        )
        os.umask(old)
    except errors.OverspillError as error:
        _say(answer, {"error": base64.b64encode(convert.error_to_bytes(error)).decode()})
        return
    _say(answer, {"address": address})
    await server.wait_for_termination()


def _say(answer: BinaryIO, line: Mapping[str, str]) -> None:
    answer.write(json.dumps(line).encode() + b"\n")
    answer.close()


def _take_stdout() -> BinaryIO:
    """Keep stdout for the one answer; whatever a library prints goes to stderr."""
    mine = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return mine


def _end_with_parent(folder: str) -> NoReturn:
    """The parent never writes again: the end of stdin means that it has stopped us, or died."""
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _forbid_core_dumps() -> None:
    # A dump of an aborted engine would hold prompts.
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
