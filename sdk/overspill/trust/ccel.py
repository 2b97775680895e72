"""The event log of a confidential guest (CCEL; UEFI specification 2.10, 38.4): the firmware's, in
TCG's crypto-agile form, where an event's register is a measurement register of the TEE.

In a TDX guest register 0 is MRTD, and 1 to 4 are RTMR0 to RTMR3. The ACPI table's area is larger
than the log: what follows the last event is filled with ones, or with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from overspill.trust.base import rejected
from overspill.trust.event_log import MAX_BYTES, SHA384, EventLog, log_bytes, parse_event_log

RTMRS: Final = 4
_CONFIGURATION_REGISTER: Final = 1
"""RTMR0, where a TPM has register 7: the firmware's configuration, and secure boot with it."""


@dataclass(frozen=True, slots=True)
class CcEventLog:
    """A confidential guest's log; nothing in it is believed before it replays."""

    log: EventLog

    def replay(self) -> Mapping[int, bytes]:
        """RTMR index to the 48 bytes that its events lead to, for those that have any.

        Raises ``EvidenceRejected``: ``event_log_bank``, or ``event_log_malformed`` for events of
        registers that a guest does not have.
        """
        registers = self.log.replay(SHA384)
        if any(register > RTMRS for register in registers):
            raise rejected(
                "event_log_malformed",
                "8",
                expected=f"registers 0 to {RTMRS}",
                actual=str(max(registers)),
            )
        return {register - 1: value for register, value in registers.items() if register > 0}

    @property
    def secure_boot(self) -> bool | None:
        """Whether the firmware measured that secure boot was on; None when it measured nothing."""
        return self.log.secure_boot_in(_CONFIGURATION_REGISTER, SHA384)


def parse_ccel(data: bytes) -> CcEventLog:
    """Strict decoding, without the area's filling. Raises ``event_log_malformed``."""
    if len(data) > MAX_BYTES:
        raise rejected(
            "event_log_malformed",
            "8",
            expected=f"at most {MAX_BYTES} bytes",
            actual=str(len(data)),
        )
    size = log_bytes(data)
    filling = data[size:]
    if filling.strip(b"\xff") and filling.strip(b"\0"):
        raise rejected(
            "event_log_malformed", "8", expected="a log and its filling", actual="other bytes"
        )
    return CcEventLog(parse_event_log(data[:size]))
