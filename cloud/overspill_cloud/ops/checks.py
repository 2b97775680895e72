"""What a node needs, looked at before it is started; nothing is loaded and nothing is changed but
that an address is bound for a moment."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from overspill._version import __version__
from overspill.errors import OverspillError
from overspill.transport.base import is_local_address
from overspill_cloud.app import ECHO, parse_model
from overspill_cloud.attester import choose_attester
from overspill_cloud.certificates import TlsFiles
from overspill_cloud.listen import check_listen
from overspill_cloud.ops.database_check import look_at_database
from overspill_cloud.upstream.address import is_upstream

LOW_DISK_BYTES: Final = 1 << 30
_EXTRAS: Final = {
    "llama_cpp": "llama",
    "mlx_lm": "mlx",
    "httpx2": "upstream",
    "opentelemetry.sdk": "otel",
    "ray": "fleet",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``ok`` None is a fact without a judgement."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the node is to be started."""

    models: tuple[str, ...]
    state: Path
    listen: str
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    database: str | None = None


def look(wanted: Wanted) -> list[Check]:
    """Everything, in the order in which a start would meet it."""
    python = ".".join(map(str, sys.version_info[:3]))
    return [
        Check("version", None, f"overspill {__version__}, Python {python}"),
        Check("extras", None, _extras()),
        _tried("listen", lambda: _listen(wanted)),
        *([_tried("tls", lambda: _tls(wanted))] if wanted.tls_certificate else []),
        _state(wanted.state),
        _disk(wanted.state),
        _tried("database", lambda: look_at_database(wanted.state, wanted.database)),
        _tried("attester", lambda: choose_attester("auto", wanted.state)),
        *(_tried("model", lambda text=text: _model(text)) for text in wanted.models),  # type: ignore[misc]  # a lambda's default
    ]


def _tried(name: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name, True, attempt())
    except OverspillError as error:
        return Check(name, False, error.message, error.mend)


def _extras() -> str:
    def is_there(module: str) -> bool:
        try:
            return find_spec(module) is not None
        except ModuleNotFoundError:  # its parent is missing
            return False

    return ", ".join(extra for module, extra in _EXTRAS.items() if is_there(module)) or "none"


def _listen(wanted: Wanted) -> str:
    check_listen(wanted.listen)
    if not is_local_address(wanted.listen) and wanted.tls_certificate is None:
        return f"{wanted.listen} is free; it needs --tls-cert and --tls-key"
    return f"{wanted.listen} is free"


def _tls(wanted: Wanted) -> str:
    if wanted.tls_certificate is None or wanted.tls_key is None:
        return "none"
    TlsFiles(wanted.tls_certificate, wanted.tls_key)
    return "certificate and key fit"


def _state(folder: Path) -> Check:
    if not folder.exists():
        return Check("state", None, f"{folder} is made at the first start")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Check("state", False, f"{folder} cannot be written.", "Give another --state.")
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        mend = f"chmod 700 {folder}"
        return Check("state", False, f"{folder} can be read by others.", mend)
    return Check("state", True, str(folder))


def _disk(folder: Path) -> Check:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    detail = f"{free / 2**30:.1f} GiB free for state"
    if free < LOW_DISK_BYTES:
        return Check("disk", False, detail, "Make room: a ledger that cannot be written stops.")
    return Check("disk", True, detail)


def _model(text: str) -> str:
    spec = parse_model(text)
    if spec.source == ECHO:
        return f"{spec.name}: echo, without weights"
    if is_upstream(spec.source):
        return f"{spec.name}: {spec.source}"
    path = Path(spec.source)
    files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
    try:
        size = sum(file.stat().st_size for file in files if file.is_file() or not path.is_dir())
    except OSError as error:
        from overspill.errors import ModelNotFound

        raise ModelNotFound(
            f"The model {path} cannot be read: {error.strerror}.", mend="Give --model NAME=FILE"
        ) from error
    return f"{spec.name}: {size / 2**20:.0f} MiB"
