"""The attester of hardware TPMs, on a software TPM with a maker's certificate in its NV memory.

The code is that of hardware; what the tests bring is a maker of their own, and a firmware that
extends the registers as its log says.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from cryptography.x509.oid import NameOID

from overspill.errors import ConfigurationError, EvidenceRejected, UsageError
from overspill.trust.event_log import parse_event_log
from overspill.trust.policy import parse_policy
from overspill.trust.template_hardware import tpm_policy_text
from overspill.trust.tpm import EK_USAGE
from overspill.trust.verifier import verify
from overspill.types.evidence import Assurance

EK_INDEX = 0x01C0000A


def certificate(subject, public_key, issuer, signer, *, ca, usages=()):
    def name(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
    )
    if ca:
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, **usage), True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
    return builder.sign(signer, hashes.SHA256())


class Maker:
    """Makes TPMs: certifies their endorsement keys."""

    def __init__(self):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.root = certificate("a maker", self._key.public_key(), "a maker", self._key, ca=True)
        self.root_pem = self.root.public_bytes(Encoding.PEM).decode()

    def certify(self, ek_pem):
        public = load_pem_public_key(ek_pem)
        made = certificate("a TPM", public, "a maker", self._key, ca=False, usages=[EK_USAGE])
        return made.public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.fixture
def firmware_log(vendors):
    """What this firmware measured: itself, secure boot, and a boot loader's options."""
    return (
        vendors.spec_id()
        + vendors.event(0, 8, b"firmware 1")
        + vendors.event(7, 0x80000001, vendors.variable("SecureBoot", b"\1"))
        + vendors.event(7, 4, bytes(4))
        + vendors.event(14, 0xD, b"a boot loader's")
    )


@pytest.fixture
def machine(swtpm_state, maker, firmware_log):
    """A started machine: a TPM with its maker's certificate, and registers as the log says."""
    import tpm2_pytss as tss

    from overspill_cloud.attester.swtpm import SwtpmProcess
    from overspill_cloud.attester.tpm_device import Tpm

    process = SwtpmProcess(swtpm_state / "swtpm")
    tpm = Tpm(process.tcti)
    ek = tpm.endorsement_key()
    der = maker.certify(ek.public_pem)
    tpm.forget(ek)
    bits = tss.TPMA_NV
    public = tss.TPM2B_NV_PUBLIC(
        tss.TPMS_NV_PUBLIC(
            nvIndex=EK_INDEX, nameAlg=tss.TPM2_ALG.SHA256, dataSize=len(der),
            attributes=bits.OWNERWRITE | bits.OWNERREAD | bits.AUTHREAD | bits.NO_DA,
        )
    )  # fmt: skip
    index = tpm._esapi.nv_define_space(None, public)
    for at in range(0, len(der), 512):
        tpm._esapi.nv_write(index, der[at : at + 512], at, auth_handle=tss.ESYS_TR.OWNER)
    for event in parse_event_log(firmware_log).events:
        tpm.extend(event.pcr, event.digests[0x000B])
    yield tpm
    tpm.close()
    process.close()


@pytest.fixture
def activation():
    return Ed25519PrivateKey.generate()


def activate(tpm, folder, key, maker):
    """The four steps, each through JSON, as between two machines."""
    from overspill_cloud.attester import tpm_activation

    def sent(message):
        return json.loads(json.dumps(dict(message)))

    roots = [maker.root.public_bytes(Encoding.DER)]
    asked = sent(tpm_activation.request(tpm, folder))
    challenged = sent(tpm_activation.challenge(asked, key, roots, int(time.time())))
    answered = sent(tpm_activation.answer(tpm, folder, challenged))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "activation").write_bytes(tpm_activation.sign(answered, key))


@pytest.fixture
def open_attester(machine, tmp_path, activation, maker, firmware_log):
    from overspill_cloud.attester.hardware_tpm import HardwareTpmAttester

    folder = tmp_path / "tpm"
    activate(machine, folder, activation, maker)
    return lambda log=firmware_log: HardwareTpmAttester(machine, folder, lambda: log)


def policy_of(maker, activation, models):
    """Whether a machine is closed is tested elsewhere: these measured logs say nothing of it."""
    key = activation.public_key().public_bytes_raw()
    text = tpm_policy_text(maker.root_pem, [key], models)
    return parse_policy(text.replace("closed = [", "# closed = ["))


@pytest.fixture
def policy(maker, activation, models):
    return policy_of(maker, activation, models)


@pytest.fixture
def judge(bundle_of, at, policy):
    def check(attester, log, policy=policy):
        now = int(time.time())
        return verify(bundle_of(attester, log, now_unix=now), at(now_unix=now), policy)

    return check


def test_a_node_is_believed_by_its_makers_word_and_the_activation(open_attester, judge, log):
    attester = open_attester()
    result = judge(attester, log)
    assert result.assurance is Assurance.HARDWARE_TPM
    assert not result.dev
    assert result.claims["tpm"] == "made by a maker"
    # Again, and by an attester of a node that was started again: nothing is extended twice.
    assert judge(attester, log).claims == result.claims
    assert judge(open_attester(), log).claims == result.claims


def test_another_log_after_the_first_needs_a_restart(open_attester, judge, log, other_log):
    attester = open_attester()
    judge(attester, log)
    with pytest.raises(ConfigurationError, match=r"registers \[12, 13, 14\]"):
        judge(attester, other_log)


def test_a_register_that_somebody_else_extended_is_named(open_attester, machine, judge, log):
    attester = open_attester()
    machine.extend(13, bytes(32))
    with pytest.raises(ConfigurationError, match=r"\[13\]"):
        judge(attester, log)


def test_a_firmware_log_that_does_not_explain_the_registers_is_refused(
    open_attester, vendors, judge, log
):
    shorter = vendors.spec_id() + vendors.event(14, 0xD, b"a boot loader's")
    with pytest.raises(EvidenceRejected) as caught:
        judge(open_attester(shorter), log)
    assert caught.value.reason == "log_not_replayed"
    with pytest.raises(ConfigurationError, match="event log"):
        judge(open_attester(b"no log"), log)


def test_without_grounds_nothing_is_quoted(machine, tmp_path, firmware_log):
    from overspill_cloud.attester.hardware_tpm import HardwareTpmAttester

    with pytest.raises(ConfigurationError, match="overspill-cloud tpm request"):
        HardwareTpmAttester(machine, tmp_path / "tpm", lambda: firmware_log)


def test_another_makers_tpm_is_not_challenged(machine, tmp_path, activation):
    from overspill_cloud.attester import tpm_activation

    asked = tpm_activation.request(machine, tmp_path)
    roots = [Maker().root.public_bytes(Encoding.DER)]
    with pytest.raises(EvidenceRejected):
        tpm_activation.challenge(asked, activation, roots, int(time.time()))


def test_a_key_outside_the_tpm_gets_no_word(machine, tmp_path, activation, maker, vendors):
    """Whoever shows an attestation key of his own beside a real EK cannot open the credential."""
    from overspill_cloud.attester import tpm_activation

    asked = dict(tpm_activation.request(machine, tmp_path))
    foreign = vendors.ecc_public(ec.generate_private_key(ec.SECP256R1()))
    asked |= tpm_activation._message(ak_public=foreign)
    roots = [maker.root.public_bytes(Encoding.DER)]
    challenged = tpm_activation.challenge(asked, activation, roots, int(time.time()))
    with pytest.raises(ConfigurationError):
        tpm_activation.answer(machine, tmp_path, challenged)
    guess = {**tpm_activation._message(credential=bytes(32)), "kept": challenged["kept"]}
    with pytest.raises(EvidenceRejected) as caught:
        tpm_activation.sign(guess, activation)
    assert caught.value.reason == "ak_not_activated"
    with pytest.raises(UsageError, match="not to a challenge of this key"):
        tpm_activation.sign(guess, Ed25519PrivateKey.generate())


def test_an_activation_by_another_key_is_refused(open_attester, maker, models, judge, log):
    policy = policy_of(maker, Ed25519PrivateKey.generate(), models)
    with pytest.raises(EvidenceRejected) as caught:
        judge(open_attester(), log, policy)
    assert caught.value.reason == "ak_not_activated"


def test_the_verbs_lead_from_a_request_to_an_activation(
    machine, tmp_path, maker, monkeypatch, capsys
):
    """As an operator runs them, a file for each step."""
    from overspill.terminal import run_app
    from overspill_cloud import tpm_command
    from overspill_cloud.cli import app

    monkeypatch.setattr(tpm_command, "_tpm", lambda _tcti: machine)
    monkeypatch.setattr(machine, "close", lambda: None)
    roots = tmp_path / "maker.pem"
    roots.write_text(maker.root_pem)
    state, key = ["--state", str(tmp_path)], ["--key", str(tmp_path / "activation.key")]

    def run(verb, *arguments):
        assert run_app(app, "overspill-cloud", ["tpm", verb, *arguments]) == 0
        said = capsys.readouterr()
        (tmp_path / verb).write_text(said.out)
        return said.err

    run("request", *state)
    named = run("challenge", str(tmp_path / "request"), *key, "--root", str(roots))
    assert named.startswith('activation_keys = ["')
    run("answer", str(tmp_path / "challenge"), *state)
    (tmp_path / "tpm").mkdir()
    out = tmp_path / "tpm" / "activation"
    run("sign", str(tmp_path / "answer"), *key, "--out", str(out))
    assert len(out.read_bytes()) == 64
    (tmp_path / "torn").write_text('{"blob": 1}')
    assert run_app(app, "overspill-cloud", ["tpm", "answer", str(tmp_path / "torn"), *state]) == 2
    assert "'blob' is missing" in capsys.readouterr().err
