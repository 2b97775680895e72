"""`overspill trust verify` over others' real evidence: exit code, verdict and reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overspill.cli.main import main

KEYS = {
    "verdict", "code", "step", "expected", "actual", "mend", "steps", "claims", "assurance",
}  # fmt: skip

TEE, NONE = "HARDWARE_TEE", "NONE"
GO_TDX = (
    "tdx_prod_quote_SPR_E4.dat pckcrl rootcrl.der sample_qeIdentity_response "
    "sample_tcbInfo_response"
)
HOPPER = "hopperAttestationReport.txt hopperCertChain.txt"
AUTHENTIC = [
    # Genuine, and worth nothing: the guest's policy allows debugging.
    ("snp", "2025-06-25", "sevsnp/gosev_milan_v2", "attestation.bin vcek.der ask_ark.pem", NONE),
    ("snp", "2025-06-25", "sevsnp/virtee", "report_milan.hex vcek_milan.der", TEE),
    ("snp", "2025-06-25", "az_snp_vtpm", "hcl-report.bin vcek.pem", TEE),
    ("tdx", "2023-07-01", "tdx/gotdx", GO_TDX, TEE),
    ("tdx", "2025-06-25", "tdx/dcap_qvl", "tdx_quote tdx_quote_collateral.json", TEE),
    ("tdx", "2025-06-25", "tdx/dcap_qvl", "tdx-quote.hex", TEE),
    ("tdx", "2025-06-25", "tdx/trustee", "tdx_quote_4.dat", NONE),  # the debug attribute
    ("tdx", "2025-06-25", "tdx/trustee", "tdx_quote_5.dat", TEE),
    ("tdx", "2025-06-25", "openpcc", "azure_tdx_report.txt", TEE),
    # Self-consistent: the vTPM's key stands in the guest's report.
    ("tpm", "2025-06-25", "az_snp_vtpm", "evidence-v0.json", TEE),
    ("tpm", "2025-06-25", "az_snp_vtpm", "evidence-v1.json", TEE),
    ("tpm", "2025-06-25", "az_snp_vtpm", "tpm-quote-v1.json hcl-report.bin vcek.pem", TEE),
    ("tpm", "2025-06-25", "tpm/trustee", "tpm_evidence.json", NONE),  # nobody vouches for its key
    ("nvidia", "2025-06-25", "nvidia/nvtrust", HOPPER, TEE),
]  # fmt: skip
REJECTED = [
    ("snp", "sevsnp/virtee", "report_milan.hex vcek_turin.der cert_chain_turin",
     "chip_id_mismatch"),
    ("snp", "openpcc", "azure_sevsnp_report.txt", "vcek_missing"),
    ("tdx", "tdx/gotdx", "report.dat", "quote_version"),
    ("tdx", "tdx/trustee", "tdx_quote_5.dat tcbInfo.json enclaveIdentity.json",
     "tcb_info_not_yet_valid"),
    # The quote is of another boot than the report: a cross-wiring negative.
    ("tpm", "az_snp_vtpm", "tpm-quote.msg tpm-quote.sig hcl-report.bin vcek.pem",
     "evidence_signature"),
    ("tpm", "az_snp_vtpm", "tpm-quote.msg tpm-quote.sig", "ak_missing"),
    ("tpm", "az_snp_vtpm", "quote.bin", "tpm_magic"),
    ("tpm", "tpm/dstack", "tpm_quote_sample.bin", "evidence_missing"),
    ("tpm", "tpm/go_tpm_tools", "gce-cos-85-nonce9009.pb", "tpm_magic"),
    ("tpm", "tpm/go_attestation", "windows_gcp_shielded_vm.json", "ak_algorithm"),
    ("tpm", "tpm/eventlogs", "ubuntu-2404-amd-sevsnp.bin", "evidence_missing"),
    ("tpm", "tpm/keylime", "akpub.pem ekpub.pem", "evidence_missing"),
    ("nvidia", "nvidia/nvtrust", "hopperAttestationReport.txt", "device_certificate_missing"),
    ("nvidia", "nvidia/nvtrust", f"{HOPPER} Driver_RIM_test_no_gpu.swidtag", "rim_version"),
    ("nvidia", "nvidia/nvtrust", f"{HOPPER} VBIOS_RIM_test_no_gpu.swidtag", "certificate_expired"),
]  # fmt: skip
NOT_EVIDENCE = {
    "README.md", "detached_claims_remote.json", "overall_claims_remote.json",
    "iak_idevid_chain.pem", "verifier_device_root.pem", "verifier_RIM_root.pem",
    "azure_ak_certificates.txt",
    "cert_chain_milan",
}  # fmt: skip


@pytest.fixture
def judge(shared_data, capsys):
    """``judge(kind, day, folder, names)``: exit code and document at noon of that day."""

    def run(kind: str, day: str, folder: str, names: str):
        files = [str(shared_data / "vectors" / folder / name) for name in names.split()]
        code = main(["trust", "verify", kind, *files, "--at", f"{day}T12:00:00Z", "--json"])
        document = json.loads(capsys.readouterr().out)
        assert set(document) == KEYS
        return code, document

    return run


@pytest.mark.parametrize(("kind", "day", "folder", "names", "assurance"), AUTHENTIC)
def test_genuine_evidence_exits_0(judge, kind, day, folder, names, assurance):
    code, found = judge(kind, day, folder, names)
    assert (code, found["verdict"], found["assurance"]) == (0, "authentic", assurance), found
    assert found["code"] is found["step"] is found["expected"] is None
    marks = [step["ok"] for step in found["steps"]]
    assert False not in marks
    assert None in marks  # the policy's steps, which were not run
    assert found["claims"]


@pytest.mark.parametrize(("kind", "folder", "names", "reason"), REJECTED)
def test_other_evidence_exits_6_at_its_step(judge, kind, folder, names, reason):
    code, found = judge(kind, "2025-06-25", folder, names)
    assert (code, found["verdict"], found["code"]) == (6, "rejected", reason)
    assert (found["assurance"], found["claims"]) == ("NONE", {})
    assert found["expected"]
    assert found["actual"]
    ordered = [step["ok"] for step in found["steps"]]
    assert ordered.count(False) <= 1
    if False in ordered:  # in order: what follows the failed step was not run
        failed = ordered.index(False)
        assert found["steps"][failed]["n"] == found["step"]
        assert set(ordered[failed + 1 :]) <= {None}


def test_every_file_of_evidence_is_judged(shared_data):
    named = {f"{row[-3]}/{name}" for row in AUTHENTIC for name in row[-2].split()}
    named |= {f"{row[1]}/{name}" for row in REJECTED for name in row[2].split()}
    folder = shared_data / "vectors"
    kinds = ("sevsnp", "az_snp_vtpm", "openpcc", "tdx", "tpm", "nvidia")
    there = {
        path.relative_to(folder).as_posix()
        for kind in kinds
        for path in (folder / kind).rglob("*")
        if path.is_file() and path.name not in NOT_EVIDENCE
    }
    stores = ("sevsnp/roots/", "tdx/roots/", "tpm/vendor_ca/", "tpm/gce_ek_ak/")
    assert {name for name in there - named if not name.startswith(stores)} == set()
    assert all(Path(folder / name).is_file() for name in named)
