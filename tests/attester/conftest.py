"""What attesters vouch for in these tests, and a software TPM where there is one."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from overspill.sealing.hpke import NodeKeyPair
from overspill.trust import verifier
from overspill.trust.certificates import parse_certificate
from overspill.trust.measured import Measured, MeasuredEntry, ModelEntry, ModelsManifest
from overspill.trust.nkc import NodeKeyConfig
from overspill.trust.roots import VendorRoots
from overspill.trust.snp import SevSnpVerifier
from overspill.trust.tdx import TdxVerifier
from overspill.trust.verifier import Context
from overspill.types.evidence import EvidenceBundle

NOW = 1_800_000_000
NONCE = bytes(range(32))
RIVER = hashlib.sha256(b"river's weights").digest()
MANIFEST = ModelsManifest((ModelEntry("river", RIVER, RIVER, RIVER),))
SETTINGS = b'{"settings":1}'


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def measured(engine: bytes = b"engine") -> tuple[bytes, ...]:
    content = MANIFEST.encode()
    entries = (
        MeasuredEntry(Measured.WHEEL, "overspill 1", sha256(b"wheel")),
        MeasuredEntry(Measured.ENGINE, "echo", sha256(engine)),
        MeasuredEntry(Measured.MODELS, "models", sha256(content), content),
        MeasuredEntry(Measured.CONFIG, "config", sha256(SETTINGS), SETTINGS),
    )
    return tuple(entry.encode() for entry in entries)


def config_for(attester, now_unix: int = NOW) -> bytes:
    return NodeKeyConfig(
        mode=attester.mode,
        kem_id=0x647A,
        kdf_id=1,
        aead_id=3,
        hpke_public_key=NodeKeyPair.generate().public_bytes,
        receipt_public_key=bytes(32),
        not_before=now_unix - 60,
        not_after=now_unix + 3600,
        models_digest=MANIFEST.digest,
        config_digest=sha256(SETTINGS),
        boot_id=bytes(16),
    ).encode()


@pytest.fixture(scope="session")
def log() -> tuple[bytes, ...]:
    """A measured log of one model, river."""
    return measured()


@pytest.fixture(scope="session")
def other_log() -> tuple[bytes, ...]:
    """The same with another engine library."""
    return measured(b"another engine")


@pytest.fixture(scope="session")
def models() -> dict[str, bytes]:
    """What a policy has to list for :func:`log`."""
    return {"river": RIVER}


@pytest.fixture(scope="session")
def bundle_of() -> Callable[..., EvidenceBundle]:
    """``bundle_of(attester, log, nonce=..., now_unix=...)``: as a node makes it."""

    def make(attester, log, nonce: bytes | None = NONCE, now_unix: int = NOW) -> EvidenceBundle:
        nkc = config_for(attester, now_unix)
        return EvidenceBundle(nkc, (attester.evidence(nkc, nonce, log),), measured_log=log)

    return make


@pytest.fixture(scope="session")
def at() -> Callable[..., Context]:
    """``at(now_unix=...)``: a challenge on loopback."""

    def make(**changes) -> Context:
        return replace(Context(NOW, "127.0.0.1:7001", True, NONCE), **changes)

    return make


@pytest.fixture(scope="session")
def vendors() -> ModuleType:
    """The look-alike vendors of the verifiers' tests: the same evidence, fixed keys and clock."""
    place = Path(__file__).resolve().parents[1] / "trust" / "hardware" / "makers" / "__init__.py"
    spec = importlib.util.spec_from_file_location("attester_hardware_makers", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def look_alikes(monkeypatch, vendors) -> None:
    """The registry with the look-alikes' roots instead of the vendors'."""
    roots = VendorRoots(
        amd=tuple(parse_certificate(vendors.Amd(p).ark.der) for p in ("Milan", "Genoa", "Turin")),
        intel=(parse_certificate(vendors.Intel().root.der),),
        nvidia=(),
        nvidia_rim=(),
    )
    own = (SevSnpVerifier(lambda: roots), TdxVerifier(lambda: roots))
    registry = {**verifier.REGISTRY, **{one.evidence_type: one for one in own}}
    monkeypatch.setattr(verifier, "REGISTRY", registry)


@pytest.fixture
def swtpm_state(tmp_path: Path, need_program) -> Path:
    """A state folder on a machine with swtpm and tpm2-pytss; skips, saying what to install."""
    need_program("swtpm", "swtpm")
    pytest.importorskip(
        "tpm2_pytss",
        reason="tpm2-pytss is not installed: apt-get install libtss2-dev; "
        'pip install "overspill[tpm]"',
        exc_type=ImportError,
    )
    return tmp_path
