"""How an app finds the daemon of its user where there are no Unix sockets (Windows): a file.

The runtime folder has it, and only its user can read it. It says where on loopback the daemon
listens, and holds two secrets of that daemon's life: a token, which proves the app to the daemon,
and a key, which never travels. With the key the daemon proves itself in its greeting, before it is
told a prompt: whoever took the port of one that died knows the address, and not the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path

from overspill.errors import DaemonRefused

FILE_NAME = "overspill-loopback.json"
HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX")
"""Whether daemons and apps meet at Unix sockets, and not by that file."""


@dataclass(frozen=True, slots=True)
class Loopback:
    """``http`` is ``127.0.0.1:PORT``."""

    http: str
    token: str = field(repr=False)
    key: str = field(repr=False)

    def proof(self, nonce: str, address: str, ticket: str) -> str:
        """That whoever answers ``nonce`` with that gRPC address and ticket knows the key."""
        said = json.dumps([nonce, address, ticket]).encode()
        return hmac.new(self.key.encode(), said, hashlib.sha256).hexdigest()

    def is_proof(self, proof: str, nonce: str, address: str, ticket: str) -> bool:
        """Whether it is that one."""
        return hmac.compare_digest(proof.encode(), self.proof(nonce, address, ticket).encode())

    def write(self, file: Path) -> None:
        """For this user alone from its first moment; in one step."""
        beside = file.with_suffix(f".{os.getpid()}")
        beside.unlink(missing_ok=True)
        opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(opened, "w", encoding="utf-8") as out:
            json.dump(asdict(self), out)
        beside.replace(file)


def read_loopback(file: Path) -> Loopback | None:
    """What the daemon wrote; None where there is none. Raises ``DaemonRefused`` for a file that
    others could have written or read."""
    try:
        found = file.stat()
        text = file.read_text(encoding="utf-8")
    except OSError:
        return None
    # Windows' profile folders are private by their access lists; there are no owners to compare.
    shared = os.name == "posix" and (
        found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077
    )
    if shared:
        raise DaemonRefused(f"Other users could open {file}.", mend="Remove it, and restart.")
    try:
        return Loopback(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DaemonRefused(f"{file} cannot be read.", mend="Restart the daemon.") from error
