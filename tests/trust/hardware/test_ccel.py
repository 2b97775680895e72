"""A TDX guest's firmware log: read, replayed into RTMRs, and compared with the quote's."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import EvidenceRejected
from overspill.trust.ccel import parse_ccel

SEPARATOR, VARIABLE, IPL = 4, 0x80000001, 0x0D
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


def variable(name: str, value: bytes) -> bytes:
    text = name.encode("utf-16-le")
    return GLOBAL + struct.pack("<QQ", len(name), len(value)) + text + value


def event(register: int, kind: int, data: bytes) -> bytes:
    head = struct.pack("<IIIH", register, kind, 1, 0x0C)
    return head + hashlib.sha384(data).digest() + struct.pack("<I", len(data)) + data


def ccel(*events: bytes, filling: bytes = b"") -> bytes:
    spec = b"Spec ID Event03\0" + bytes(8) + struct.pack("<IHHB", 1, 0x0C, 48, 0)
    head = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    return head + b"".join(events) + filling


BOOT = (
    event(1, VARIABLE, variable("SecureBoot", b"\1")),
    event(1, SEPARATOR, bytes(4)),
    event(2, IPL, b"kernel"),
    event(3, IPL, b"initrd and command line"),
    event(0, IPL, b"the firmware's own"),
)


def extended(*datas: bytes) -> bytes:
    register = bytes(48)
    for data in datas:
        register = hashlib.sha384(register + hashlib.sha384(data).digest()).digest()
    return register


RTMRS = (
    extended(variable("SecureBoot", b"\1"), bytes(4)),
    extended(b"kernel"),
    extended(b"initrd and command line"),
)


@pytest.mark.parametrize("filling", [b"", b"\xff" * 512, bytes(512)])
def test_a_log_replays_whatever_fills_its_area(filling):
    log = parse_ccel(ccel(*BOOT, filling=filling))
    assert log.replay() == dict(enumerate(RTMRS))
    assert log.secure_boot is True


@pytest.mark.parametrize(
    ("events", "secure_boot"),
    [
        ((), None),
        ((event(1, VARIABLE, variable("SecureBoot", b"\0")), event(1, SEPARATOR, bytes(4))), False),
        ((event(7, VARIABLE, variable("SecureBoot", b"\1")), event(1, SEPARATOR, bytes(4))), None),
        ((event(1, VARIABLE, variable("SecureBoot", b"\1")), event(1, 13, bytes(4))), True),
        ((event(1, VARIABLE, variable("SecureBoot", b"\1")),), None),
        ((event(1, SEPARATOR, bytes(4)), event(1, VARIABLE, variable("SecureBoot", b"\1"))), None),
    ],
)
def test_secure_boot_is_what_the_firmware_measured_into_rtmr0(events, secure_boot):
    assert parse_ccel(ccel(*events)).secure_boot is secure_boot


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ccel(*BOOT)[:-1],
        ccel(*BOOT, filling=b"\xff" * 64 + b"\0"),
        ccel(*BOOT, filling=bytes(64) + b"\1"),
        bytes(1 << 21),
    ],
)
def test_a_damaged_log_is_refused(data):
    with pytest.raises(EvidenceRejected, match="event_log_malformed"):
        parse_ccel(data)


def test_a_register_that_a_guest_has_not_is_refused():
    with pytest.raises(EvidenceRejected, match="event_log_malformed"):
        parse_ccel(ccel(event(5, IPL, b"x"))).replay()


@given(st.binary(max_size=300), st.integers(0, 600))
def test_whatever_comes_is_read_or_refused(tail, cut):
    try:
        parse_ccel(ccel(*BOOT)[:cut] + tail).replay()
    except EvidenceRejected:
        return


# --- overspill trust verify tdx ---------------------------------------------------------------


def steps_of(appraisal) -> dict[str, bool | None]:
    return {step.n: step.ok for step in appraisal.steps}


def test_a_quote_is_compared_with_its_log(judge, makers):
    quote = makers.Intel().quote(rtmrs=(*RTMRS, b"\7" * 48))
    appraisal = judge("tdx", [quote, ccel(*BOOT, filling=b"\xff" * 99)])
    assert appraisal.verdict == "authentic"
    assert steps_of(appraisal)["8.13"] is True
    assert appraisal.claims["secure_boot"] == "on"


def test_without_a_log_the_step_is_not_run(judge, makers):
    appraisal = judge("tdx", [makers.Intel().quote()])
    assert steps_of(appraisal)["8.13"] is None
    assert "secure_boot" not in appraisal.claims


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_log_of_another_boot_is_refused(refused, makers, changed):
    rtmrs = [*RTMRS, bytes(48)]
    rtmrs[changed] = bytes([9]) * 48
    assert refused("tdx", [makers.Intel().quote(rtmrs=tuple(rtmrs)), ccel(*BOOT)]) == (
        "log_not_replayed"
    )


def test_a_damaged_log_is_refused_by_its_step(judge, makers):
    appraisal = judge("tdx", [makers.Intel().quote(rtmrs=(*RTMRS, bytes(48))), ccel(*BOOT)[:-1]])
    assert appraisal.rejection.reason == "event_log_malformed"
    assert steps_of(appraisal)["8.13"] is False
