"""This device, measured: tokens per second by context, free memory, battery, heat.

Speeds are what generations on this device really reached (:mod:`overspill.pace`): a slower device,
or a hot one, shows by itself. They are kept per model from one start to the next. Memory, power
and temperature are asked of the operating system, at most every few seconds.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from overspill.pace import Clock, Pace
from overspill.types.card import ModelCard
from overspill.types.route import DeviceProfile, Route
from overspill.types.usage import Usage

SYSTEM_S = 5.0
"""What the operating system said counts for so long."""
KEPT_S = 30 * 86_400
"""A model's speeds that were not confirmed for a month are forgotten."""
SAVE_EVERY = 32
_POWER = Path("/sys/class/power_supply")
_THERMAL = Path("/sys/class/thermal")
_MEMINFO = Path("/proc/meminfo")


class DeviceMeter:
    """Learns this device's speeds from finished generations, for one model at a time.

    ``path`` is the file that keeps them between starts; None keeps nothing. A file that cannot be
    read or written costs what it held, and nothing else. Belongs to one event loop.
    """

    def __init__(self, path: Path | None = None, *, clock: Clock = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._kept: dict[str, Any] = _read_kept(path)
        self._model = ""
        self._pace = Pace()
        self._under_way = 0
        self._unsaved = 0
        self._system: tuple[float, DeviceProfile] | None = None

    def use(self, card: ModelCard) -> None:
        """Measure this model from now on, beginning with what is kept of it."""
        name = _name(card)
        if name == self._model:
            return
        self.save()
        self._model = name
        kept = self._kept.get(name)
        try:
            self._pace = Pace.from_json(kept["pace"]) if kept else Pace()
        except (AttributeError, KeyError, TypeError, ValueError):  # measured again, then
            self._pace = Pace()

    @contextmanager
    def generating(self, route: Route) -> Iterator[int]:
        """Count one generation while it is under way; gives how many others are. Elsewhere than on
        the device nothing is counted."""
        if route is not Route.DEVICE:
            yield 0
            return
        self._under_way += 1
        try:
            yield self._under_way - 1
        finally:
            self._under_way -= 1

    def observe(self, usage: Usage, beside: int = 0) -> None:
        """Learn from the usage of a generation that began beside so many others."""
        self._pace.observe(usage, self._clock(), beside)
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY:
            self.save()

    def profile(self, context_tokens: int = 0) -> DeviceProfile:
        """The device as it is now, with the speeds of the band nearest to ``context_tokens``
        beside what is under way."""
        speeds = self._pace.speeds(context_tokens, self._clock(), self._under_way)
        return replace(
            self._asked(),
            prefill_tokens_per_s=speeds.prefill,
            decode_tokens_per_s=speeds.decode,
            prefill_slow_tokens_per_s=speeds.prefill_slow,
            decode_slow_tokens_per_s=speeds.decode_slow,
        )

    def save(self) -> None:
        """Keep what was learnt, if there is a file for it."""
        if not self._unsaved or self._pace.is_empty:
            return
        self._unsaved = 0
        self._kept[self._model] = {"unix_s": int(time.time()), "pace": self._pace.to_json()}
        if self._path is not None:
            with suppress(OSError):  # it is measured anew
                _write(self._path, json.dumps({"machine": _machine(), "models": self._kept}))

    def _asked(self) -> DeviceProfile:
        now_s = self._clock()
        if self._system is None or now_s - self._system[0] >= SYSTEM_S:
            self._system = (now_s, _ask_system())
        return self._system[1]


def _ask_system() -> DeviceProfile:
    percent, on_battery = battery()
    return DeviceProfile(
        memory_free_bytes=free_memory_bytes(),
        on_battery=on_battery,
        battery_percent=percent,
        power_w=discharge_w() if on_battery else None,
        thermal_headroom_c=thermal_headroom_c(),
    )


def _name(card: ModelCard) -> str:
    """A quantization is a model of its own, and so is a file that was replaced."""
    parts = (card.name, card.quantization, card.runtime, str(card.size_bytes), card.sha256[:16])
    return "|".join(parts)


def _machine() -> str:
    """A folder may move to another computer; its speeds must not."""
    return f"{platform.node()}|{platform.machine()}|{os.cpu_count()}"


def _read_kept(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["machine"] != _machine():
            return {}
        oldest = time.time() - KEPT_S
        return {name: one for name, one in data["models"].items() if one["unix_s"] >= oldest}
    except (OSError, AttributeError, KeyError, TypeError, ValueError):  # then it is measured anew
        return {}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    whole = path.with_suffix(f".{os.getpid()}.new")
    whole.write_text(text, encoding="utf-8")
    whole.replace(path)


def free_memory_bytes() -> int | None:
    """Memory that can be taken without swapping; None where the system does not say."""
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        import psutil
    except ImportError:  # part of the extra `edge`; unknown is an answer too
        return None
    return int(psutil.virtual_memory().available)


def battery() -> tuple[float | None, bool | None]:
    """(charge in percent, whether it is being used); None is unknown, or there is no battery."""
    if sys.platform == "linux":
        return _linux_battery()
    try:
        import psutil
    except ImportError:  # as above
        return None, None
    state = psutil.sensors_battery()
    return (None, None) if state is None else (float(state.percent), not state.power_plugged)


def _linux_battery(folder: Path = _POWER) -> tuple[float | None, bool | None]:
    """The first battery of the machine itself (a mouse's or a headset's has the scope Device)."""
    for supply in sorted(folder.glob("*")) if folder.is_dir() else ():
        if _read(supply / "type") == "Battery" and _read(supply / "scope") != "Device":
            percent = _read(supply / "capacity")
            discharging = _read(supply / "status") == "Discharging"
            return (float(percent) if percent.isdigit() else None), discharging
    return None, None


def discharge_w(folder: Path = _POWER) -> float | None:
    """Watts that the battery gives, by its own meter; None where there is none."""
    for supply in sorted(folder.glob("*")) if folder.is_dir() else ():
        if _read(supply / "type") != "Battery" or _read(supply / "scope") == "Device":
            continue
        micro_w = _number(supply / "power_now")
        if micro_w is not None:
            return abs(micro_w) / 1e6
        micro_a, micro_v = _number(supply / "current_now"), _number(supply / "voltage_now")
        if micro_a is not None and micro_v is not None:
            return abs(micro_a) * micro_v / 1e12
    return None


def thermal_headroom_c(folder: Path = _THERMAL) -> float | None:
    """Degrees to the nearest trip point at which the kernel begins to throttle; None: no zones."""
    found = []
    for zone in folder.glob("thermal_zone*") if folder.is_dir() else ():
        now = _number(zone / "temp")
        for kind in zone.glob("trip_point_*_type"):
            limit = _number(zone / kind.name.replace("_type", "_temp"))
            if _read(kind) == "passive" and now is not None and limit is not None and limit > 0:
                found.append((limit - now) / 1000)
    return min(found, default=None)


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.removeprefix("-").isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # drivers differ in which attributes they have
        return ""
