"""Evidence to measure: made on the spot by look-alike vendors, with an own root for each.

The look-alikes are the ones of the tests (``makers``): real structures and real signatures, on
P-384 and P-256, and roots that nobody else trusts. Beside each check stands the bare one: the same
signatures by the library alone, without a word about what they are over.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from overspill.bench.trust_node import NOW, RIVER, ReleasedNode
from overspill.errors import ConfigurationError
from overspill.trust import nvidia, tdx, tpm_hardware
from overspill.trust.base import EvidenceVerifier, Subject
from overspill.trust.certificates import parse_certificate, read_pem
from overspill.trust.event_log import parse_event_log
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NO_NONCE, qualifying_data, report_data
from overspill.trust.policy import TrustPolicy, parse_policy
from overspill.trust.roots import VendorRoots
from overspill.trust.snp import TYPE as SNP
from overspill.trust.snp import SevSnpVerifier
from overspill.trust.steps import Steps
from overspill.trust.tdx import TdxVerifier
from overspill.trust.tpm import TpmEvidence
from overspill.trust.tpm_hardware import HardwareTpmVerifier
from overspill.types.evidence import Evidence

_HEAD = f"""version = 1
freshness = "nonce"
unreleased = true
[reference]
models = {{ river = "{RIVER.hex()}" }}
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """A kind of evidence: the whole check, the bare signatures, and the piece itself."""

    check: Callable[[], object]
    bare: Callable[[], None]
    evidence: Evidence


def load_makers(file: Path) -> Any:
    """The module of look-alikes. Raises ``ConfigurationError`` where the file is not there."""
    if not file.is_file():
        raise ConfigurationError(
            f"The look-alike vendors are not at {file}.",
            mend="Run this in a checkout, or name its file: --makers tests/.../makers/__init__.py.",
        )
    loader = SourceFileLoader("overspill_bench_makers", str(file))
    spec = importlib.util.spec_from_file_location(loader.name, file, loader=loader)
    if spec is None:
        raise ConfigurationError(f"{file} is no Python file.", mend="Name one: --makers FILE.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up, parts their package
    loader.exec_module(module)
    return module


def kinds(makers: Any) -> Mapping[str, Callable[[], Checked]]:
    """How each kind is made, by its name in the figures."""
    node = ReleasedNode()
    return {
        "snp": lambda: _snp(makers, node),
        "tdx": lambda: _tdx(makers, node),
        "tpm": lambda: _tpm(makers, node),
        "nvidia": lambda: _nvidia(makers),
    }


def _snp(makers: Any, node: ReleasedNode) -> Checked:
    amd = makers.Amd()
    report = amd.report(report_data(node.nkc, None, dev=False))
    evidence = Evidence(SNP, report, {"vcek": amd.endorsement.der, "ask": amd.ask.der})
    section = _snp_section(makers, amd)
    policy = _policy(SNP, section)
    roots = VendorRoots(amd=(parse_certificate(amd.ark.der),), intel=(), nvidia=(), nvidia_rim=())
    chain = (amd.endorsement.der, amd.ask.der, amd.ark.der)

    def bare() -> None:
        key, *_ = _bare_chain(chain)
        numbers = report[0x2A0 : 0x2A0 + 72], report[0x2A0 + 72 : 0x2A0 + 144]
        r, s = (int.from_bytes(number, "little") for number in numbers)
        _verify(key, r, s, report[:0x2A0])

    return _checked(SevSnpVerifier(lambda: roots), evidence, node, policy, bare)


def _snp_section(makers: Any, amd: Any) -> str:
    floor = "".join(f"{name} = {least}\n" for name, least in amd.tcb.items())
    return (
        f'products = ["Milan"]\nmeasurements = ["{makers.MEASUREMENT.hex()}"]\n'
        f"[sev-snp.min_tcb.Milan]\n{floor}"
    )


def _tdx(makers: Any, node: ReleasedNode) -> Checked:
    intel = makers.Intel()
    rtmrs = (bytes(48), b"\1" * 48, b"\2" * 48, MeasuredLog.decode(node.log).replay_rtmr())
    quote = intel.quote(report_data(node.nkc, None, dev=False), rtmrs=rtmrs)
    evidence = Evidence(tdx.TYPE, quote, intel.collateral())
    policy = _policy(
        tdx.TYPE,
        f'mrtd = ["{makers.MEASUREMENT.hex()}"]\n'
        f'rtmr1 = ["{"01" * 48}"]\nrtmr2 = ["{"02" * 48}"]\n',
    )
    roots = VendorRoots(
        amd=(), intel=(parse_certificate(intel.root.der),), nvidia=(), nvidia_rim=()
    )
    return _checked(
        TdxVerifier(lambda: roots), evidence, node, policy, lambda: _bare_tdx(intel, evidence)
    )


def _bare_tdx(intel: Any, evidence: Evidence) -> None:
    """Chain, two CRLs, two signed documents, the enclave's report and the quote."""
    quote, collateral = evidence.data, evidence.collateral
    chain = x509.load_pem_x509_certificates(quote[quote.index(b"-----BEGIN") :])
    for one, issuer in itertools.pairwise(chain):
        one.verify_directly_issued_by(issuer)
    signer = x509.load_pem_x509_certificate(collateral["tcb_signing_chain"])
    signer.verify_directly_issued_by(chain[-1])
    for name, authority in (("pck_crl", chain[1]), ("root_crl", chain[2])):
        crl = x509.load_der_x509_crl(collateral[name])
        _demand(crl.is_signature_valid(_ec(authority)))
    for name, field in (("tcb_info", b"tcbInfo"), ("qe_identity", b"enclaveIdentity")):
        document = collateral[name]
        json.loads(document)
        body = document[len(field) + 4 : document.rindex(b',"signature"')]
        raw = bytes.fromhex(document[-130:-2].decode())
        _verify(_ec(signer), *_halves(raw), body, SHA256())
    report_at = 48 + 584 + 4 + 128 + 6
    report, after = quote[report_at : report_at + 384], report_at + 384
    _verify(_ec(chain[0]), *_halves(quote[after : after + 64]), report, SHA256())
    point = b"\4" + quote[48 + 584 + 4 + 64 : 48 + 584 + 4 + 128]
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    _verify(key, *_halves(quote[636:700]), quote[:632], SHA256())


def _tpm(makers: Any, node: ReleasedNode) -> Checked:
    maker = makers.Authority("TPM maker")
    leaf = makers.Authority("AK", makers.P256, maker, "attestation key", is_authority=False)
    key, log = makers.key("attestation key", makers.P256), makers.event_log()
    registers = _registers(log, MeasuredLog.decode(node.log))
    quote = makers.attest(qualifying_data(node.nkc, None, dev=False), registers)
    signature = makers.ecc_signature(key, quote)
    parts = TpmEvidence(NO_NONCE, makers.ecc_public(key), quote, signature, b"")
    collateral = {"event_log": log, "ak_certificate": leaf.der, "ak_chain": b""}
    evidence = Evidence(tpm_hardware.TYPE, parts.encode(tpm_hardware.HEAD), collateral)
    policy = _policy(tpm_hardware.TYPE, f'ak_roots = ["""\n{maker.pem.decode()}"""]')

    def bare() -> None:
        public, *_ = _bare_chain((leaf.der, maker.der))
        _verify(public, *_halves(signature[6:38] + signature[40:72]), quote, SHA256())

    return _checked(HardwareTpmVerifier(), evidence, node, policy, bare)


def _registers(log: bytes, measured: MeasuredLog) -> dict[int, bytes]:
    """What the firmware's log and the measured log lead to, in the registers that are quoted."""
    found = dict(parse_event_log(log).replay())
    for pcr, digest in measured.extensions():
        found[pcr] = hashlib.sha256(found.get(pcr, bytes(32)) + digest).digest()
    return {pcr: found.get(pcr, bytes(32)) for pcr in (7, 12, 13, 14)}


def _nvidia(makers: Any) -> Checked:
    gpu, nonce = makers.Nvidia(), bytes(range(32))
    report = gpu.report(nonce)
    gpus = f'[nvidia-gpu]\ndrivers = ["{makers.DRIVER}"]\nvbioses = ["{makers.VBIOS}"]'
    policy = _policy(SNP, _snp_section(makers, makers.Amd()), gpus)
    roots = VendorRoots(amd=(), intel=(), nvidia=(parse_certificate(gpu.root.der),), nvidia_rim=())
    evidence = Evidence("nvidia-gpu", report, {"certificates": gpu.chain})

    def check() -> object:
        certificates, _ = read_pem(gpu_chain)
        return nvidia.examine(
            nvidia.GpuMaterials(report, certificates),
            NOW,
            nonce,
            policy.gpu,
            Steps(nvidia.STEP_NAMES),
            roots,
        )

    gpu_chain, ders = gpu.chain, (gpu.leaf.der, gpu.authority.der, gpu.root.der)

    def bare() -> None:
        public, *_ = _bare_chain(ders)
        _verify(public, *_halves(report[-96:]), report[:-96])

    return Checked(check, bare, evidence)


def _checked(
    verifier: EvidenceVerifier,
    evidence: Evidence,
    node: ReleasedNode,
    policy: TrustPolicy,
    bare: Callable[[], None],
) -> Checked:
    log = MeasuredLog.decode(node.log)
    subject = Subject(node.nkc, node.config, node.log, log, None, NOW)
    return Checked(lambda: verifier.check(evidence, subject, policy), bare, evidence)


def _policy(kind: str, section: str, more: str = "") -> TrustPolicy:
    accept = [kind, "nvidia-gpu"] if more else [kind]
    floor = "HARDWARE_TPM" if kind == tpm_hardware.TYPE else "HARDWARE_TEE"
    head = f'accept = {json.dumps(accept)}\nmin_assurance = "{floor}"\n{_HEAD}'
    return parse_policy(f"{head}[{kind}]\n{section}\n{more}")


def _bare_chain(ders: Iterable[bytes]) -> tuple[ec.EllipticCurvePublicKey, ...]:
    """The keys of a chain, each certificate signed by the next."""
    chain = [x509.load_der_x509_certificate(der) for der in ders]
    for one, issuer in itertools.pairwise(chain):
        one.verify_directly_issued_by(issuer)
    return tuple(_ec(one) for one in chain)


def _ec(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigurationError("The look-alike vendors' keys are of another kind.")
    return key


def _verify(
    key: ec.EllipticCurvePublicKey,
    r: int,
    s: int,
    message: bytes,
    digest: SHA256 | SHA384 | None = None,
) -> None:
    key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest or SHA384()))


def _halves(raw: bytes) -> tuple[int, int]:
    half = len(raw) // 2
    return int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")


def _demand(holds: bool) -> None:
    if not holds:
        raise ConfigurationError("The look-alike vendors' evidence does not verify.")
