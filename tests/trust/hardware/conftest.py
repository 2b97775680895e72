"""The look-alike vendors, their roots, and policies that would accept them."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from overspill.trust.base import Subject
from overspill.trust.certificates import parse_certificate
from overspill.trust.measured import MeasuredLog
from overspill.trust.policy import TrustPolicy, parse_policy
from overspill.trust.raw import RawAppraisal, RawContext, appraise_raw
from overspill.trust.roots import VendorRoots
from overspill.types.evidence import Assurance

MAKERS = Path(__file__).resolve().parent / "makers.py"


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
