"""A TPM quote from anywhere: what it says, who vouches for its key, and what its registers hold.

The key comes with the quote as a TPM public area, a certificate, a bare public key, or inside the
report of the confidential guest that the TPM is a part of (``vtpm.py``). Registers 16 and 23 can be
reset at will and never count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from overspill.trust import event_log
from overspill.trust import tpm_structures as tpm
from overspill.trust.base import rejected
from overspill.trust.certificates import Certificate, PublicKey, parse_certificate
from overspill.trust.chain import Anchors, build_path
from overspill.trust.event_log import EventLog, parse_event_log
from overspill.trust.policy_vendors import TpmPolicy, VtpmPolicy
from overspill.trust.steps import Steps
from overspill.trust.tpm_keys import is_signed
from overspill.trust.tpm_structures import Quote, parse_quote
from overspill.types.evidence import Assurance

STEP_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "8.1": "quote: structure, magic, type",
        "8.2": "attestation key: found beside the quote",
        "8.3": "attestation key: who vouches for it",
        "8.4": "attestation key: restricted, fixed to its TPM",
        "8.5": "signature: by the attestation key",
        "8.6": "binding: the quote's extra data",
        "8.7": "registers: SHA-256 bank, others than 16 and 23, at the values given",
        "8.8": "event log: replays into the registers",
        "8.9": "policy: registers and secure boot",
    }
)
NEVER_COUNT: Final = frozenset({16, 23})
_AK_MUST: Final = tpm.FIXED_TPM | tpm.FIXED_PARENT | tpm.SENSITIVE_DATA_ORIGIN


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """A key that a quote may be signed with. ``attributes`` None when nothing states them."""

    key: PublicKey
    source: str
    attributes: int | None = None
    certificate: Certificate | None = None
    vouch: Callable[[], str] | None = None
    """Checks, beyond a certificate, that the key is a TPM's; for a vTPM its guest's report."""


@dataclass(frozen=True, slots=True)
class TpmMaterials:
    """A quote and what came along; ``pcrs`` are the values of registers 0, 1, 2... or None."""

    quote: bytes
    signature: bytes
    keys: tuple[AttestationKey, ...]
    certificates: tuple[Certificate, ...] = ()
    pcrs: tuple[bytes, ...] | None = None
    log: bytes | None = None


@dataclass(frozen=True, slots=True)
class TpmFound:
    """What a quote says, and what stands behind it."""

    claims: Mapping[str, str]
    assurance: Assurance


def examine(
    materials: TpmMaterials,
    now_unix: int,
    nonce: bytes | None,
    policy: TpmPolicy | VtpmPolicy | None,
    steps: Steps,
) -> TpmFound:
    """Claims of a genuine quote, or ``EvidenceRejected``."""
    # 8.1 Quote
    quote = steps.run("8.1", parse_quote, materials.quote)
    # 8.2 Key
    key = steps.run("8.2", _the_key, materials)
    # 8.3 Who vouches
    assurance = _vouched(key, materials, now_unix, policy, steps)
    # 8.4 Attributes
    if key.attributes is None:
        steps.skip("8.4", "nothing states the key's attributes")
    else:
        steps.run("8.4", check_attributes, key.attributes)
    # 8.5 Signature
    steps.run("8.5", _check_signature, key, materials)
    # 8.6 Nonce
    if nonce is None:
        steps.skip("8.6", "no nonce was given")
    else:
        steps.run("8.6", _check_nonce, quote, nonce)
    # 8.7 Registers
    steps.run("8.7", _check_registers, quote, materials.pcrs)
    # 8.8 Event log
    log = _replayed(quote, materials, steps)
    # 8.9 Policy
    if policy is None:
        steps.skip("8.9", "no policy was given")
    else:
        steps.run("8.9", check_policy, policy, log, _values(quote, materials, log))
    return TpmFound(_claims(quote, key, log), assurance)


def check_attributes(attributes: int) -> None:
    """A restricted signing key signs only what the TPM itself made; a fixed one cannot leave it.

    Reasons: ``ak_not_restricted``, ``ak_not_fixed``.
    """
    shown = f"attributes {attributes:#010x}"
    if not attributes & tpm.RESTRICTED or not attributes & tpm.SIGN:
        raise rejected("ak_not_restricted", "4", expected="a restricted signing key", actual=shown)
    if attributes & _AK_MUST != _AK_MUST or attributes & tpm.DECRYPT:
        raise rejected(
            "ak_not_fixed",
            "4",
            expected="a key made in this TPM that cannot leave it",
            actual=shown,
        )


def check_bank(quote: Quote) -> list[int]:
    """The selected registers, in order. Reasons: ``pcr_bank``, ``pcr_selection``."""
    if any(selection.hash_alg != tpm.ALG_SHA256 for selection in quote.selections):
        banks = ", ".join(f"{selection.hash_alg:#06x}" for selection in quote.selections)
        raise rejected("pcr_bank", "7", expected="the SHA-256 bank", actual=banks)
    selected = [pcr for selection in quote.selections for pcr in sorted(selection.pcrs)]
    if not set(selected) - NEVER_COUNT or len(set(selected)) != len(selected):
        raise rejected(
            "pcr_selection",
            "7",
            expected="registers that cannot be reset at will, each once",
            actual=str(selected),
        )
    return selected


def check_policy(
    policy: TpmPolicy | VtpmPolicy, log: EventLog | None, values: Mapping[int, bytes]
) -> str:
    """Reasons: ``secure_boot_off``, ``secure_boot_unknown``, ``pcr_unknown``,
    ``pcr_not_listed``."""
    if policy.secure_boot:
        _check_secure_boot(log)
    for index, accepted in sorted((policy.pcrs or {}).items()):
        if index not in values:
            raise rejected(
                "pcr_unknown", "9", expected=f"the value of register {index}", actual="not given"
            )
        if values[index] not in accepted:
            raise rejected(
                "pcr_not_listed",
                "9",
                expected=f"a value of [tpm.pcrs] {index}",
                actual=values[index].hex(),
            )
    return "secure boot was on" if policy.secure_boot else "secure boot is not demanded"


def _check_secure_boot(log: EventLog | None) -> None:
    state = log.secure_boot if log else None
    if state is None:
        raise rejected(
            "secure_boot_unknown",
            "9",
            expected="an event log that says that secure boot was on",
            actual="one that says nothing" if log else "no event log",
        )
    if not state:
        raise rejected("secure_boot_off", "9", expected="secure boot on", actual="off")


def _the_key(materials: TpmMaterials) -> AttestationKey:
    """The key that made the signature, among those given; the first if none did."""
    if not materials.keys:
        raise rejected(
            "ak_missing",
            "2",
            expected="the attestation key: a TPM public area, a certificate or a public key",
            actual="none",
        )
    if len(materials.keys) == 1:
        return materials.keys[0]
    made = [
        key for key in materials.keys if is_signed(key.key, materials.signature, materials.quote)
    ]
    best = [key for key in made if key.vouch or key.certificate] or made
    return (best or list(materials.keys))[0]


def _vouched(
    key: AttestationKey,
    materials: TpmMaterials,
    now_unix: int,
    policy: TpmPolicy | VtpmPolicy | None,
    steps: Steps,
) -> Assurance:
    """What stands behind the key; with a policy somebody has to."""
    if key.vouch is not None:
        steps.run("8.3", key.vouch)
        return Assurance.HARDWARE_TEE
    roots = policy.ak_roots if isinstance(policy, TpmPolicy) else ()
    if policy is not None:
        steps.run("8.3", _check_certificate, key, materials, roots, now_unix)
        return Assurance.HARDWARE_TPM
    steps.skip("8.3", "no policy names a root for it: anybody may have made this key")
    return Assurance.NONE


def _check_certificate(
    key: AttestationKey, materials: TpmMaterials, roots: tuple[bytes, ...], now_unix: int
) -> str:
    if key.certificate is None or not roots:
        raise rejected(
            "ak_unknown",
            "3",
            expected="a certificate under [tpm] ak_roots for the attestation key",
            actual="a bare key" if key.certificate is None else "no such roots",
        )
    anchors = Anchors(tuple(parse_certificate(root) for root in roots), materials.certificates)
    return " <- ".join(one.name for one in build_path(key.certificate, anchors, now_unix))


def _check_signature(key: AttestationKey, materials: TpmMaterials) -> str:
    if not is_signed(key.key, materials.signature, materials.quote):
        raise rejected(
            "evidence_signature", "5", expected="a valid signature", actual="one that is not"
        )
    return key.source


def _check_nonce(quote: Quote, nonce: bytes) -> None:
    if quote.qualifying_data != nonce.ljust(len(quote.qualifying_data), b"\0"):
        raise rejected(
            "nonce_mismatch",
            "6",
            expected=f"the nonce {nonce.hex()}",
            actual=quote.qualifying_data.hex(),
        )


def _check_registers(quote: Quote, pcrs: tuple[bytes, ...] | None) -> str:
    selected = check_bank(quote)
    if pcrs is None:
        return f"registers {_ranges(selected)}; their values were not given"
    if selected[-1] >= len(pcrs):
        raise rejected(
            "pcr_values",
            "7",
            expected=f"values for registers 0 to {selected[-1]}",
            actual=str(len(pcrs)),
        )
    digest = hashlib.sha256(b"".join(pcrs[index] for index in selected)).digest()
    if digest != quote.pcr_digest:
        raise rejected(
            "pcr_values_mismatch",
            "7",
            expected="values that give the quoted digest",
            actual="other values",
        )
    return f"registers {_ranges(selected)}, at the values given"


def _replayed(quote: Quote, materials: TpmMaterials, steps: Steps) -> EventLog | None:
    if materials.log is None:
        steps.skip("8.8", "no event log was given")
        return None
    log = steps.run("8.8", parse_and_replay, quote, materials.log, materials.pcrs)
    return log.log


@dataclass(frozen=True, slots=True)
class Replayed:
    """A log that led to the quoted registers."""

    log: EventLog
    detail: str


def parse_and_replay(quote: Quote, data: bytes, pcrs: tuple[bytes, ...] | None) -> Replayed:
    """Reasons: ``event_log_malformed``, ``event_log_bank``, ``log_not_replayed``."""
    log = parse_event_log(data)
    registers = log.replay(event_log.SHA256)
    selected = check_bank(quote)
    if pcrs is None:
        values = [registers.get(index, bytes(32)) for index in selected]
        digest = hashlib.sha256(b"".join(values)).digest()
        differing = [] if digest == quote.pcr_digest else ["the digest of all"]
    else:
        differing = [
            str(index)
            for index in selected
            if index in registers and index < len(pcrs) and registers[index] != pcrs[index]
        ]
    covered = sorted(set(selected) & set(registers) - NEVER_COUNT)
    if differing or not covered:
        raise rejected(
            "log_not_replayed",
            "8",
            expected="the registers that this log leads to",
            actual=f"others: {', '.join(differing) or 'none of the quoted ones'}",
        )
    return Replayed(log, f"{len(log.events)} events; registers {_ranges(covered)}")


def _values(quote: Quote, materials: TpmMaterials, log: EventLog | None) -> dict[int, bytes]:
    """The quoted registers whose values are known, but for those that never count."""
    if materials.pcrs is not None:
        known = dict(enumerate(materials.pcrs))
    else:
        known = log.replay() if log else {}
    selected = {pcr for selection in quote.selections for pcr in selection.pcrs}
    return {i: value for i, value in known.items() if i in selected - NEVER_COUNT}


def _claims(quote: Quote, key: AttestationKey, log: EventLog | None) -> dict[str, str]:
    selected = [pcr for selection in quote.selections for pcr in sorted(selection.pcrs)]
    state = log.secure_boot if log else None
    return {
        "tpm": "virtual, of a confidential guest" if key.vouch else "any",
        "attestation_key": key.source,
        "extra_data": quote.qualifying_data.hex(),
        "registers": _ranges(selected),
        "pcr_digest": quote.pcr_digest.hex(),
        "reset_count": str(quote.reset_count),
        "restart_count": str(quote.restart_count),
        "secure_boot": {True: "on", False: "off", None: "unknown"}[state],
    }


def _ranges(indexes: list[int]) -> str:
    """Register numbers in short: ``0-7,14``."""
    parts: list[list[int]] = []
    for index in indexes:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
