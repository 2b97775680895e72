"""SEV-SNP and TDX attesters over an emulated kernel: verifiers accept what they vouch for."""

from __future__ import annotations

import errno
import struct
import uuid

import pytest

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust.closed import CLOSED_AT_START
from overspill.trust.measured import MeasuredLog
from overspill.trust.policy import default_policy, parse_policy
from overspill.trust.verifier import verify
from overspill.types.evidence import Assurance
from overspill_cloud.attester import open_attester
from overspill_cloud.attester.sev_snp import SevSnpAttester, read_table
from overspill_cloud.attester.tdx import COLLATERAL_FILES, TdxAttester
from overspill_cloud.attester.tsm import TsmReports
from overspill_cloud.client_policy import _policy_of
from overspill_cloud.testing import FakeRegister, FakeTsm

GUIDS = {
    "vcek": "63da758d-e664-4564-adc5-f4b93be8accd",
    "vlek": "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
    "ask": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "ark": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    "crl": "92f81bc3-5811-4d3d-97ff-d19f88dc67ea",
}


def table(entries: dict[str, bytes], order: str = "bytes") -> bytes:
    """As a host writes it: all entries, the empty one, then the certificates."""
    offset = 24 * (len(entries) + 1)
    head, body = b"", b""
    for name, data in entries.items():
        guid = getattr(uuid.UUID(GUIDS.get(name, name)), order)
        head += struct.pack("<16sII", guid, offset + len(body), len(data))
        body += data
    return head + bytes(24) + body


def snp_attester(amd, folder, certificates=None, **how) -> SevSnpAttester:
    if certificates is None:
        kind = "vlek" if amd.vlek else "vcek"
        certificates = {kind: amd.endorsement.der, "ask": amd.ask.der, "ark": amd.ark.der}
    files = FakeTsm(lambda data, level: (amd.report(data, vmpl=level, **how), table(certificates)))
    return SevSnpAttester(TsmReports(files), folder)


def write_collateral(intel, folder, **changes) -> None:
    folder.mkdir(exist_ok=True)
    made = intel.collateral(**changes)
    for name, file in COLLATERAL_FILES.items():
        (folder / file).write_bytes(made[name])
    (folder / "tcb_signing_chain.pem").write_bytes(made["tcb_signing_chain"])


def tdx_attester(intel, folder, register=None, padding=0) -> TdxAttester:
    register = register or FakeRegister()

    def quote(data: bytes, level: int) -> tuple[bytes, bytes]:
        rtmrs = (bytes(48), b"\1" * 48, b"\2" * 48, register.value)
        return intel.quote(data, rtmrs=rtmrs) + bytes(padding), b""

    files = FakeTsm(quote, provider="tdx_guest", floor=None, has_auxblob=False)
    write_collateral(intel, folder)
    return TdxAttester(TsmReports(files), folder, register)


@pytest.fixture
def policy(vendors, models):
    """``policy("sev-snp")``: for guests of the look-alikes."""
    floors = "".join(
        f"[sev-snp.min_tcb.{product}]\n"
        + "".join(f"{part} = {least}\n" for part, least in vendors.Amd(product).tcb.items())
        for product in ("Milan", "Turin")
    )
    measured = vendors.MEASUREMENT.hex()
    sections = {
        "sev-snp": f'products = ["Milan", "Turin"]\nmeasurements = ["{measured}"]\nvlek = true\n'
        + floors,
        "tdx": f'mrtd = ["{measured}"]\nrtmr1 = ["{"01" * 48}"]\nrtmr2 = ["{"02" * 48}"]\n',
    }

    def make(kind: str):
        named = ", ".join(f'{name} = "{digest.hex()}"' for name, digest in models.items())
        return parse_policy(
            f'version = 1\naccept = ["{kind}"]\nfreshness = "nonce"\nunreleased = true\n'
            f"[reference]\nmodels = {{ {named} }}\n[{kind}]\n{sections[kind]}"
        )

    return make


@pytest.fixture(params=["milan", "turin", "vlek", "tdx", "tdx-padded"])
def guest(request, vendors, tmp_path):
    """Each kind of guest, as a node on it would attest."""
    makers = {
        "milan": lambda: snp_attester(vendors.Amd(), tmp_path, version=2),
        "turin": lambda: snp_attester(vendors.Amd("Turin"), tmp_path, version=5),
        "vlek": lambda: snp_attester(vendors.Amd(vlek=True), tmp_path),
        "tdx": lambda: tdx_attester(vendors.Intel(), tmp_path),
        "tdx-padded": lambda: tdx_attester(vendors.Intel(), tmp_path, padding=4096),
    }
    attester = makers[request.param]()
    yield attester
    attester.close()


def test_what_a_guest_vouches_for_is_accepted(guest, look_alikes, policy, bundle_of, log, at):
    remote = at(address="node.example:443", is_local=False)
    result = verify(bundle_of(guest, log), remote, policy(guest.evidence_type))
    assert result.evidence_type == guest.evidence_type
    assert result.assurance is guest.assurance is Assurance.HARDWARE_TEE
    assert result.satisfies_attested


def test_each_challenge_gets_its_own_answer(guest, look_alikes, policy, bundle_of, log, at):
    for nonce in (bytes([1] * 32), bytes([2] * 32)):
        bundle = bundle_of(guest, log, nonce)
        verify(bundle, at(nonce=nonce), policy(guest.evidence_type))
        with pytest.raises(EvidenceRejected, match="report_data_mismatch"):
            verify(bundle, at(), policy(guest.evidence_type))


def test_an_emulated_guest_never_passes_for_a_real_one(guest, policy, bundle_of, log, at):
    """Under the vendors' roots, as every client has them."""
    for some in (policy(guest.evidence_type), default_policy()):
        with pytest.raises(EvidenceRejected):
            verify(bundle_of(guest, log), at(), some)


def test_a_guest_writes_the_policy_that_accepts_it(guest, look_alikes, bundle_of, log, at, models):
    text = _policy_of(guest, models)
    policy = parse_policy(text)
    assert policy.closed == frozenset(CLOSED_AT_START)
    open_door = parse_policy(text.replace("closed = [", "# closed = ["))
    if guest.evidence_type == "sev-snp" and "VLEK" in str(_key_kind(guest, bundle_of, log)):
        open_door = parse_policy(
            text.replace("closed = [", "# [").replace("[sev-snp]", "[sev-snp]\nvlek = true")
        )
    assert verify(bundle_of(guest, log), at(), open_door).satisfies_attested


def _key_kind(guest, bundle_of, log) -> str:
    return "VLEK" if "vlek" in bundle_of(guest, log).evidence[0].collateral else "VCEK"


# --- SEV-SNP ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["bytes", "bytes_le"])
def test_a_table_is_read_in_either_spelling_of_guids(order):
    made = table({"vcek": b"one", "ask": b"two", "crl": b"three"}, order)
    assert read_table(made) == {"vcek": b"one", "ask": b"two", "crl": b"three"}


def test_what_a_table_has_besides_is_left_out():
    made = table({str(uuid.UUID(int=5)): b"another", "ark": b"root", "vcek": b"key"})
    assert read_table(made) == {"vcek": b"key"}


@pytest.mark.parametrize("empty", [b"", bytes(24), bytes(4096)])
def test_a_host_may_hand_over_nothing(empty):
    assert read_table(empty) == {}


@pytest.mark.parametrize(
    "bad",
    [
        table({"vcek": b"key"})[:30],
        struct.pack("<16sII", uuid.UUID(GUIDS["vcek"]).bytes, 48, 1000) + bytes(24),
        struct.pack("<16sII", uuid.UUID(GUIDS["vcek"]).bytes, 2**32 - 1, 2**32 - 1) + bytes(24),
        struct.pack("<16sII", uuid.UUID(GUIDS["vcek"]).bytes, 0, 0) * 65,
    ],
    ids=["cut", "past the end", "huge", "endless"],
)
def test_a_table_that_does_not_hold_together_is_refused(bad):
    with pytest.raises(ConfigurationError, match="certificate table is malformed"):
        read_table(bad)


@pytest.mark.parametrize("form", ["der", "pem"])
def test_certificates_lie_in_a_folder_where_the_host_has_none(
    form, vendors, tmp_path, look_alikes, policy, bundle_of, log, at
):
    amd = vendors.Amd()
    attester = snp_attester(amd, tmp_path / "sev-snp", certificates={})
    with pytest.raises(ConfigurationError) as caught:
        bundle_of(attester, log)
    assert f"kdsintf.amd.com/vcek/v1/Milan/{vendors.CHIP.hex()}?blSPL=04" in caught.value.mend
    (tmp_path / "sev-snp").mkdir()
    (tmp_path / "sev-snp" / f"vcek.{form}").write_bytes(getattr(amd.endorsement, form))
    (tmp_path / "sev-snp" / f"ask.{form}").write_bytes(getattr(amd.ask, form))
    verify(bundle_of(attester, log), at(), policy("sev-snp"))


def test_a_file_that_is_no_certificate_is_named(vendors, tmp_path, bundle_of, log):
    (tmp_path / "notes.txt").write_text("-----BEGIN CERTIFICATE-----\nno\n")
    with pytest.raises(ConfigurationError, match=r"notes\.txt holds no certificate"):
        bundle_of(snp_attester(vendors.Amd(), tmp_path, certificates={}), log)


def test_a_report_that_clients_would_not_read_is_refused_here(vendors, tmp_path, bundle_of, log):
    with pytest.raises(ConfigurationError, match="report_version"):
        bundle_of(snp_attester(vendors.Amd(), tmp_path, version=99), log)


def test_a_report_over_other_data_is_refused_here(vendors, tmp_path, bundle_of, log):
    amd = vendors.Amd()
    files = FakeTsm(lambda data, level: (amd.report(b"other"), b""))
    with pytest.raises(ConfigurationError, match="over other data"):
        bundle_of(SevSnpAttester(TsmReports(files), tmp_path), log)


# --- TDX --------------------------------------------------------------------------------------


def test_the_log_is_extended_once_and_kept(vendors, tmp_path, bundle_of, log):
    register = FakeRegister()
    attester = tdx_attester(vendors.Intel(), tmp_path, register)
    for nonce in (None, bytes([1] * 32)):
        bundle_of(attester, log, nonce)
        assert register.value == MeasuredLog.decode(log).replay_rtmr()


def test_a_node_started_again_finds_its_own_measurements(vendors, tmp_path, bundle_of, log):
    register = FakeRegister()
    for _ in range(2):
        bundle_of(tdx_attester(vendors.Intel(), tmp_path, register), log)


def test_other_measurements_are_never_built_upon(vendors, tmp_path, bundle_of, log, other_log):
    register = FakeRegister()
    bundle_of(tdx_attester(vendors.Intel(), tmp_path, register), log)
    with pytest.raises(ConfigurationError, match="other measurements"):
        bundle_of(tdx_attester(vendors.Intel(), tmp_path, register), other_log)


def test_a_kernel_without_writable_registers_is_named(vendors, tmp_path, bundle_of, log):
    register = FakeRegister(broken=OSError(errno.ENOENT, "No such file or directory"))
    with pytest.raises(ConfigurationError) as caught:
        bundle_of(tdx_attester(vendors.Intel(), tmp_path, register), log)
    assert "6.16" in caught.value.mend


def test_intels_documents_are_read_anew_each_time(
    vendors, tmp_path, look_alikes, policy, bundle_of, log, at
):
    intel = vendors.Intel()
    attester = tdx_attester(intel, tmp_path)
    old = intel.tcb_info(issueDate=vendors.stamp(-40), nextUpdate=vendors.stamp(-10))
    write_collateral(intel, tmp_path, tcb_info=old)
    with pytest.raises(EvidenceRejected, match="tcb_info_expired"):
        verify(bundle_of(attester, log), at(), policy("tdx"))
    write_collateral(intel, tmp_path)
    verify(bundle_of(attester, log), at(), policy("tdx"))


@pytest.mark.parametrize("name", sorted(COLLATERAL_FILES.values()))
def test_a_missing_document_is_named(name, vendors, tmp_path, bundle_of, log):
    attester = tdx_attester(vendors.Intel(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigurationError, match=name):
        bundle_of(attester, log)


def test_what_follows_a_quote_is_no_padding(vendors, tmp_path, bundle_of, log):
    intel = vendors.Intel()
    write_collateral(intel, tmp_path)
    files = FakeTsm(
        lambda data, level: (intel.quote(data) + b"\0\1", b""), provider="tdx_guest", floor=None
    )
    with pytest.raises(ConfigurationError, match="follows the quote"):
        bundle_of(TdxAttester(TsmReports(files), tmp_path, FakeRegister()), log)


# --- opening ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sev-snp", "tdx"])
def test_a_machine_without_the_hardware_is_told_so(tmp_path, kind):
    with pytest.raises(ConfigurationError, match="no attestation reports"):
        open_attester(kind, tmp_path)


@pytest.mark.parametrize("wrong", [("tdx_guest", SevSnpAttester), ("sev_guest", TdxAttester)])
def test_one_vendors_machine_is_not_anothers(tmp_path, wrong):
    provider, attester = wrong
    files = FakeTsm(lambda data, level: (b"", b""), provider=provider)
    with pytest.raises(ConfigurationError, match="reports come from"):
        attester(TsmReports(files), tmp_path)
