"""Real hardware's evidence, by others' tools: what is genuine is authentic, and how it reads."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from overspill.trust.certificates import read_pem
from overspill.trust.event_log import SHA384, parse_event_log
from overspill.trust.materials import Role, recognise
from overspill.trust.raw import RawContext, appraise_raw
from overspill.types.evidence import Assurance

GO_TDX = ["quote", "pckcrl", "rootcrl.der", "sample_qeIdentity_response", "sample_tcbInfo_response"]
GO_TDX[0] = "tdx_prod_quote_SPR_E4.dat"


@pytest.fixture
def judge_files(shared_data):
    """``judge_files("snp", "2025-01-01", names...)``: vectors, at noon of a day, no policy."""

    def run(kind, day, *names, nonce=None, policy=None):
        moment = int(datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp())
        files = [(shared_data / "vectors" / name).read_bytes() for name in names]
        return appraise_raw(kind, files, RawContext(moment, nonce), policy)

    return run


@pytest.mark.parametrize(
    ("names", "debug"),
    [
        (["sevsnp/gosev_milan_v2/attestation.bin", "sevsnp/gosev_milan_v2/vcek.der"], True),
        (["sevsnp/virtee/report_milan.hex", "sevsnp/virtee/vcek_milan.der"], False),
        (["az_snp_vtpm/hcl-report.bin", "az_snp_vtpm/vcek.pem"], False),
    ],
)
def test_real_snp_reports(judge_files, names, debug):
    """One of them has POLICY.DEBUG set: genuine, and worth nothing."""
    found = judge_files("snp", "2025-07-01", *names)
    assert found.verdict == "authentic", found.rejection
    assert found.claims["product"] == "Milan"
    assert found.claims["debug"] == str(debug).lower()
    assert found.assurance is (Assurance.NONE if debug else Assurance.HARDWARE_TEE)


def test_t5_real_debug_reports_are_refused_by_policy(judge_files, policy_of):
    names = ["sevsnp/gosev_milan_v2/attestation.bin", "sevsnp/gosev_milan_v2/vcek.der"]
    found = judge_files("snp", "2025-07-01", *names, policy=policy_of("sev-snp"))
    assert found.rejection.reason == "guest_debug"
    names = ["tdx/trustee/tdx_quote_4.dat"]
    found = judge_files("tdx", "2025-07-01", *names)
    assert (found.verdict, found.claims["debug"]) == ("authentic", "true")
    assert found.assurance is Assurance.NONE


@pytest.mark.parametrize(
    ("vcek", "reason"),
    [
        ("sevsnp/gosev_milan_v2/vcek.der", "chip_id_mismatch"),
        ("sevsnp/virtee/vcek_turin.der", "chip_id_mismatch"),
        ("sevsnp/virtee/cert_chain_milan", "vcek_missing"),
    ],
)
def test_a_real_report_with_the_key_of_another_chip(judge_files, vcek, reason):
    found = judge_files("snp", "2025-07-01", "sevsnp/virtee/report_milan.hex", vcek)
    assert found.rejection.reason == reason


def test_a_vcek_of_turin_chains_to_its_root(shared_data):
    from overspill.trust.certificates import parse_certificate
    from overspill.trust.chain import Anchors, build_path
    from overspill.trust.roots import vendor_roots
    from overspill.trust.snp import product_of

    vcek = parse_certificate((shared_data / "vectors/sevsnp/virtee/vcek_turin.der").read_bytes())
    roots = vendor_roots()
    path = build_path(vcek, Anchors(roots.amd, roots.intermediates), 1_780_000_000)
    assert [one.name for one in path] == ["SEV-VCEK", "SEV-Turin", "ARK-Turin"]
    assert product_of(vcek) == "Turin"
    assert vcek.serial == 0


@pytest.mark.parametrize("report", ["report_milan.hex"])
def test_an_expired_vcek(judge_files, report):
    found = judge_files(
        "snp", "2031-01-01", f"sevsnp/virtee/{report}", "sevsnp/virtee/vcek_milan.der"
    )
    assert found.rejection.reason == "certificate_expired"


def test_a_real_quote_with_all_its_collateral(judge_files):
    names = ["tdx/dcap_qvl/tdx_quote", "tdx/dcap_qvl/tdx_quote_collateral.json"]
    found = judge_files("tdx", "2025-06-25", *names)
    assert found.verdict == "authentic", found.rejection
    assert found.claims["tcb_status"] == "UpToDate"
    assert found.claims["fmspc"] == "b0c06f000000"
    assert [s.ok for s in found.steps if s.n in ("8.6", "8.7", "8.8")] == [True] * 3


@pytest.mark.parametrize(
    ("day", "reason"),
    [("2025-08-01", "crl_expired"), ("2025-06-18", "crl_expired"), ("2017-01-01", "not_yet_valid")],
)
def test_t21_real_collateral_at_another_time(judge_files, day, reason):
    names = ["tdx/dcap_qvl/tdx_quote", "tdx/dcap_qvl/tdx_quote_collateral.json"]
    assert reason in judge_files("tdx", day, *names).rejection.reason


def test_t20_a_real_outdated_platform(judge_files, policy_of):
    """Intel's list of June 2023 has no level that this platform reached."""
    names = [f"tdx/gotdx/{name}" for name in GO_TDX]
    found = judge_files("tdx", "2023-07-01", *names)
    assert found.verdict == "authentic", found.rejection
    assert found.claims["tcb_status"] == "Unsupported"
    found = judge_files("tdx", "2023-07-01", *names, policy=policy_of("tdx"))
    assert found.rejection.reason == "quote_trailing"  # a policy takes nothing that is unsigned


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("tdx/trustee/tdx_quote_5.dat", "5"),
        ("tdx/dcap_qvl/tdx-quote.hex", "4"),
        ("openpcc/azure_tdx_report.txt", "4"),
    ],
)
def test_real_quotes_without_collateral(judge_files, name, version):
    found = judge_files("tdx", "2025-11-01", name)
    assert found.verdict == "authentic", found.rejection
    assert found.claims["quote_version"] == version


def test_collateral_of_another_platform(judge_files):
    names = ["tdx_quote_5.dat", "tcbInfo.json", "enclaveIdentity.json"]
    found = judge_files("tdx", "2025-11-01", *[f"tdx/trustee/{name}" for name in names])
    assert found.rejection.reason == "fmspc_mismatch"


def test_a_real_gpu(judge_files, shared_data):
    names = ["nvidia/nvtrust/hopperAttestationReport.txt", "nvidia/nvtrust/hopperCertChain.txt"]
    claims = json.loads(
        (shared_data / "vectors/nvidia/nras_claims/overall_claims_remote.json").read_text()
    )
    nonce = bytes.fromhex(claims["eat_nonce"])
    found = judge_files("nvidia", "2025-07-01", *names, nonce=nonce)
    assert found.verdict == "authentic", found.rejection
    assert found.claims["driver_version"] == "550.90.07"
    assert found.claims["vbios_version"] == "96.00.9F.00.01"
    found = judge_files("nvidia", "2025-07-01", *names, nonce=bytes(32))
    assert found.rejection.reason == "nonce_mismatch"


@pytest.mark.parametrize("name", ["evidence-v0.json", "evidence-v1.json"])
def test_a_real_guests_vtpm(judge_files, name):
    found = judge_files("tpm", "2025-07-01", f"az_snp_vtpm/{name}", nonce=b"challenge")
    assert found.verdict == "authentic", found.rejection
    assert found.assurance is Assurance.HARDWARE_TEE


def test_a_real_quote_of_another_boot(judge_files):
    """The quote and the hardware report are not from the same boot."""
    names = ["tpm-quote.msg", "tpm-quote.sig", "hcl-report.bin", "vcek.pem"]
    found = judge_files("tpm", "2025-07-01", *[f"az_snp_vtpm/{name}" for name in names])
    assert found.rejection.reason == "evidence_signature"


def test_a_real_quote_of_a_bare_key(judge_files):
    found = judge_files("tpm", "2025-07-01", "tpm/trustee/tpm_evidence.json")
    assert found.verdict == "authentic", found.rejection
    assert found.assurance is Assurance.NONE


def test_t48_a_real_sha1_key_is_refused(judge_files):
    found = judge_files("tpm", "2025-07-01", "tpm/go_attestation/windows_gcp_shielded_vm.json")
    assert found.rejection.reason == "ak_algorithm"


def test_a_real_event_log(shared_data):
    data = (shared_data / "vectors/tpm/eventlogs/ubuntu-2404-amd-sevsnp.bin").read_bytes()
    log = parse_event_log(data)
    assert log.secure_boot is False
    assert sorted(log.replay()) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]
    assert set(map(len, log.replay(SHA384).values())) == {48}


def test_makers_certificates_are_read(shared_data):
    """One of them orders a SET as DER forbids, and is read all the same."""
    folder = shared_data / "vectors/tpm"
    files = [*folder.glob("vendor_ca/*.pem"), *folder.glob("gce_ek_ak/*.pem")]
    names = set()
    for file in files:
        for certificate in read_pem(file.read_bytes())[0]:
            assert certificate.public_key is not None
            names.add(certificate.issuer_name)
    assert "STM TPM ECC Root CA 01" in names
    assert "EK/AK CA Intermediate" in names


def test_roles_of_azures_reports(shared_data):
    text = (shared_data / "vectors/openpcc/azure_sevsnp_report.txt").read_bytes()
    assert list(recognise([text]).pieces) == [Role.HCL_REPORT]
    text = (shared_data / "vectors/openpcc/azure_tdx_report.txt").read_bytes()
    assert set(recognise([text]).pieces) == {Role.HCL_REPORT, Role.TDX_QUOTE}


def test_the_shipped_roots_are_the_vectors(shared_data):
    from overspill.trust.roots import vendor_roots

    roots = vendor_roots()
    shipped = {one.der for group in (roots.amd, roots.intel, roots.nvidia) for one in group}
    shipped |= {one.der for one in (*roots.nvidia_rim, *roots.intermediates)}
    names = (
        "sevsnp/virtee/cert_chain_milan",
        "sevsnp/virtee/cert_chain_turin",
        "tdx/roots/intel_sgx_root_ca.pem",
        "nvidia/nvtrust/hopperCertChain.txt",
    )
    for name in names:
        found, _ = read_pem((shared_data / "vectors" / name).read_bytes())
        assert [one.der in shipped for one in found if one.subject == one.issuer] == [True]
