"""The look-alike vendors, their roots, and policies that would accept them."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.trust.base import Subject
from overspill.trust.certificates import parse_certificate
from overspill.trust.event_log import parse_event_log
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NO_NONCE, qualifying_data
from overspill.trust.policy import TrustPolicy, parse_policy
from overspill.trust.raw import RawAppraisal, RawContext, appraise_raw
from overspill.trust.roots import VendorRoots
from overspill.trust.tpm import EK_USAGE, TpmEvidence, activation_message
from overspill.trust.tpm_hardware import HEAD as TPM_HEAD
from overspill.types.evidence import Assurance, Evidence

MAKERS = Path(__file__).resolve().parent / "makers" / "__init__.py"


@pytest.fixture(scope="session")
def makers() -> ModuleType:
    """The module that makes evidence; loaded by path, as the vectors' script does."""
    spec = importlib.util.spec_from_file_location("trust_hardware_makers", MAKERS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def roots(makers) -> VendorRoots:
    """The look-alikes' roots, where the production verifier has the vendors'."""
    amd = tuple(parse_certificate(makers.Amd(p).ark.der) for p in ("Milan", "Genoa", "Turin"))
    return VendorRoots(
        amd=amd,
        intel=(parse_certificate(makers.Intel().root.der),),
        nvidia=(parse_certificate(makers.Nvidia().root.der),),
        nvidia_rim=(
            parse_certificate(
                makers.Authority("NVIDIA CoRIM signing Root CA", seed="rim root").der
            ),
        ),
    )


HEAD = """
version = 1
min_assurance = "{floor}"
accept = [{accept}]
freshness = "nonce"
unreleased = true
[reference]
models = {{ river = "{river}" }}
"""


@pytest.fixture(scope="session")
def policy_of(makers) -> Callable[..., TrustPolicy]:
    """``policy_of("tdx", snp="...")``: accepts these types, under sections that a test may swap."""

    def tcb(product: str) -> str:
        floor = makers.Amd(product).tcb
        return f"[sev-snp.min_tcb.{product}]\n" + "".join(f"{k} = {v}\n" for k, v in floor.items())

    products = ("Milan", "Genoa", "Turin")
    measured = makers.MEASUREMENT.hex()
    sections = {
        "sev-snp": 'products = ["Milan", "Genoa", "Turin"]\n'
        f'measurements = ["{measured}"]\n' + "".join(tcb(p) for p in products),
        "tdx": f'mrtd = ["{measured}"]\nrtmr1 = ["{"01" * 48}"]\nrtmr2 = ["{"02" * 48}"]\n',
        "nvidia-gpu": f'drivers = ["{makers.DRIVER}"]\nvbioses = ["{makers.VBIOS}"]\n',
        "sev-snp-vtpm": "",
    }

    def make(*types: str, floor: str = "HARDWARE_TEE", **swapped: str) -> TrustPolicy:
        text = HEAD.format(
            floor=floor,
            accept=", ".join(f'"{name}"' for name in types),
            river=hashlib.sha256(b"river's weights").hexdigest(),
        )
        names = [
            *types,
            *(["sev-snp"] if "sev-snp-vtpm" in types and "sev-snp" not in types else []),
        ]
        for name in names:
            body = swapped.get(name.replace("-", "_"), sections.get(name, ""))
            text += f"[{name}]\n{body}\n"
        return parse_policy(text, "trust.toml")

    return make


@pytest.fixture(scope="session")
def judge(makers, roots) -> Callable[..., RawAppraisal]:
    """``judge("snp", files, policy=, nonce=, now=)``: raw evidence under the look-alikes' roots."""

    def run(kind: str, files, policy=None, nonce=None, now=None) -> RawAppraisal:
        return appraise_raw(kind, files, RawContext(now or makers.NOW, nonce), policy, roots)

    return run


@pytest.fixture(scope="session")
def refused(judge) -> Callable[..., str]:
    """``refused("snp", files, ...)``: the reason, after a look at its form."""

    def run(kind: str, files, **how) -> str:
        appraisal = judge(kind, files, **how)
        error = appraisal.rejection
        assert error is not None, appraisal.claims
        assert appraisal.verdict == "rejected"
        assert appraisal.assurance is Assurance.NONE
        assert not appraisal.claims
        assert error.expected
        assert error.actual
        marks = [step.ok for step in appraisal.steps]
        assert marks.count(False) <= 1
        return error.reason

    return run


@pytest.fixture
def subject_of(makers, pinned_node) -> Callable[..., Subject]:
    """``subject_of(nonce, **changes)``: a node's configuration and log, for evidence to bind."""

    def make(
        nonce: bytes | None = None, log: tuple[bytes, ...] | None = None, **changes
    ) -> Subject:
        config = pinned_node.config(**changes)
        raw = log or pinned_node.log
        return Subject(config.encode(), config, raw, MeasuredLog.decode(raw), nonce, makers.NOW)

    return make


# --- a node with a hardware TPM ------------------------------------------------------------------


@pytest.fixture
def registers(makers):
    """``registers(subject, log)``: what firmware and measured log lead to."""

    def lead(subject, log: bytes) -> dict[int, bytes]:
        values = parse_event_log(log).replay()
        for pcr, digest in subject.log.extensions():
            start = values.get(pcr, bytes(32))
            values[pcr] = hashlib.sha256(start + digest).digest()
        return values

    return lead


OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes([5] * 32))


@dataclass
class TpmNode:
    """A node with a hardware TPM of a look-alike maker."""

    makers: ModuleType
    lead: Callable[..., dict[int, bytes]]
    subject: Subject

    def evidence(self, *, grounds="ek", log=None, dev=False, nonce=None, **how) -> Evidence:
        makers, subject = self.makers, self.subject
        log = makers.event_log() if log is None else log
        values = how.get("values") or self.lead(subject, log)
        ak = makers.key("attestation key", makers.P256)
        public = makers.ecc_public(ak, how.get("attributes", makers.GOOD_AK))
        quote = makers.attest(
            qualifying_data(subject.nkc_bytes, nonce, dev), values, **how.get("quote", {})
        )
        collateral = {"event_log": log, **getattr(self, f"_{grounds}")(how)}
        name = b"\0\x0b" + hashlib.sha256(public).digest()
        activation = OPERATOR.sign(
            activation_message(collateral.get("ek_certificate", b""), how.get("ak_name", name))
        )
        if grounds == "ak" and not how.get("activated"):
            activation = b""
        signer = how.get("signer", ak)
        parts = TpmEvidence(
            nonce or NO_NONCE, public, quote, makers.ecc_signature(signer, quote), activation
        )
        return Evidence("tpm", parts.encode(TPM_HEAD), collateral | how.get("more", {}))

    @property
    def maker(self):
        return self.makers.Authority("TPM maker")

    def _ek(self, how) -> dict[str, bytes]:
        usage = self.makers.tlv(0x30, self.makers.oid(how.get("usage", EK_USAGE.dotted_string)))
        between = self.makers.Authority("TPM maker 2", issuer=how.get("maker", self.maker))
        ek = self.makers.Authority(
            "EK",
            self.makers.P256,
            between,
            is_authority=how.get("is_authority", False),
            extensions=(("2.5.29.37", usage),),
        )
        return {"ek_certificate": ek.der, "ek_chain": between.pem}

    def _ak(self, how) -> dict[str, bytes]:
        seed = how.get("ak_seed", "attestation key")
        leaf = self.makers.Authority("AK", self.makers.P256, self.maker, seed, is_authority=False)
        return {"ak_certificate": leaf.der, "ak_chain": b""}


@pytest.fixture
def tpm_node(makers, registers, subject_of):
    """``tpm_node(nonce)``: a TPM that quotes over a node's configuration and log."""
    return lambda nonce=None: TpmNode(makers, registers, subject_of(nonce))


@pytest.fixture
def tpm_policy(makers, policy_of):
    """A policy with grounds of both kinds."""
    pem = makers.Authority("TPM maker").pem.decode()
    operator = OPERATOR.public_key().public_bytes_raw().hex()
    section = (
        f'ek_roots = ["""\n{pem}"""]\nak_roots = ["""\n{pem}"""]\nactivation_keys = ["{operator}"]'
    )
    return policy_of("tpm", floor="HARDWARE_TPM", tpm=section)
