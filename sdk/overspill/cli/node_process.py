"""A cloud node of one's own on loopback, for the demo: a real process, spoken to as any other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overspill.config import child_environment
from overspill.errors import ConnectFailed, MissingExtra, OverspillError, error_of
from overspill.spawn import spawn_options

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A running node: where it listens, where its state is, and what it said at its start."""

    listen: str
    state: Path
    started: dict[str, Any]
    model_name: str
    model_sha256: str


@contextlib.contextmanager
def running_node(
    name: str, model: Path, state: Path, attester: str = "dev", release: Path | None = None
) -> Iterator[NodeProcess]:
    """Start ``overspill-cloud serve`` on a free loopback port; stop it at the end.

    ``name`` is what the node calls the model in the file ``model``; ``release`` is the signed
    release that it is to be, with its proof beside it. Raises ``MissingExtra``
    without the cloud package's needs, and ``ConnectFailed`` with the node's own last line when it
    does not start.
    """
    options = ["--model", f"{name}={model}", "--listen", "127.0.0.1:0", "--state", str(state)]
    options += ["--attester", attester, "--stop-with-stdin"]
    options += ["--release", str(release)] if release else []
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((state / "node.log").open("w+", encoding="utf-8"))
        process = subprocess.Popen(
            [*_command(), "serve", *options, "--json"],
            stdin=subprocess.PIPE,  # its end is our end: the node stops, however we went
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=child_environment(),
            **spawn_options(),
        )
        stack.callback(_stop, process)
        line = _first_line(process)
        if not line.startswith("{") or "listen" not in (said := json.loads(line)):
            _stop(process)
            log.seek(0)
            raise _not_started(line, log.read())
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        yield NodeProcess(said["listen"], state, said, name, digest)


def enrolment_code(state: Path) -> str:
    """A one-time code from the node's operator (here: ourselves)."""
    done = subprocess.run(
        [*_command(), "enroll-code", "--state", str(state), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=START_TIMEOUT_S,
        **spawn_options(),
    )
    if done.returncode:
        raise _not_started(done.stdout, done.stderr)
    return str(json.loads(done.stdout)["code"])


def _first_line(process: subprocess.Popen[str]) -> str:
    """What the node says when it is ready, or why it is not; a node that hangs is ended."""
    late = threading.Timer(START_TIMEOUT_S, process.kill)
    late.start()
    try:
        return process.stdout.readline() if process.stdout else ""
    finally:
        late.cancel()


def _command() -> list[str]:
    return [sys.executable, "-m", "overspill_cloud"]


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _not_started(said: str, log: str) -> OverspillError:
    """The node's own error where it named one."""
    if "No module named" in log:
        return MissingExtra("The demo's cloud node", "cloud")
    if said.startswith('{"error"'):
        fields = json.loads(said)["error"]
        return error_of(fields.pop("code"), fields)
    lines = [line for line in (log + said).splitlines() if line.strip()]
    return ConnectFailed(f"The cloud node did not start: {lines[-1] if lines else 'no word'}")
