"""A second opinion on TDX quotes, by ``dcap-qvl``: another verifier, by other people, in Rust.

It judges the same quote with the same collateral at the same time, under Intel's root as it ships
with that library. It can only refuse: an opinion that differs is a refusal, one that agrees adds
nothing to what our own steps found.
"""

from __future__ import annotations

import base64
import json
from typing import Final

from overspill.errors import EvidenceRejected, MissingExtra
from overspill.trust.base import rejected
from overspill.trust.certificates import Certificate, Crl
from overspill.trust.materials import Materials, Role, recognise
from overspill.trust.tdx_collateral import cut_out
from overspill.trust.tdx_quote import parse_quote

EXTRA: Final = "second-opinion"
_STEP: Final = "8"


def tdx_opinion(files: list[bytes], now_unix: int) -> str:
    """The status that ``dcap-qvl`` gives, e.g. ``UpToDate``. Raises ``EvidenceRejected``:
    ``second_opinion`` when it refuses, ``collateral_missing`` when it would lack something; and
    ``MissingExtra`` without the library."""
    try:
        import dcap_qvl
    except ImportError as error:
        raise MissingExtra("A second opinion on TDX quotes", EXTRA) from error
    materials = recognise(files)
    data = materials.one(Role.TDX_QUOTE)
    quote = data[: len(data) - len(parse_quote(data).trailing)]
    collateral = json.dumps(_collateral(materials))
    try:
        report = dcap_qvl.verify(quote, dcap_qvl.QuoteCollateralV3.from_json(collateral), now_unix)
    except (ValueError, RuntimeError) as error:
        raise rejected(
            "second_opinion", _STEP, expected="a quote that dcap-qvl accepts", actual=_line(error)
        ) from error
    return str(report.status)


def _collateral(materials: Materials) -> dict[str, str]:
    """The collateral in that library's own JSON."""
    info = cut_out(materials.one(Role.TCB_INFO, step=_STEP), "tcbInfo")
    identity = cut_out(materials.one(Role.QE_IDENTITY, step=_STEP), "enclaveIdentity")
    signers = _pem(_named(materials, "Intel SGX TCB Signing"), _named(materials, _ROOT))
    issuers = _pem(_named(materials, "Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"),
                   _named(materials, _ROOT))  # fmt: skip
    return {
        "pck_crl_issuer_chain": issuers,
        "root_ca_crl": _crl(materials, is_root=True).der.hex(),
        "pck_crl": _crl(materials, is_root=False).der.hex(),
        "tcb_info_issuer_chain": signers,
        "tcb_info": info.body.decode("utf-8"),
        "tcb_info_signature": info.signature.hex(),
        "qe_identity_issuer_chain": signers,
        "qe_identity": identity.body.decode("utf-8"),
        "qe_identity_signature": identity.signature.hex(),
    }


_ROOT: Final = "Intel SGX Root CA"


def _named(materials: Materials, *names: str) -> Certificate:
    for certificate in materials.certificates:
        if certificate.name in names:
            return certificate
    raise _missing(f"a certificate of {' or '.join(names)}")


def _crl(materials: Materials, *, is_root: bool) -> Crl:
    for crl in materials.crls:
        if (crl.issuer_name == _ROOT) == is_root:
            return crl
    raise _missing("the CRL of Intel's root" if is_root else "the CRL of the PCK authority")


def _pem(*certificates: Certificate) -> str:
    return "".join(
        "-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(one.der).decode("ascii")
        + "-----END CERTIFICATE-----\n"
        for one in certificates
    )


def _missing(what: str) -> EvidenceRejected:
    return rejected("collateral_missing", _STEP, expected=what, actual="none was given")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
