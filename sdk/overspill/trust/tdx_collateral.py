"""Intel's collateral: TCB info and the quoting enclave's identity (Intel, "PCS for SGX and TDX",
version 4), and the algorithm that turns a platform's versions into a status.

Both documents are signed over the very bytes of their inner object: those bytes are cut out of the
document, verified, and only then read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from overspill.errors import EvidenceRejected
from overspill.trust import json_strict
from overspill.trust.base import rejected
from overspill.trust.chain import moment
from overspill.trust.tdx_pck import Platform
from overspill.trust.tdx_quote import QeReport, TdReport

STATUSES: Final = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "Revoked",
    }
)
UNSUPPORTED: Final = "Unsupported"
"""Our word for a platform that reaches none of the levels that Intel lists for its kind."""

_STEP_DOCUMENT: Final = "6"
_STEP_QE: Final = "7"
_STEP_TCB: Final = "8"
_MAX_LEVELS: Final = 256
_TAIL: Final = re.compile(rb'\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*\Z')


@dataclass(frozen=True, slots=True)
class SignedDocument:
    """One of Intel's documents: the signed bytes, and r || s over them."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """One level: it holds for a platform that is at least at all of its versions."""

    status: str
    date: str
    advisories: tuple[str, ...]
    sgx_svns: tuple[int, ...] = ()
    pce_svn: int = 0
    tdx_svns: tuple[int, ...] = ()
    isv_svn: int = 0


@dataclass(frozen=True, slots=True)
class ModuleIdentity:
    """Who signed a TDX module, with which attributes; levels by its security version."""

    mr_signer: bytes
    attributes: bytes
    mask: bytes
    levels: tuple[TcbLevel, ...] = ()


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """TCB info of one kind of platform (FMSPC), version 3."""

    fmspc: bytes
    pce_id: bytes
    issued: int
    next_update: int
    evaluation: int
    module: ModuleIdentity
    module_identities: Mapping[str, ModuleIdentity]
    levels: tuple[TcbLevel, ...]


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """The quoting enclave as Intel publishes it, version 2."""

    issued: int
    next_update: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[TcbLevel, ...]


def cut_out(document: bytes, name: str) -> SignedDocument:
    """The signed bytes of ``{"<name>": BODY, "signature": "<hex>"}``, as they stand there.

    Raises ``EvidenceRejected("collateral_malformed")``.
    """
    head = re.match(rb'\s*\{\s*"' + name.encode("ascii") + rb'"\s*:\s*', document[:256])
    tail = _TAIL.search(document, max(0, len(document) - 256))
    if head is None or tail is None or head.end() >= tail.start():
        raise _malformed(f"no signed {name}")
    return SignedDocument(document[head.end() : tail.start()], bytes.fromhex(tail[1].decode()))


def read_tcb_info(body: bytes) -> TcbInfo:
    """Reads verified bytes. Raises ``EvidenceRejected("collateral_malformed")``."""
    table = _Table(json_strict.loads(body, step=_STEP_DOCUMENT), "TCB info")
    if table.text("id") != "TDX" or table.number("version") != 3 or table.number("tcbType"):
        raise _malformed("TCB info that is not TDX of version 3")
    identities = {
        one.text("id").upper(): _module(one, one.levels(_isv_level))
        for one in table.tables("tdxModuleIdentities", optional=True)
    }
    return TcbInfo(
        fmspc=table.hex("fmspc", 6),
        pce_id=table.hex("pceId", 2),
        issued=table.time("issueDate"),
        next_update=table.time("nextUpdate"),
        evaluation=table.number("tcbEvaluationDataNumber"),
        module=_module(table.table("tdxModule")),
        module_identities=identities,
        levels=table.levels(_platform_level),
    )


def read_qe_identity(body: bytes) -> QeIdentity:
    """Reads verified bytes. Raises ``EvidenceRejected("collateral_malformed")``."""
    table = _Table(json_strict.loads(body, step=_STEP_DOCUMENT), "QE identity")
    if table.text("id") != "TD_QE" or table.number("version") != 2:
        raise _malformed("an identity that is not TD_QE of version 2")
    return QeIdentity(
        issued=table.time("issueDate"),
        next_update=table.time("nextUpdate"),
        misc_select=table.hex("miscselect", 4),
        misc_select_mask=table.hex("miscselectMask", 4),
        attributes=table.hex("attributes", 16),
        attributes_mask=table.hex("attributesMask", 16),
        mr_signer=table.hex("mrsigner", 32),
        isv_prod_id=table.number("isvprodid"),
        levels=table.levels(_isv_level),
    )


def check_current(document: TcbInfo | QeIdentity, name: str, now_unix: int) -> None:
    """Reasons: ``<name>_expired``, ``<name>_not_yet_valid``."""
    if now_unix < document.issued:
        reason, actual = f"{name}_not_yet_valid", f"issued {moment(document.issued)}"
    elif now_unix > document.next_update:
        reason, actual = f"{name}_expired", f"to be replaced by {moment(document.next_update)}"
    else:
        return
    raise rejected(
        reason,
        _STEP_DOCUMENT,
        expected=f"collateral that is current at {moment(now_unix)}",
        actual=actual,
        mend="Fetch the current collateral from Intel's service.",
    )


def check_qe(report: QeReport, identity: QeIdentity) -> TcbLevel:
    """The enclave's level. Reasons: ``qe_identity_mismatch``, ``qe_level_unknown``."""
    pairs = (
        ("MRSIGNER", report.mr_signer, identity.mr_signer),
        ("ISVPRODID", report.isv_prod_id, identity.isv_prod_id),
        (
            "MISCSELECT",
            _masked(report.misc_select, identity.misc_select_mask),
            identity.misc_select,
        ),
        (
            "ATTRIBUTES",
            _masked(report.attributes, identity.attributes_mask),
            identity.attributes,
        ),
    )
    for name, actual, expected in pairs:
        if actual != expected:
            raise rejected(
                "qe_identity_mismatch",
                _STEP_QE,
                expected=f"{name} {_shown(expected)}",
                actual=_shown(actual),
            )
    for level in identity.levels:
        if level.isv_svn <= report.isv_svn:
            return level
    raise rejected(
        "qe_level_unknown",
        _STEP_QE,
        expected="a quoting enclave that Intel lists",
        actual=f"ISVSVN {report.isv_svn}",
    )


def platform_status(info: TcbInfo, platform: Platform, report: TdReport) -> TcbLevel:
    """The platform's level with the module's status merged in; its status is ``UNSUPPORTED`` when
    it reaches no level.

    Reasons: ``fmspc_mismatch``, ``tdx_module_mismatch``, ``tdx_module_unknown``.
    """
    if (info.fmspc, info.pce_id) != (platform.fmspc, platform.pce_id):
        raise _refusal(
            "fmspc_mismatch",
            f"TCB info for FMSPC {platform.fmspc.hex()}, PCE {platform.pce_id.hex()}",
            f"for {info.fmspc.hex()}, {info.pce_id.hex()}",
        )
    module = _module_level(info, report)
    # With a module of its own version the first two SVNs are its own, and judged by its identity.
    first = 2 if report.tee_tcb_svn[1] else 0
    for level in info.levels:
        if _reaches(platform, report, level, first):
            status = merged(level.status, module.status) if module else level.status
            advisories = {*level.advisories, *(module.advisories if module else ())}
            return TcbLevel(status, level.date, tuple(sorted(advisories)))
    return TcbLevel(UNSUPPORTED, "", ())


def merged(platform: str, part: str) -> str:
    """A platform's status where a part of it (module, quoting enclave) has another one."""
    if "Revoked" in (platform, part):
        return "Revoked"
    if part != "OutOfDate" or platform == UNSUPPORTED:
        return platform
    if platform in ("ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"):
        return "OutOfDateConfigurationNeeded"
    return platform if platform == "OutOfDateConfigurationNeeded" else "OutOfDate"


def _reaches(platform: Platform, report: TdReport, level: TcbLevel, first: int) -> bool:
    has = (*platform.component_svns, platform.pce_svn, *report.tee_tcb_svn[first:])
    wants = (*level.sgx_svns, level.pce_svn, *level.tdx_svns[first:])
    return all(actual >= wanted for actual, wanted in zip(has, wants, strict=True))


def _module_level(info: TcbInfo, report: TdReport) -> TcbLevel | None:
    version = report.tee_tcb_svn[1]
    identity = info.module
    if version:
        name = f"TDX_{version:02X}"
        if name not in info.module_identities:
            raise _refusal("tdx_module_unknown", "a module that Intel lists", name)
        identity = info.module_identities[name]
    if report.mr_signer_seam != identity.mr_signer or (
        _masked(report.seam_attributes, identity.mask) != identity.attributes
    ):
        raise _refusal(
            "tdx_module_mismatch",
            f"a module signed by {identity.mr_signer.hex()[:16]}... with its attributes",
            f"{report.mr_signer_seam.hex()[:16]}..., {report.seam_attributes.hex()}",
        )
    if not version:
        return None
    for level in identity.levels:
        if level.isv_svn <= report.tee_tcb_svn[0]:
            return level
    raise _refusal("tdx_module_unknown", "a listed module", f"SVN {report.tee_tcb_svn[0]}")


class _Table:
    """A JSON object whose fields have to be there, of their type."""

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, dict):
            raise _malformed(f"{where} is no object")
        self._raw = raw
        self._where = where

    def text(self, key: str) -> str:
        value = self._raw.get(key)
        if not isinstance(value, str):
            raise self._bad(key)
        return value

    def number(self, key: str) -> int:
        value = self._raw.get(key)
        if type(value) is not int or not 0 <= value <= 0xFFFF:
            raise self._bad(key)
        return value

    def hex(self, key: str, size: int) -> bytes:
        text = self.text(key)
        if len(text) != 2 * size or not re.fullmatch("[0-9A-Fa-f]*", text):
            raise self._bad(key)
        return bytes.fromhex(text)

    def time(self, key: str) -> int:
        text = self.text(key)
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text, re.ASCII):
            raise self._bad(key)
        try:
            return int(datetime.fromisoformat(text).timestamp())
        except ValueError as error:
            raise self._bad(key) from error

    def table(self, key: str) -> _Table:
        return _Table(self._raw.get(key), f"{self._where} {key}")

    def tables(self, key: str, *, optional: bool = False) -> list[_Table]:
        value = self._raw.get(key, [] if optional else None)
        if not isinstance(value, list) or len(value) > _MAX_LEVELS:
            raise self._bad(key)
        return [_Table(item, f"{self._where} {key}") for item in value]

    def levels(self, read: Any) -> tuple[TcbLevel, ...]:
        return tuple(read(one) for one in self.tables("tcbLevels"))

    def svns(self, key: str) -> tuple[int, ...]:
        parts = tuple(one.number("svn") for one in self.tables(key))
        if len(parts) != 16:
            raise self._bad(key)
        return parts

    def advisories(self) -> tuple[str, ...]:
        value = self._raw.get("advisoryIDs", [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._bad("advisoryIDs")
        return tuple(value)

    def status(self) -> str:
        status = self.text("tcbStatus")
        if status not in STATUSES:
            raise self._bad("tcbStatus")
        return status

    def _bad(self, key: str) -> EvidenceRejected:
        return _malformed(f"{self._where} without a valid '{key}'")


def _module(table: _Table, levels: tuple[TcbLevel, ...] = ()) -> ModuleIdentity:
    return ModuleIdentity(
        mr_signer=table.hex("mrsigner", 48),
        attributes=table.hex("attributes", 8),
        mask=table.hex("attributesMask", 8),
        levels=levels,
    )


def _platform_level(table: _Table) -> TcbLevel:
    tcb = table.table("tcb")
    return TcbLevel(
        status=table.status(),
        date=table.text("tcbDate"),
        advisories=table.advisories(),
        sgx_svns=tcb.svns("sgxtcbcomponents"),
        pce_svn=tcb.number("pcesvn"),
        tdx_svns=tcb.svns("tdxtcbcomponents"),
    )


def _isv_level(table: _Table) -> TcbLevel:
    return TcbLevel(
        status=table.status(),
        date=table.text("tcbDate"),
        advisories=table.advisories(),
        isv_svn=table.table("tcb").number("isvsvn"),
    )


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(value, mask, strict=True))


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _malformed(what: str) -> EvidenceRejected:
    return rejected(
        "collateral_malformed", _STEP_DOCUMENT, expected="Intel's signed JSON", actual=what
    )


def _refusal(reason: str, expected: str, actual: str) -> EvidenceRejected:
    return rejected(reason, _STEP_TCB, expected=expected, actual=actual)
