"""Files that hold secrets: readable by their owner only, or refused."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from overspill.errors import ConfigurationError


def read_private(path: Path) -> str | None:
    """The file's text, None when there is no file.

    Raises ``ConfigurationError`` when it is no regular file, belongs to somebody else, or others
    may read or write it: a secret that was open to others is no secret any more.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, f"cannot be opened ({error.strerror})") from error
    try:
        _check(path, os.fstat(descriptor))
        with os.fdopen(descriptor, encoding="utf-8", closefd=False) as file:
            return file.read()
    except (UnicodeDecodeError, OSError) as error:
        raise _unusable(path, "cannot be read as text") from error
    finally:
        os.close(descriptor)


def write_private(path: Path, text: str) -> None:
    """Writes ``text`` so that a crash leaves the old file or the new one, mode 0600 from the start.

    The folder is made with mode 0700. Raises ``ConfigurationError`` when it cannot be written.
    """
    _write_whole(path, text, _replace)


def create_private(path: Path, text: str) -> bool:
    """As :func:`write_private` where there is nothing yet; of several at once one wins. False, and
    nothing changed, where there is something."""
    return _write_whole(path, text, _move_to_new)


def _write_whole(path: Path, text: str, move: Callable[[Path, Path], bool]) -> bool:
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(part, text)
        return move(part, path)
    except OSError as error:
        raise _unusable(path, f"cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _replace(part: Path, path: Path) -> bool:
    part.replace(path)
    return True


def _move_to_new(part: Path, path: Path) -> bool:
    try:
        if os.name == "posix":
            os.link(part, path)
        else:
            part.rename(path)  # which replaces nothing there
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return not path.exists() and _replace(part, path)
    return True


def _write_new(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _unusable(path, "is no regular file")
    if os.name != "posix":  # elsewhere the user profile's own access list has to do
        return
    if status.st_uid != os.geteuid():
        raise _unusable(path, "belongs to another user")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigurationError(
            f"The key file {path} is open to others (mode {mode:04o}).",
            mend=f"Run: chmod 600 {path} - and replace the key if others may have read it.",
        )


def _unusable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The key file {path} {why}.", mend="Check the path, its owner and its permissions."
    )
