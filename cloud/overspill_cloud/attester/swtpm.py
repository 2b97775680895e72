"""A software TPM as a child process, spoken to over a socket pair: no port, no path, no race.

It ends when this process does, since the connection ends with it (``--terminate``).
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from overspill.errors import ConfigurationError

_STOP_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 30.0
_HEADER_BYTES = 10


def program() -> str:
    """Where swtpm is. Raises ``ConfigurationError`` where it is not installed."""
    found = shutil.which("swtpm")
    if found is None:
        raise ConfigurationError(
            "swtpm is not installed.",
            mend="On Debian: apt-get install swtpm. Or use --attester dev.",
        )
    return found


class SwtpmProcess:
    """A running swtpm whose state lies in ``state``; its registers start cleared.

    Raises ``ConfigurationError`` when swtpm is not installed or does not start.
    """

    def __init__(self, state: Path) -> None:
        path = program()
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(path, "socket", "--tpm2", "--terminate"),
                    *("--fd", str(theirs.fileno())),
                    *("--tpmstate", f"dir={state}"),
                    *("--flags", "not-need-init,startup-clear"),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        ours.settimeout(_ANSWER_TIMEOUT_S)
        self._socket = ours
        self.tcti = _tcti(ours)

    def close(self) -> None:
        """Ends the TPM; safe to call twice."""
        self._socket.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _tcti(connection: socket.socket) -> Any:
    """A TCTI (TPM command transmission interface) over a connected socket."""
    from tpm2_pytss.TCTI import PyTCTI

    class SocketTcti(PyTCTI):  # type: ignore[misc]  # the library ships no types
        def do_transmit(self, command: bytes) -> None:
            connection.sendall(command)

        def do_receive(self, timeout: int) -> bytes:
            header = _exactly(connection, _HEADER_BYTES)
            size = int.from_bytes(header[2:6], "big")
            return header + _exactly(connection, size - _HEADER_BYTES)

    return SocketTcti()


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("the software TPM is gone")
        data += piece
    return data
