"""What Intel certifies of a platform: the SGX extension of a PCK certificate (Intel, "SGX PCK
Certificate and Certificate Revocation List Profile", OID 1.2.840.113741.1.13.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust import der
from overspill.trust.base import rejected
from overspill.trust.certificates import Certificate
from overspill.trust.der import DerReader

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_TCB: Final = SGX_EXTENSION + ".2"
_PCE_ID: Final = SGX_EXTENSION + ".3"
_FMSPC: Final = SGX_EXTENSION + ".4"
_COMPONENTS: Final = 16
_PCE_SVN: Final = 17


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform's identity and the security versions of its parts."""

    fmspc: bytes
    pce_id: bytes
    component_svns: tuple[int, ...]
    pce_svn: int


def platform_of(pck: Certificate) -> Platform:
    """Reads the extension. Raises ``EvidenceRejected("certificate_extension")``."""
    raw = pck.extensions.get(SGX_EXTENSION)
    if raw is None:
        raise _bad("none")
    values = _pairs(raw)
    tcb = _pairs(_of(values, _TCB, der.SEQUENCE).raw)
    svns = [_svn(_of(tcb, f"{_TCB}.{n}", der.INTEGER)) for n in range(1, _COMPONENTS + 1)]
    fmspc = _of(values, _FMSPC, der.OCTET_STRING).content
    pce_id = _of(values, _PCE_ID, der.OCTET_STRING).content
    if len(fmspc) != 6 or len(pce_id) != 2:
        raise _bad("an FMSPC or PCE-ID of another length")
    return Platform(fmspc, pce_id, tuple(svns), _svn(_of(tcb, f"{_TCB}.{_PCE_SVN}", der.INTEGER)))


def _pairs(raw: bytes) -> dict[str, der.Element]:
    """A SEQUENCE of (OID, value) pairs, each OID once."""
    outer = DerReader(raw, _bad)
    inner = outer.children(der.SEQUENCE, "the SGX extension")
    outer.end("the SGX extension")
    found: dict[str, der.Element] = {}
    for pair in inner.rest(der.SEQUENCE, "a pair"):
        reader = DerReader(pair.content, _bad)
        oid = reader.oid("a pair's name")
        if oid in found:
            raise _bad(f"{oid} twice")
        found[oid] = reader.element(reader.peek() or 0, "a pair's value")
        reader.end("a pair")
    return found


def _of(values: dict[str, der.Element], oid: str, tag: int) -> der.Element:
    found = values.get(oid)
    if found is None or found.tag != tag:
        raise _bad(f"no {oid} of the right type")
    return found


def _svn(element: der.Element) -> int:
    value = der.read_integer(element.content, _bad)
    if not 0 <= value <= 0xFFFF:
        raise _bad("a security version out of range")
    return value


def _bad(what: str) -> EvidenceRejected:
    return rejected("certificate_extension", "3", expected="Intel's SGX extension", actual=what)
