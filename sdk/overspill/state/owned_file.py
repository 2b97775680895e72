"""Files that decide what a client believes: its own user's, closed to others, or refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from overspill.errors import ConfigurationError


def make_owned(path: Path, what: str) -> None:
    """Makes the file (mode 0600) and its folder (0700) where they are missing, and checks it.

    Raises ``ConfigurationError`` when it is no regular file, belongs to another user or is open to
    others: whoever can write it could make this client forget what it has seen.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made only if missing, and never through a link that somebody else has put there.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise _unusable(path, what, f"cannot be opened ({error.strerror})") from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _unusable(path, what, "is no regular file")
    if os.name != "posix":  # elsewhere the user profile's own access list has to do
        return
    if status.st_uid != os.geteuid():
        raise _unusable(path, what, "belongs to another user")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigurationError(
            f"{what} {path} is open to others (mode {mode:04o}).",
            mend=f"Run: chmod 600 {path} - and look at what it says if others may have changed it.",
        )


def _unusable(path: Path, what: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} {path} {why}.", mend="Check the path, its owner and its permissions."
    )
