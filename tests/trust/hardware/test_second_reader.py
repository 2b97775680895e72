"""Our reader of certificates beside the library's, over good ones and thousands of damaged ones.

Where both read one, they read the same. Where one alone does, it is for a reason in the two lists
here: what we leave unread, and where we are stricter.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from typing import Any

import pytest
from cryptography import x509

from overspill.errors import EvidenceRejected
from overspill.trust.certificates import (
    BASIC_CONSTRAINTS,
    KEY_USAGE,
    Certificate,
    parse_certificate,
)
from overspill.trust.roots import vendor_roots

ROUNDS = 4000
OURS_ALONE = {
    "issuer": "names are compared as bytes and shown to people: what strings are inside is unread",
    "subject": "as for the issuer",
}
THEIRS_ALONE = {
    "the signed algorithm is not the one that is used": "the library leaves that comparison to you",
    "twice": "an extension twice: the library finds out when extensions are asked for",
    "whole bytes": "a signature with unused bits",
    "a public key that cannot be read": "the library loads a key when it is asked for",
    "RSA of": "a weak key: as above",
    "the path length": "basic constraints, read by the library when they are asked for",
    "the basic constraints": "as above",
    "the authority flag": "as above",
    "the key usage": "as above",
}


@pytest.fixture(scope="module")
def certificates(makers) -> list[bytes]:
    roots = vendor_roots()
    shipped = (*roots.amd, *roots.intel, *roots.nvidia, *roots.nvidia_rim, *roots.intermediates)
    made = (
        makers.Amd().endorsement,
        makers.Amd("Turin", vlek=True).endorsement,
        makers.Intel().pck,
        makers.Nvidia().leaf,
        makers.Intel().root,
    )
    return [*(one.der for one in shipped), *(one.der for one in made)]


def ours(data: bytes) -> Certificate:
    """The certificate, with all that is read of one on the way to a verdict."""
    found = parse_certificate(data)
    for field in ("name", "issuer_name", "usages", "path_length", "may_sign_crls", "public_key"):
        getattr(found, field)
    return found


def theirs(data: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AMD's serial numbers are 0
        found = x509.load_der_x509_certificate(data)
        for field in ("issuer", "subject", "not_valid_before_utc", "not_valid_after_utc"):
            getattr(found, field)
    return found


def differences(one: Certificate, other: x509.Certificate) -> list[str]:
    """The fields that decide, and are not the same in both."""
    pairs: dict[str, tuple[Any, Any]] = {
        "serial": (one.serial, other.serial_number),
        "tbs": (one.tbs, other.tbs_certificate_bytes),
        "signature": (one.signature, other.signature),
        "issuer": (one.issuer, other.issuer.public_bytes()),
        "subject": (one.subject, other.subject.public_bytes()),
        "not_before": (one.not_before, int(other.not_valid_before_utc.timestamp())),
        "not_after": (one.not_after, int(other.not_valid_after_utc.timestamp())),
        "key": (one.public_key, other.public_key()),
    } | _extensions(one, other)
    return [name for name, (mine, yours) in pairs.items() if mine != yours]


def _extensions(one: Certificate, other: x509.Certificate) -> dict[str, tuple[Any, Any]]:
    try:
        listed = {extension.oid.dotted_string: extension for extension in other.extensions}
    except (ValueError, TypeError):  # one that we have no use for is damaged inside
        return {}
    critical = {name for name, extension in listed.items() if extension.critical}
    pairs: dict[str, tuple[Any, Any]] = {
        "extensions": (set(one.extensions), set(listed)),
        "critical": (one.critical, critical),
    }
    if BASIC_CONSTRAINTS in listed:
        value = listed[BASIC_CONSTRAINTS].value
        length = 1 << 16 if value.path_length is None else value.path_length
        pairs["authority"] = (one.path_length, length if value.ca else None)
    if KEY_USAGE in listed:
        value = listed[KEY_USAGE].value
        pairs["signs certificates"] = (one.may_sign_certificates, value.key_cert_sign)
        pairs["signs lists"] = (one.may_sign_crls, value.crl_sign)
    return pairs


def damaged(good: bytes, chance: random.Random) -> bytes:
    """A bit, a byte, or a few bytes more or less."""
    data = bytearray(good)
    at = chance.randrange(len(data))
    kind = chance.random()
    if kind < 0.7:
        data[at] ^= 1 << chance.randrange(8)
    elif kind < 0.85:
        data[at] = chance.randrange(256)
    else:
        data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(data)


def compared(data: bytes) -> tuple[str, str]:
    """Who reads it, and why the other does not."""
    try:
        one: Certificate | str = ours(data)
    except EvidenceRejected as error:
        one = error.actual
    try:
        other: x509.Certificate | str = theirs(data)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        other = f"{type(error).__name__}: {error}"
    if isinstance(one, Certificate) and isinstance(other, x509.Certificate):
        return "both", ", ".join(differences(one, other))
    if isinstance(one, Certificate):
        return "ours", str(other)
    return ("theirs", one) if isinstance(other, x509.Certificate) else ("neither", "")


def test_good_ones_are_read_alike(certificates):
    assert len(certificates) > 12
    assert {compared(data) for data in certificates} == {("both", "")}


def test_damaged_ones_are_read_alike_or_the_difference_is_known(certificates):
    chance = random.Random(20)
    seen: Counter[str] = Counter()
    for _ in range(ROUNDS):
        data = damaged(chance.choice(certificates), chance)
        who, why = compared(data)
        seen[who] += 1
        assert who != "both" or not why, f"{why}: {data.hex()}"
        known = {"ours": (*OURS_ALONE, "AttributeTypeValue", "oid must be"), "theirs": THEIRS_ALONE}
        if who in known:
            assert any(word in why for word in known[who]), f"{who}: {why}: {data.hex()}"
    assert min(seen["both"], seen["neither"], seen["theirs"]) > ROUNDS // 50


def test_others_certificates_are_read_alike(shared_data):
    """Every certificate among others' vectors that is a file of its own."""
    found = 0
    for file in sorted((shared_data / "vectors").rglob("*")):
        if file.suffix not in (".der", ".crt", ".cer"):
            continue
        who, why = compared(file.read_bytes())
        assert (who, why) in {("both", ""), ("neither", "")}, (file.name, who, why)
        found += who == "both"
    assert found >= 3
