"""The second verifier of quotes: what it needs, what it refuses, and an environment without it."""

from __future__ import annotations

import sys

import pytest

from overspill.errors import EvidenceRejected, MissingExtra
from overspill.trust.second_opinion import _line, tdx_opinion


def files(intel, *left_out: str) -> list[bytes]:
    """A quote with the look-alike's collateral, but for what is left out."""
    given = {**intel.collateral(), "authority": intel.authority.pem, "root": intel.root.pem}
    return [intel.quote(), *(data for name, data in given.items() if name not in left_out)]


def reason(data: list[bytes], now_unix: int) -> EvidenceRejected:
    with pytest.raises(EvidenceRejected) as caught:
        tdx_opinion(data, now_unix)
    return caught.value


def test_without_the_library_the_extra_is_named(makers, monkeypatch):
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(MissingExtra, match="second-opinion"):
        tdx_opinion(files(makers.Intel()), makers.NOW)


def test_it_refuses_a_look_alikes_quote(makers):
    pytest.importorskip("dcap_qvl", reason="pip install 'overspill[second-opinion]'")
    error = reason(files(makers.Intel()), makers.NOW)
    assert (error.reason, error.step) == ("second_opinion", "8.8")
    assert error.actual


@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        ("tcb_signing_chain", "Intel SGX TCB Signing"),
        ("root_crl", "the CRL of Intel's root"),
        ("pck_crl", "the CRL of the PCK authority"),
    ],
)
def test_what_it_lacks_is_named(makers, left_out, named):
    pytest.importorskip("dcap_qvl", reason="pip install 'overspill[second-opinion]'")
    error = reason(files(makers.Intel(), left_out), makers.NOW)
    assert (error.reason, error.actual) == ("collateral_missing", "none was given")
    assert named in error.expected


def test_an_error_without_words_has_a_name():
    assert _line(ValueError("a\n  b")) == "a b"
    assert _line(RuntimeError()) == "RuntimeError"
