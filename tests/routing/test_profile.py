"""The device's profile: speeds that follow what was measured, and power as the kernel tells it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill import profile
from overspill.profile import DeviceMeter
from overspill.types.card import ModelCard
from overspill.types.route import Route
from overspill.types.usage import Usage


def usage(
    prompt: int, completion: int, prefill_s: float, decode_s: float, cached: int = 0
) -> Usage:
    return Usage(prompt, completion, cached, prefill_s=prefill_s, decode_s=decode_s)


def test_nothing_measured_is_unknown() -> None:
    found = DeviceMeter().profile()
    assert (found.prefill_tokens_per_s, found.decode_tokens_per_s) == (None, None)


def test_speeds_are_those_of_the_phases() -> None:
    meter = DeviceMeter()
    meter.observe(usage(100, 51, prefill_s=0.5, decode_s=2.0))
    found = meter.profile()
    assert (found.prefill_tokens_per_s, found.decode_tokens_per_s) == (200, 25)


def test_cached_tokens_were_not_prefilled_and_short_phases_do_not_count() -> None:
    meter = DeviceMeter()
    meter.observe(usage(100, 4, prefill_s=0.001, decode_s=0.001, cached=90))
    found = meter.profile()
    assert (found.prefill_tokens_per_s, found.decode_tokens_per_s) == (None, None)


def test_the_speed_comes_from_the_nearest_context() -> None:
    meter = DeviceMeter()
    meter.observe(usage(100, 51, prefill_s=0.5, decode_s=2.0))
    meter.observe(usage(8000, 51, prefill_s=100, decode_s=10.0))
    assert meter.profile(300).decode_tokens_per_s == 25
    assert meter.profile(6000).decode_tokens_per_s == 5
    assert meter.profile(10**6).decode_tokens_per_s == 5


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20))
def test_an_average_stays_within_what_was_measured(seconds: list[float]) -> None:
    meter = DeviceMeter()
    for decode_s in seconds:
        meter.observe(usage(100, 51, prefill_s=1, decode_s=decode_s))
    speed = meter.profile().decode_tokens_per_s
    assert speed is not None
    assert 50 / max(seconds) - 1e-9 <= speed <= 50 / min(seconds) + 1e-9


def supply(folder: Path, name: str, **attributes: str) -> None:
    (folder / name).mkdir()
    for attribute, value in attributes.items():
        (folder / name / attribute).write_text(value + "\n", encoding="ascii")


def test_the_machines_own_battery_is_read(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT-mouse", type="Battery", scope="Device", capacity="5", status="Unknown")
    supply(tmp_path, "BAT0", type="Battery", capacity="71", status="Discharging")
    assert profile._linux_battery(tmp_path) == (71.0, True)


def test_a_machine_without_a_battery_says_unknown(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="1")
    assert profile._linux_battery(tmp_path) == (None, None)
    assert profile._linux_battery(tmp_path / "missing") == (None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/meminfo; Linux only")
def test_free_memory_is_known_on_linux() -> None:
    free = profile.free_memory_bytes()
    assert free is not None
    assert free > 0


CARD = ModelCard("brook", 1024, "llama.cpp", size_bytes=7)


def test_speeds_are_kept_from_one_start_to_the_next_by_model(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pace.json"
    meter = DeviceMeter(path)
    meter.use(CARD)
    meter.observe(usage(100, 51, prefill_s=0.5, decode_s=2.0))
    meter.save()
    again = DeviceMeter(path)
    again.use(CARD)
    assert again.profile().decode_tokens_per_s == pytest.approx(25)
    again.use(replace(CARD, quantization="Q4_0"))
    assert again.profile().decode_tokens_per_s is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"machine": "another", "models": {}}', '{"models": 3}']
)
def test_a_file_of_speeds_that_is_none_costs_nothing_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pace.json"
    path.write_text(text, encoding="utf-8")
    meter = DeviceMeter(path)
    meter.use(CARD)
    assert meter.profile().decode_tokens_per_s is None


def test_what_the_battery_gives_and_how_near_the_heat_is(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", power_now="12500000", status="Discharging")
    assert profile.discharge_w(tmp_path) == 12.5
    supply(
        tmp_path,
        "thermal_zone0",
        temp="91000",
        trip_point_0_type="passive",
        trip_point_0_temp="95000",
    )
    assert profile.thermal_headroom_c(tmp_path) == 4.0
    assert profile.thermal_headroom_c(tmp_path / "missing") is None


def test_what_is_under_way_slows_the_next_one_as_it_was_seen_to() -> None:
    meter = DeviceMeter()
    for _ in range(200):
        meter.observe(usage(100, 51, prefill_s=0.5, decode_s=1.0))
        meter.observe(usage(100, 51, prefill_s=1.0, decode_s=2.0), beside=1)
    alone = meter.profile().decode_tokens_per_s
    with meter.generating(Route.DEVICE) as beside, meter.generating(Route.CLOUD):
        assert beside == 0
        crowded = meter.profile().decode_tokens_per_s
    assert (alone, crowded) == (pytest.approx(50, rel=0.05), pytest.approx(25, rel=0.1))
    assert meter.profile().decode_tokens_per_s == pytest.approx(alone, rel=1e-3)
