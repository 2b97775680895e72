"""The daemon under the user's own service manager: which files, which commands, whether it runs.

What the files say is the daemon's business (``overspill_edge.service``); where they lie is also
the business of who removes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from overspill.config import Places
from overspill.errors import UsageError
from overspill.transport.handshake import SOCKET_NAME

ManagerName = Literal["systemd", "launchd"]
MARK: Final = "Written by `overspill service install`"
"""In every file that is ours; one without it is somebody else's and stays."""
SERVICE: Final = "overspill.service"
SOCKET_UNIT: Final = "overspill.socket"
LABEL: Final = "io.github.overspill.daemon"
UPGRADE: Final = "overspill serve --upgrade"
_COMMAND_TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Manager:
    """A service manager: its files, and its commands to look, to start and to stop.

    ``stop_daemon`` ends the daemon and leaves it installed; ``stop`` also forgets it;
    ``restart_daemon`` has it start anew, with what is installed by then.
    """

    name: ManagerName
    files: tuple[Path, ...]
    probe: tuple[str, ...]
    start: tuple[tuple[str, ...], ...]
    stop: tuple[tuple[str, ...], ...]
    after_removal: tuple[tuple[str, ...], ...]
    stop_daemon: tuple[str, ...]
    restart_daemon: tuple[str, ...]

    @property
    def installed(self) -> tuple[Path, ...]:
        """Those of its files that are there and ours."""
        return tuple(file for file in self.files if is_ours(file))


@dataclass(frozen=True, slots=True)
class Done:
    """A command of the service manager: whether it ran here, and what it said when it failed."""

    command: str
    ran: bool
    error: str | None = None


def this_manager(name: str | None = None) -> Manager:
    """The manager of this system, or the one named. Raises ``UsageError`` where there is none."""
    if name is None:
        name = "launchd" if sys.platform == "darwin" else "systemd"
        if sys.platform == "win32":
            raise UsageError(
                "This system has neither launchd nor systemd.",
                mend="Run: overspill serve --tcp 127.0.0.1:0",
            )
    if name == "systemd":
        return _systemd()
    if name == "launchd":
        return _launchd()
    raise UsageError(f"--manager is '{name}'.", mend="Use systemd or launchd.")


def how_to_replace() -> str:
    """The command by which this user's daemon becomes one of the version that is installed now.

    Under a service manager that is the manager's: a daemon started by hand in its place would
    have a socket that the manager still listens on, and starts another daemon for.
    """
    with suppress(UsageError):  # no service manager on this system
        manager = this_manager()
        if manager.installed:
            return " ".join(manager.restart_daemon)
    return UPGRADE


def _systemd() -> Manager:
    from platformdirs import PlatformDirs

    folder = PlatformDirs("systemd", appauthor=False).user_config_path / "user"
    control = ("systemctl", "--user")
    return Manager(
        name="systemd",
        files=(folder / SERVICE, folder / SOCKET_UNIT),
        probe=(*control, "show-environment"),
        start=((*control, "daemon-reload"), (*control, "enable", "--now", SOCKET_UNIT)),
        stop=((*control, "disable", "--now", SOCKET_UNIT, SERVICE),),
        after_removal=((*control, "daemon-reload"),),
        stop_daemon=(*control, "stop", SOCKET_UNIT, SERVICE),
        restart_daemon=(*control, "restart", SERVICE),
    )


def _launchd() -> Manager:
    file = Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    user = os.getuid() if hasattr(os, "getuid") else 0
    domain = f"gui/{user}"
    stop = ("launchctl", "bootout", f"{domain}/{LABEL}")
    return Manager(
        name="launchd",
        files=(file,),
        probe=("launchctl", "print", domain),
        start=(("launchctl", "bootstrap", domain, str(file)),),
        stop=(stop,),
        after_removal=(),
        stop_daemon=stop,
        restart_daemon=("launchctl", "kickstart", "-k", f"{domain}/{LABEL}"),
    )


def is_ours(file: Path) -> bool:
    """Whether ``overspill service install`` wrote it; a link is nobody's."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        return MARK in file.read_text("utf-8")
    except (OSError, ValueError):
        return False


def is_reachable(manager: Manager) -> bool:
    """Whether the manager answers this user here: in a container it mostly does not."""
    return shutil.which(manager.probe[0]) is not None and _run(manager.probe).error is None


def run_all(commands: tuple[tuple[str, ...], ...], *, reachable: bool) -> tuple[Done, ...]:
    """Run the commands in order, or only say them where the manager cannot be reached."""
    return tuple(_run(c) if reachable else Done(" ".join(c), ran=False) for c in commands)


def _run(command: tuple[str, ...]) -> Done:
    text = " ".join(command)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Done(text, ran=True, error=type(error).__name__)
    if done.returncode == 0:
        return Done(text, ran=True)
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    return Done(text, ran=True, error=said)


def daemon_runs(places: Places) -> bool:
    """Whether a daemon holds the lock of the default socket, or the user's (it may listen
    elsewhere).

    The locks and not a connection: a connection would start a daemon that waits for one.
    """
    locks = (places.runtime / f"{SOCKET_NAME}.lock", places.state / "daemon.lock")
    return any(map(_is_held, locks))


def _is_held(lock: Path) -> bool:
    if sys.platform == "win32" or not lock.is_file():
        return False
    import fcntl

    descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def log_file(places: Places) -> Path:
    """Where the installed daemon writes its log."""
    return places.state / "log" / "daemon.log"
