"""The administrator's rules for a machine: a file that users cannot write, above all that they say.

It wins over settings, environment and request, and can only take away::

    privacy = "device"               # no request may have a weaker floor
    clouds = ["node.example:8443"]   # addresses that may be used; [] for none
    third_parties = false            # no API of a third party, consent or not
    models = ["brook", "qwen3-4b"]   # models that may answer, here and in a cloud

What is left out is left to the user. The file is looked at with each request, so that a change
holds from the next one on. One that somebody else could write, or that cannot be understood, lets
nothing through: nobody can know what it was to forbid.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overspill.config import AdminPlace, Settings
from overspill.errors import ConfigurationError
from overspill.types.chat import Privacy

_KEYS = ("privacy", "clouds", "third_parties", "models")
MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class AdminPolicy:
    """What the file says. None leaves a choice to the user; an empty tuple allows none."""

    path: Path
    sha256: str
    privacy: Privacy | None = None
    clouds: tuple[str, ...] | None = None
    third_parties: bool | None = None
    models: tuple[str, ...] | None = None

    def allows_model(self, name: str) -> bool:
        """Whether a model of this name may answer."""
        return self.models is None or name in self.models

    def allows_cloud(self, addresses: Iterable[str]) -> bool:
        """Whether a cloud may be used: of several addresses each has to be allowed."""
        return self.clouds is None or set(addresses) <= set(self.clouds)

    def as_dict(self) -> dict[str, Any]:
        """As ``overspill policy`` and ``/overspill/v1/policy`` show it."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "privacy": None if self.privacy is None else self.privacy.value,
            "clouds": None if self.clouds is None else list(self.clouds),
            "third_parties": self.third_parties,
            "models": None if self.models is None else list(self.models),
        }


def system_place() -> AdminPlace:
    """This system's. The environment, which users can set, has no say."""
    if sys.platform == "darwin":
        return AdminPlace(Path("/Library/Application Support/overspill/policy.toml"))
    if sys.platform == "win32":
        import ctypes

        folder = ctypes.create_unicode_buffer(260)
        common_appdata = 0x23  # CSIDL_COMMON_APPDATA: C:\\ProgramData, wherever Windows is
        ctypes.windll.shell32.SHGetFolderPathW(None, common_appdata, None, 0, folder)
        return AdminPlace(Path(folder.value) / "overspill" / "policy.toml")
    return AdminPlace(Path("/etc/overspill/policy.toml"))


def policy_lock(settings: Settings) -> PolicyLock:
    """The lock that holds for ``settings``."""
    return PolicyLock(settings.admin_policy or system_place())


class PolicyLock:
    """The file at ``place``, read again when it is another one than last time."""

    def __init__(self, place: AdminPlace) -> None:
        self._place = place
        self._seen: tuple[int, ...] | None = None
        self._policy: AdminPolicy | None = None

    def current(self) -> AdminPolicy | None:
        """The rules in force; None where there is no file.

        Raises ``ConfigurationError`` for a file that others could write, or that is wrong.
        """
        path = self._place.path
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._seen = self._policy = None
            return None
        except OSError as error:
            raise _unusable(path, f"cannot be looked at ({error.strerror})") from None
        # The inode's change time tells of an owner and a mode too.
        seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        if seen != self._seen:
            self._policy = _read(self._place)
            self._seen = seen
        return self._policy


def _read(place: AdminPlace) -> AdminPolicy:
    path = place.path
    try:
        with path.open("rb") as file:
            _check_nobody_else_writes(path, os.fstat(file.fileno()), place.owner_uid)
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror})") from None
    if len(raw) > MAX_BYTES:
        raise _unusable(path, f"is over {MAX_BYTES} bytes")
    try:
        return parse_admin_policy(raw, path)
    except (ValueError, TypeError) as error:
        raise _unusable(path, f"is no policy: {error}") from None


def parse_admin_policy(raw: bytes, path: Path) -> AdminPolicy:
    """The rules in ``raw``. Raises ``ValueError`` or ``TypeError`` for what is none."""
    document = tomllib.loads(raw.decode("utf-8"))
    unknown = sorted(set(document) - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown key '{unknown[0]}', known are {', '.join(_KEYS)}")
    privacy = document.get("privacy")
    if privacy is not None and privacy not in tuple(Privacy):
        raise ValueError("privacy is none of device, attested, any")
    third_parties = document.get("third_parties")
    if third_parties is not None and not isinstance(third_parties, bool):
        raise TypeError("third_parties is neither true nor false")
    return AdminPolicy(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        privacy=None if privacy is None else Privacy(privacy),
        clouds=_names(document, "clouds"),
        third_parties=third_parties,
        models=_names(document, "models"),
    )


def _names(document: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise TypeError(f"{key} is no list of names")
    return tuple(value)


def _check_nobody_else_writes(path: Path, found: os.stat_result, owner_uid: int) -> None:
    """The file, and its folder, in which it could be replaced."""
    if sys.platform == "win32":
        _check_windows(path)
        return
    folder = path.parent.stat()
    for what, status in ((path, found), (path.parent, folder)):
        if status.st_uid != owner_uid:
            raise _unusable(path, f"is not safe: {what} belongs to user {status.st_uid}")
        if status.st_mode & 0o022:
            mode = stat.S_IMODE(status.st_mode)
            raise _unusable(path, f"is not safe: others may write {what} ({mode:o})")


def _check_windows(path: Path) -> None:
    """There are no modes: a user who is no administrator must not be able to open it to write."""
    import ctypes

    if ctypes.windll.shell32.IsUserAnAdmin():  # type: ignore[attr-defined,unused-ignore]  # Windows only
        return
    try:
        with path.open("r+b"):
            pass
    except PermissionError:
        return
    raise _unusable(path, "is not safe: this user may write it")


def _unusable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The administrator's policy {path} {why}. Nothing is answered.",
        mend="It has to belong to the administrator, with mode 644 in a folder of mode 755.",
    )
