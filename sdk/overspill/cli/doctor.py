"""`overspill doctor`: what is installed, and whether device and cloud really answer."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from overspill import __version__
from overspill.cli.common import (
    CloudAddress,
    Json,
    Model,
    TrustPolicyFile,
    print_json,
    settings_for,
)
from overspill.cli.units import daemon_runs, how_to_replace
from overspill.config import Places, Settings
from overspill.engines.live_memory import available_memory
from overspill.errors import OverspillError
from overspill.opening import open_routing_policy, open_trust_policy
from overspill.policy_lock import AdminPolicy, policy_lock
from overspill.sync import Overspill

_MIB = 1 << 20
PACKAGES = {
    "llama-cpp-python": "llama",
    "mlx": "mlx",
    "mlx-lm": "mlx",
    "starlette": "edge",
    "sqlalchemy": "cloud",
    "keyring": "keys",
    "tpm2-pytss": "tpm",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``ok`` None is a fact without a judgement."""

    name: str
    ok: bool | None
    detail: str


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("doctor")(doctor)


def doctor(
    model: Model = None,
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    as_json: Json = False,
) -> int:
    """Check the installation, the device's model and the cloud. Exit 0, or 1 when one fails."""
    settings = settings_for(model, cloud, trust_policy)
    checks = [*_installed(), _places(settings), *(rules := list(_rules(settings)))]
    if all(rule.ok for rule in rules):
        checks.extend(_answering(settings))
    else:
        checks.append(Check("device model", None, "not tried: mend the rules first"))
    checks.append(_daemon(settings.places))
    if as_json:
        print_json({"checks": checks})
    else:
        for check in checks:
            mark = {True: "ok", False: "FAILED", None: ""}[check.ok]
            print(f"{check.name:<20} {mark:<7} {check.detail}".rstrip())
    return 1 if any(check.ok is False for check in checks) else 0


def _installed() -> Iterator[Check]:
    yield Check("overspill", None, __version__)
    yield Check(
        "python", None, f"{platform.python_version()} on {sys.platform} {platform.machine()}"
    )
    for package, extra in PACKAGES.items():
        try:
            yield Check(package, None, version(package))
        except PackageNotFoundError:
            yield Check(package, None, f"not installed (extra '{extra}')")


def _places(settings: Settings) -> Check:
    state = settings.places.state
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = state / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Check("state folder", False, f"{state}: {error.strerror}")
    return Check("state folder", True, str(Path(state)))


def _rules(settings: Settings) -> Iterator[Check]:
    """What the user's files and the administrator's have to say: each that is wrong, by itself."""
    readers: tuple[tuple[str, Callable[[], str | None]], ...] = (
        ("administrator", lambda: _path_of(policy_lock(settings).current())),
        ("routing policy", lambda: open_routing_policy(settings).version or "without a version"),
        ("trust policy", lambda: open_trust_policy(settings).source if settings.cloud else None),
    )
    for name, read in readers:
        try:
            found = read()
        except OverspillError as error:
            yield Check(name, False, str(error))
        else:
            if found is not None:
                yield Check(name, True, found)


def _path_of(above: AdminPolicy | None) -> str | None:
    return None if above is None else f"{above.path}: its rules hold (see `overspill policy`)"


def _daemon(places: Places) -> Check:
    """The user's daemon; one of another version is told, because an upgrade leaves it running."""
    if not daemon_runs(places):
        return Check("daemon", None, "none runs")
    try:
        record = json.loads((places.state / "daemon.json").read_text("utf-8"))
        runs, pid = str(record["version"]), int(record["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return Check("daemon", None, "runs; who it is cannot be read")
    told = f"runs as process {pid}, version {runs}"
    if runs != __version__:
        return Check("daemon", False, f"{told}; replace it: {how_to_replace()}")
    return Check("daemon", True, told)


def _answering(settings: Settings) -> Iterator[Check]:
    try:
        with Overspill(app="doctor", settings=settings, daemon="never") as ai:
            state = ai.availability()
            if state.device.value == "available":
                yield from _memory(ai)
                yield _answer(ai)
                # Again: what a first answer showed, a draft model that failed, is told too.
                yield Check("device health", None, ai.availability().device_reason)
            else:
                yield Check("device model", False, state.device_reason)
            if settings.cloud is None:
                yield Check("cloud", None, "none is set")
            else:
                yield Check("cloud", state.cloud.value == "available", state.cloud_reason)
    except OverspillError as error:
        yield Check("device model", False, str(error))


def _memory(ai: Overspill) -> Iterator[Check]:
    """What the model was estimated to take, and what its user has to know."""
    card = ai.models()[0]
    if not card.memory_bytes:
        return
    free = available_memory()
    there = "" if free is None else f"; {free / _MIB:,.0f} MiB are free beside it"
    detail = f"{card.memory_bytes / _MIB:,.0f} MiB with a full context of {card.context} tokens"
    yield Check("device memory", None, detail + there)
    for note in card.notes:
        yield Check("device memory", None, note)


def _answer(ai: Overspill) -> Check:
    try:
        reply = ai.chat("Hello", max_tokens=8, privacy="device")
    except OverspillError as error:
        return Check("device model", False, str(error))
    rate = reply.usage.decode_tokens_per_s
    speed = f", {rate:.0f} tokens/s" if rate else ""
    return Check("device model", True, f"{reply.model} answered in {reply.total_s:.2f} s{speed}")
