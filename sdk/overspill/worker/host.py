"""The worker's side: serve one engine or embedder until the parent is gone."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO, NoReturn

from overspill import errors
from overspill.engines.base import Engine
from overspill.engines.embedder import Embedder
from overspill.engines.embedders import open_embedder
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.registry import open_engine
from overspill.garbage import collect_less
from overspill.transport.local.options import LocalOptions
from overspill.transport.local.worker_server import serve_worker
from overspill.wire import convert

_STDIN = 0
_PARENT_CHECK_S = 1.0
_TELL_LOADING_S = 0.1


def main() -> None:
    """Serve until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    _forbid_core_dumps()
    answer = _take_stdout()
    orders = json.loads(_first_line() or b"{}")
    if not orders:
        sys.exit("overspill.worker is started by overspill itself.")
    watch = threading.Thread(
        target=_end_with_parent, args=(orders["folder"], orders["parent"]), daemon=True
    )
    watch.start()
    collect_less()
    asyncio.run(_work(orders, answer))


async def _work(orders: Mapping[str, Any], answer: BinaryIO) -> None:
    try:
        served = _open(orders)
        await _started(served, answer)
        # Nobody else may connect, not even between the socket's birth and a chmod.
        old = os.umask(0o177)
        try:
            server, address = await serve_worker(
                served,
                orders["address"],
                token=orders["token"],
                options=LocalOptions(**orders["local"]),
            )
        finally:
            os.umask(old)
    except errors.OverspillError as error:
        _give_up(answer, error)
    except Exception as error:
        # What failed is told as it is, not as a crash: whoever asked sees an error of the tree.
        what = f"The worker of {orders['name']} failed: {type(error).__name__}: {error}"
        _give_up(answer, errors.EngineError(what, mend="Run `overspill doctor`."))
    _say(answer, {"address": address})
    await server.serve_forever()


async def _started(served: Engine | Embedder, answer: BinaryIO) -> None:
    """Start it, and tell meanwhile how far the model is loaded."""
    starting = asyncio.ensure_future(served.start())
    told = 0.0
    while not (await asyncio.wait({starting}, timeout=_TELL_LOADING_S))[0]:
        share = served.loading if isinstance(served, Engine) else None
        if share is not None and share > told:
            told = share
            _write(answer, {"loading": told})
    await starting


def _open(orders: Mapping[str, Any]) -> Engine | Embedder:
    options = dict(orders["options"])
    scheduler = SchedulerOptions(**options.pop("scheduler"))
    settings = EngineOptions(**options, scheduler=scheduler)
    opener = open_embedder if orders["role"] == "embedder" else open_engine
    return opener(orders["spec"], name=orders["name"], options=settings)


def _give_up(answer: BinaryIO, error: errors.OverspillError) -> NoReturn:
    _say(answer, {"error": base64.b64encode(convert.error_to_bytes(error)).decode()})
    # At once: a runtime that is half loaded may not end in good order.
    os._exit(0)


def _say(answer: BinaryIO, line: Mapping[str, str]) -> None:
    """The last line: where it listens, or why not."""
    _write(answer, line)
    answer.close()


def _write(answer: BinaryIO, line: Mapping[str, Any]) -> None:
    answer.write(json.dumps(line).encode() + b"\n")
    answer.flush()


def _first_line() -> bytes:
    """By its descriptor: in a windowed bundle there is no ``sys.stdin``."""
    with os.fdopen(os.dup(_STDIN), "rb", buffering=0) as stdin:
        return stdin.readline()


def _take_stdout() -> BinaryIO:
    """Keep stdout for our own lines; whatever a library prints goes to stderr."""
    mine = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return mine


def _end_with_parent(folder: str, parent: int) -> NoReturn:
    """The parent never writes again: the end of stdin means that it has stopped us, or died.

    A child that it forked may hold our stdin open; then we see that our parent is another.
    """
    if sys.platform == "win32":
        os.read(_STDIN, 1)
    else:
        while not select.select([_STDIN], [], [], _PARENT_CHECK_S)[0] and os.getppid() == parent:
            pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _forbid_core_dumps() -> None:
    # A dump of an aborted engine would hold prompts.
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
