"""This device, measured: tokens per second by context, free memory, battery.

Speeds are what generations on this device really reached, as moving averages by the size of
their context: a slower device, or a hot one, shows by itself. Memory and power are asked of the
operating system when a profile is taken.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from overspill.types.route import DeviceProfile
from overspill.types.usage import Usage

_WEIGHT = 0.2
"""Of the newest measurement; the rest is what was known before."""
_MIN_PREFILL_TOKENS = 16
_MIN_DECODE_TOKENS = 8
_POWER = Path("/sys/class/power_supply")
_MEMINFO = Path("/proc/meminfo")


@dataclass(slots=True)
class _Speeds:
    """Moving averages within one band of context sizes, in tokens per second."""

    prefill: float | None = None
    decode: float | None = None


class DeviceMeter:
    """Learns this device's speeds from finished generations.

    Context sizes fall into bands that double (up to 512 tokens, to 1,024, ...), since both
    phases slow down with the context. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._bands: dict[int, _Speeds] = {}

    def observe(self, usage: Usage) -> None:
        """Learn from a generation's usage; phases too short to measure are left out."""
        speeds = self._bands.setdefault(_band(usage.total_tokens), _Speeds())
        computed = usage.prompt_tokens - usage.cached_tokens
        if computed >= _MIN_PREFILL_TOKENS and usage.prefill_s > 0:
            speeds.prefill = _moved(speeds.prefill, computed / usage.prefill_s)
        rate = usage.decode_tokens_per_s
        if usage.completion_tokens >= _MIN_DECODE_TOKENS and rate is not None:
            speeds.decode = _moved(speeds.decode, rate)

    def profile(self, context_tokens: int = 0) -> DeviceProfile:
        """The device as it is now, with the speeds of the band nearest to ``context_tokens``."""
        percent, on_battery = battery()
        return DeviceProfile(
            prefill_tokens_per_s=self._nearest("prefill", context_tokens),
            decode_tokens_per_s=self._nearest("decode", context_tokens),
            memory_free_bytes=free_memory_bytes(),
            on_battery=on_battery,
            battery_percent=percent,
        )

    def _nearest(self, phase: str, context_tokens: int) -> float | None:
        wanted = _band(context_tokens)
        known = {
            band: speed
            for band, speeds in self._bands.items()
            if (speed := getattr(speeds, phase)) is not None
        }
        return known[min(known, key=lambda band: abs(band - wanted))] if known else None


def _band(tokens: int) -> int:
    return max(0, math.ceil(math.log2(max(tokens, 1) / 512)))


def _moved(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT * (now - before)


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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # drivers differ in which attributes they have
        return ""
