"""One running worker, as its parent sees it."""

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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from overspill import errors
from overspill.config import child_environment
from overspill.engines.loading import OnLoaded
from overspill.engines.options import EngineOptions
from overspill.freeze import WORKER, python_command
from overspill.spawn import spawn_options
from overspill.transport.local.worker_client import WorkerClient
from overspill.types.card import ModelCard
from overspill.wire import convert
from overspill.worker.options import Role, WorkerOptions

_KILLED_BY_OTHERS = tuple(
    getattr(signal, name) for name in ("SIGKILL", "SIGTERM") if hasattr(signal, name)
)
"""A file that breaks the runtime ends it by another signal; the system's memory killer by these."""


class DiedLoading(Exception):
    """The process ended before it said anything of its model; ``error`` is what callers see."""

    def __init__(self, error: errors.OverspillError) -> None:
        super().__init__(error.message)
        self.error = error


class WorkerProcess:
    """One running worker: its process, its folder and the connection to it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self.folder = folder
        self.client: WorkerClient
        self.card: ModelCard

    @classmethod
    async def start(
        cls,
        spec: str,
        name: str,
        engine: EngineOptions,
        options: WorkerOptions,
        role: Role,
        on_loading: OnLoaded,
    ) -> WorkerProcess:
        """Start a worker and wait until its model is loaded; ``on_loading`` is told how far.

        Raises what the worker refused the model with, and :class:`DiedLoading`.
        """
        folder = Path(tempfile.mkdtemp(prefix="overspill-"))
        token = secrets.token_urlsafe(32)
        address = "127.0.0.1:0" if options.loopback else f"unix:{folder / 'engine.sock'}"
        orders = {
            "spec": spec,
            "role": role,
            "parent": os.getpid(),
            "name": name,
            "options": dataclasses.asdict(_gathering(engine, options.gather_s)),
            "address": address,
            "token": token,
            "folder": str(folder),
            "local": dataclasses.asdict(options.local),
        }
        self = cls(await _spawn(folder), folder)
        try:
            address = await self._load(orders, name, on_loading)
            await self._connect(address, token, options)
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

    async def _load(self, orders: Mapping[str, Any], name: str, on_loading: OnLoaded) -> str:
        """Send the orders and wait; returns the address, or raises what the worker met."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018, S101 - pipes were asked for
        with suppress(ConnectionError):
            stdin.write(json.dumps(orders).encode() + b"\n")
            await stdin.drain()
        answer: Mapping[str, Any] = {"loading": 0.0}
        while "loading" in answer:
            on_loading(float(answer["loading"]))
            line = await stdout.readline()
            if not line:
                await self._process.wait()
                raise DiedLoading(self._died_loading(name))
            answer = json.loads(line)
        if "error" in answer:
            raise convert.error_from_bytes(base64.b64decode(answer["error"]))
        return str(answer["address"])

    async def _connect(self, address: str, token: str, options: WorkerOptions) -> None:
        try:
            self.client = await WorkerClient.connect(address, token=token, options=options.local)
            self.card = (await self.client.status()).card
        except errors.TransportError as error:
            # It had just said that it listens.
            raise DiedLoading(error) from error

    def _died_loading(self, name: str) -> errors.OverspillError:
        _, code = self._state()
        if code is not None and code < 0 and -code in _KILLED_BY_OTHERS:
            return errors.EngineDied(
                f"The worker of {name} was killed while it loaded: it {self.epitaph()}.",
                mend="Was the memory short? `overspill doctor` tells what is free.",
            )
        return errors.ModelInvalid(
            f"Loading {name} took the worker process down: it {self.epitaph()}.",
            mend="The file may be damaged; fetch the model again, or use another.",
        )

    def _last_words(self) -> str:
        try:
            lines = (self.folder / "stderr").read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        # Without the folders of the machine that the runtime was built on.
        return re.sub(r"\S*/", "", lines[-1]).strip()[:200] if lines else ""

    def _clean(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _gathering(engine: EngineOptions, gather_s: float) -> EngineOptions:
    """What is asked for, with the worker's own way of handing tokens over."""
    scheduler = dataclasses.replace(engine.scheduler, gather_s=gather_s)
    return dataclasses.replace(engine, scheduler=scheduler)


_WORKER_ENVIRONMENT = {
    # Without it ggml starts a debugger to print a trace when it aborts.
    "GGML_NO_BACKTRACE": "1",
    # OpenMP's threads spin while they wait for each other at every layer. Without a bound, threads
    # whose cores have other work were eight to a hundred times slower; sleeping at once made the
    # short steps of a small model twice as slow. So many rounds are a millisecond or two; with a
    # fifth of them a first token of such a model still took a tenth longer.
    "GOMP_SPINCOUNT": "100000",
}


async def _spawn(folder: Path) -> asyncio.subprocess.Process:
    with (folder / "stderr").open("wb") as stderr:
        return await asyncio.create_subprocess_exec(
            *python_command(WORKER),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=child_environment(_WORKER_ENVIRONMENT),
            **spawn_options(),
        )
