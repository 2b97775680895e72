"""Writes raw hardware evidence of look-alike vendors, each file named for its defect.

    python tests/trust/vectors/make_hardware_vectors.py            write them
    python tests/trust/vectors/make_hardware_vectors.py --check    exit 1 and name each that differs

Fixed keys, fixed clock, deterministic signatures: for verifiers in any language. A file holds the
kind of evidence, its files in base64, a time, perhaps a nonce and a policy, and the one reason for
which it has to be refused ("accepted" for the good ones) under the roots in ``roots.json``. A
verifier with the vendors' real roots has to refuse every one of them.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent / "hardware"
Case = tuple[str, str, str, list[bytes], dict[str, Any]]


def _makers() -> ModuleType:
    place = FOLDER.parent.parent / "hardware" / "makers" / "__init__.py"
    spec = importlib.util.spec_from_file_location("trust_hardware_makers", place)
    if spec is None or spec.loader is None:
        raise ImportError(str(place))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


m = _makers()

SNP_POLICY = f"""version = 1
accept = ["sev-snp"]
freshness = "nonce"
unreleased = true
[reference]
models = {{ river = "{"ab" * 32}" }}
[sev-snp]
products = ["Milan", "Turin"]
measurements = ["{m.MEASUREMENT.hex()}"]
chips = ["{m.CHIP.hex()}", "{m.TURIN_CHIP.hex()}"]
""" + "".join(
    f"[sev-snp.min_tcb.{product}]\n"
    + "".join(f"{part} = {least}\n" for part, least in m.Amd(product).tcb.items())
    for product in ("Milan", "Turin")
)
TDX_POLICY = f"""version = 1
accept = ["tdx"]
freshness = "nonce"
unreleased = true
[reference]
models = {{ river = "{"ab" * 32}" }}
[tdx]
mrtd = ["{m.MEASUREMENT.hex()}"]
rtmr1 = ["{"01" * 48}"]
rtmr2 = ["{"02" * 48}"]
"""


def snp(amd: Any, **how: Any) -> list[bytes]:
    return [amd.report(**how), amd.endorsement.der, amd.ask.der]


def tdx(intel: Any, collateral: dict[str, bytes] | None = None, **how: Any) -> list[bytes]:
    return [intel.quote(**how), *intel.collateral(**(collateral or {})).values()]


def snp_cases() -> Iterator[Case]:
    """SEV-SNP: T5 and T11 to T19."""
    milan, policy = m.Amd(), {"policy": SNP_POLICY}
    yield "good_snp_milan_v2", "snp", "accepted", snp(milan, version=2), policy
    yield "good_snp_turin_v5", "snp", "accepted", snp(m.Amd("Turin"), version=5), policy
    yield "t05_snp_debug", "snp", "guest_debug", snp(milan, policy=0x30000 | 1 << 19), policy
    report, *keys = snp(milan)
    zero = report[:0x2A0] + bytes(512)
    yield "t11_snp_zero_signature", "snp", "signature_zero", [zero, *keys], policy
    yield (
        "t12_snp_big_endian", "snp", "signature_byte_order", snp(milan, byte_order="big"), policy,
    )  # fmt: skip
    other = m.Amd(hwid=bytes([9] * 64))
    foreign = [report, other.endorsement.der, other.ask.der]
    yield "t13_snp_other_chip", "snp", "chip_id_mismatch", foreign, policy
    yield "t14_snp_vlek", "snp", "vlek_not_allowed", snp(m.Amd(vlek=True)), policy
    yield "t15_snp_vmpl", "snp", "vmpl", snp(milan, vmpl=1), policy
    yield (
        "t15_snp_migration", "snp", "guest_migration", snp(milan, policy=0x30000 | 1 << 18), policy,
    )  # fmt: skip
    low = m.Amd(tcb={"snp": 21, "microcode": 255})
    yield "t16_snp_tcb_low", "snp", "tcb_below_floor", snp(low), policy
    genoa = snp(milan, cpuid=m.CPUID["Genoa"])
    yield "t17_snp_product", "snp", "product_mismatch", genoa, policy
    unpinned = m.Amd(hwid=bytes([1] * 64))
    yield "t18_snp_chip", "snp", "chip_not_pinned", snp(unpinned, chip=bytes([1] * 64)), policy
    yield "t19_snp_version_99", "snp", "report_version", snp(milan, version=99), policy
    yield "t19_snp_1183_bytes", "snp", "report_length", [report[:-1], *keys], policy
    yield "t19_snp_1185_bytes", "snp", "report_length", [report + b"\0", *keys], policy


def tdx_cases() -> Iterator[Case]:
    """TDX: T5 and T20 to T24."""
    intel, policy = m.Intel(), {"policy": TDX_POLICY}
    yield "good_tdx_v4", "tdx", "accepted", tdx(intel), policy
    yield "good_tdx_v5", "tdx", "accepted", tdx(intel, version=5, tail=bytes(64)), policy
    yield "t05_tdx_debug", "tdx", "td_debug", tdx(intel, attributes=1 << 28 | 1), policy
    old = m.Intel(extension=m.sgx_extension(pce_svn=5))
    yield "t20_tdx_outdated", "tdx", "tcb_status", tdx(old), policy
    crl = {"pck_crl": intel.authority.crl(days=-1, from_days=-30)}
    yield "t21_tdx_expired_crl", "tdx", "crl_expired", tdx(intel, crl), policy
    info = {"tcb_info": intel.tcb_info(issueDate=m.stamp(-40), nextUpdate=m.stamp(-10))}
    yield "t21_tdx_expired_tcb_info", "tdx", "tcb_info_expired", tdx(intel, info), policy
    unbound = tdx(intel, bound=bytes(32))
    yield "t22_tdx_ak_not_bound", "tdx", "ak_not_bound", unbound, policy
    fake = m.Intel("somebody else")
    yield "t23_tdx_look_alike_root", "tdx", "root_unknown", tdx(fake), policy
    for name, reason, how in (
        ("auth_65535", "quote_malformed", {"auth_size": 65535}),
        ("certification_type_1", "certification_type", {"chain_type": 1}),
        ("length_past_the_end", "quote_malformed", {"size": 2**32 - 1}),
    ):
        yield f"t24_tdx_{name}", "tdx", reason, tdx(intel, **how), policy


def other_cases() -> Iterator[Case]:
    """TPM: T41 to T44 and T48; and a GPU."""
    ak, values = m.key("attestation key", m.P256), {7: bytes(32)}

    def tpm(area: bytes = m.ecc_public(ak), **how: Any) -> list[bytes]:
        quote = m.attest(b"nonce", how.pop("values", values), **how)
        return [quote, m.ecc_signature(ak, quote), area]

    nonce = {"nonce": b"nonce".hex()}
    yield "good_tpm", "tpm", "accepted", tpm(), nonce
    yield "t41_tpm_pcr_23", "tpm", "pcr_selection", tpm(values={23: bytes(32)}), nonce
    yield "t42_tpm_magic", "tpm", "tpm_magic", tpm(magic=0xFF544348), nonce
    yield "t42_tpm_type", "tpm", "tpm_type", tpm(kind=0x8017), nonce
    loose = m.ecc_public(ak, 0x00040072)
    yield "t43_tpm_not_restricted", "tpm", "ak_not_restricted", tpm(loose), nonce
    yield "t44_tpm_log", "tpm", "log_not_replayed", [*tpm(), m.event_log()], nonce
    yield "t48_tpm_sha1", "tpm", "pcr_bank", tpm(bank=0x0004), nonce
    gpu = m.Nvidia()
    report = gpu.report(bytes(range(32)))
    right = {"nonce": bytes(range(32)).hex()}
    yield "good_nvidia", "nvidia", "accepted", [report, gpu.chain], right
    yield "nvidia_nonce", "nvidia", "nonce_mismatch", [report, gpu.chain], {"nonce": "00" * 32}
    flipped = report[:60] + struct.pack("B", report[60] ^ 1) + report[61:]
    yield "nvidia_changed", "nvidia", "evidence_signature", [flipped, gpu.chain], right


def documents() -> Iterator[tuple[str, str]]:
    """Each file's name and text."""
    roots = {
        "amd": [m.Amd(product).ark.der for product in ("Milan", "Genoa", "Turin")],
        "intel": [m.Intel().root.der],
        "nvidia": [m.Nvidia().root.der],
    }
    encoded = {
        vendor: [base64.b64encode(der).decode() for der in some] for vendor, some in roots.items()
    }
    yield "roots.json", json.dumps(encoded, indent=1) + "\n"
    for cases in (snp_cases(), tdx_cases(), other_cases()):
        for name, kind, expect, files, how in cases:
            document = {"expect": expect, "kind": kind, "now_unix": m.NOW} | how
            document["files"] = [base64.b64encode(data).decode() for data in files]
            yield f"{name}.json", json.dumps(document, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    differ, names = [], set()
    for name, text in documents():
        names.add(name)
        file = FOLDER / name
        if arguments != ["--check"]:
            file.write_text(text, "utf-8")
        elif not file.exists() or file.read_text("utf-8") != text:
            differ.append(name)
    differ += sorted({file.name for file in FOLDER.glob("*.json")} - names)
    if differ:
        print("differ from what the script makes:", ", ".join(differ))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
