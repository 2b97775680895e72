"""What the user's service manager is told about the daemon, as the texts of its files.

systemd listens itself and starts the daemon at the first connection (socket activation,
sd_listen_fds(3)). launchd would do the same, but hands sockets over by ``launch_activate_socket``
alone, a C function that Python does not offer: there the daemon starts with the session and is
kept alive.
"""

from __future__ import annotations

import plistlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from overspill.cli.units import LABEL, MARK, SERVICE, SOCKET_UNIT, Manager, log_file
from overspill.config import ENVIRONMENT, Places
from overspill.errors import ConfigurationError, UsageError
from overspill_edge.listen import MAX_SOCKET_PATH_BYTES, SOCKET_NAME

STOP_TIMEOUT_S: Final = 45
"""Longer than the daemon's own drain, so that nothing is cut off that it would let end."""
_HOPELESS: Final = (2, 3, 4, 5, 7)
"""Exit codes that another start would not mend: see ``overspill.terminal``."""
_PRIVATE_TMP: Final = ("/tmp", "/var/tmp")  # noqa: S108 - their names, nothing is put there


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """What is installed: this interpreter, these places, and the variables set at the time."""

    places: Places
    environment: Mapping[str, str] = field(default_factory=dict)
    interpreter: str = sys.executable

    @property
    def command(self) -> tuple[str, ...]:
        """-P: a folder named `overspill` where it starts must not be taken for the package."""
        start = (self.interpreter, "-P", "-m", "overspill.cli.main", "serve")
        return (*start, "--log-file", str(log_file(self.places)))

    @property
    def socket(self) -> Path:
        """Where programs find the daemon."""
        return self.places.runtime / SOCKET_NAME


def kept_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Our own variables of those: a floor that was set in a shell has to hold in the service."""
    return {name: environ[name] for name in ENVIRONMENT if environ.get(name)}


def unit_texts(manager: Manager, options: UnitOptions) -> dict[Path, str]:
    """Each file of the manager with its text.

    Raises ``ConfigurationError`` for a path that no unit file can hold.
    """
    for text in (*options.command, str(options.socket), *options.environment.values()):
        if any(ord(char) < 32 for char in text):
            raise ConfigurationError(
                f"{text!r} has a control character: it cannot stand in a unit file.",
                mend="Use another folder.",
            )
    if manager.name == "launchd":
        return {manager.files[0]: _plist(options)}
    texts = {SERVICE: _service_unit(options), SOCKET_UNIT: _socket_unit(options)}
    return {file: texts[file.name] for file in manager.files}


def write_units(texts: Mapping[Path, str]) -> None:
    """Write the files, each by one rename.

    Raises ``UsageError`` where a file of that name is not ours, before any is written.
    """
    for file in texts:
        if file.is_symlink() or (file.exists() and MARK not in _text_of(file)):
            raise UsageError(
                f"{file} is there and was not written by overspill.", mend="Move it away first."
            )
    for file, text in texts.items():
        half = file.with_name(f".{file.name}.new")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            half.write_text(text, encoding="utf-8")
            half.replace(file)
        except OSError as error:
            raise ConfigurationError(
                f"{file} cannot be written: {error.strerror}.", mend="Check its folder."
            ) from None


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _service_unit(options: UnitOptions) -> str:
    lines = [f"Environment={_word(f'{n}={v}')}" for n, v in sorted(options.environment.items())]
    return f"""\
# {MARK}; `overspill service uninstall` removes it.
[Unit]
Description=Overspill: language models for the programs of this user
Requires={SOCKET_UNIT}
After={SOCKET_UNIT}

[Service]
Type=exec
ExecStart={" ".join(_word(word, command=True) for word in options.command)}
{"".join(line + chr(10) for line in lines)}\
Restart=on-failure
RestartPreventExitStatus={" ".join(map(str, _HOPELESS))}
TimeoutStopSec={STOP_TIMEOUT_S}
KillMode=mixed
# Prompts are in memory: no core file, and no file that others can read.
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
{_own_view(options)}"""


def _own_view(options: UnitOptions) -> str:
    """A file system of its own, unless the user's places lie where that would hide them."""
    places = options.places
    mine = (places.config, places.data, places.state, places.cache, places.runtime)
    if any(place.is_relative_to(tmp) for place in mine for tmp in _PRIVATE_TMP):
        return "# No PrivateTmp: this installation keeps its files there.\n"
    return "PrivateTmp=yes\nProtectSystem=full\n"


def _socket_unit(options: UnitOptions) -> str:
    if len(str(options.socket).encode()) > MAX_SOCKET_PATH_BYTES:
        raise ConfigurationError(
            f"{options.socket} is too long for a socket's path.", mend="Shorten OVERSPILL_HOME."
        )
    return f"""\
# {MARK}; `overspill service uninstall` removes it.
[Unit]
Description=Overspill: the socket that starts the daemon

[Socket]
ListenStream={str(options.socket).replace("%", "%%")}
SocketMode=0600
DirectoryMode=0700

[Install]
WantedBy=sockets.target
"""


def _word(text: str, *, command: bool = False) -> str:
    """One word of a unit file, quoted: systemd.service(5), "Command lines"; specifiers by %%."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace("$", "$$") if command else escaped}"'


def _plist(options: UnitOptions) -> str:
    errors = log_file(options.places).with_name("launchd.err")
    document: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": list(options.command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 60,
        "ExitTimeOut": STOP_TIMEOUT_S,
        "Umask": 0o077,
        "HardResourceLimits": {"Core": 0},
        "SoftResourceLimits": {"Core": 0},
        "StandardErrorPath": str(errors),
    }
    if options.environment:
        document["EnvironmentVariables"] = dict(options.environment)
    text = plistlib.dumps(document).decode()
    return text.replace("<plist ", f"<!-- {MARK}. -->\n<plist ", 1)
