"""Stage 4, energy: an estimate of what an answer takes from this device's battery.

Nobody can measure the joules of one answer in user space, so they are declared as what they are:
power times time. The power is what the battery says it gives, where it says so, else a declared
figure for a CPU that computes; an answer from elsewhere costs a radio that listens.
"""

from __future__ import annotations

from overspill.types.route import DeviceProfile, Route

COMPUTING_W = 15.0
"""Declared: a laptop's package at work on all cores, beyond what it draws when idle."""
LISTENING_W = 1.0
"""Declared: Wi-Fi or cellular while an answer streams in."""
HOT_C = 5.0
"""Less headroom than this to where the system throttles counts as hot."""
_FULL_PERCENT = 100.0


def joules(route: Route, seconds: float, device: DeviceProfile) -> float:
    """The device's own energy for an answer that takes so many seconds; an estimate."""
    if route is not Route.DEVICE:
        return LISTENING_W * seconds
    return (device.power_w or COMPUTING_W) * seconds


def scarcity(device: DeviceProfile) -> float:
    """What a joule counts: 0 on mains, on battery 1 when it is full and 2 when it is empty."""
    if not device.on_battery:
        return 0.0
    percent = _FULL_PERCENT if device.battery_percent is None else device.battery_percent
    return 2.0 - min(1.0, max(0.0, percent / _FULL_PERCENT))


def is_hot(device: DeviceProfile) -> bool:
    """Whether the device is about to throttle; an unknown temperature is not hot."""
    return device.thermal_headroom_c is not None and device.thermal_headroom_c < HOT_C
