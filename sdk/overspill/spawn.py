"""How child processes are started: never by a fork of this one, which may hold gRPC's threads."""

from __future__ import annotations

import sys
from typing import TypedDict


class SpawnOptions(TypedDict, total=False):
    """Keyword arguments for :class:`subprocess.Popen`."""

    close_fds: bool


def spawn_options(platform: str = sys.platform) -> SpawnOptions:
    """What starts a program, named by its whole path, without a fork.

    Linux's ``vfork`` and Windows need nothing. On macOS ``subprocess`` forks unless descriptors
    stay as they are; then it takes ``posix_spawn``. Python's own descriptors are not inherited
    either way (PEP 446). A fork runs gRPC's handlers in the child: with calls in flight 5 to 139 of
    300 children died before their program began (grpcio 1.85, forks forced on Linux).
    """
    return {"close_fds": False} if platform == "darwin" else {}
