"""The policy's sections for hardware evidence: strict, each mistake by its name."""

from __future__ import annotations

import pytest

from overspill.errors import ConfigurationError
from overspill.trust.ear import ear
from overspill.trust.policy import parse_policy
from overspill.trust.template_hardware import HARDWARE_TEMPLATES
from overspill.types.evidence import Assurance

DIGEST = "ab" * 48


def complaint(make) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.mend
    assert "\n" not in str(caught.value)
    return caught.value.message


SNP = f"""products = ["Milan"]
measurements = ["{DIGEST}"]
[sev-snp.min_tcb.Milan]
bootloader = 4
tee = 0
snp = 22
microcode = 213
"""


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('products = ["Milan"]', "", "products"),
        ('["Milan"]', "[]", "products"),
        ('["Milan"]', '["Rome"]', "Rome"),
        ('["Milan"]', '["Milan", "Genoa"]', "sev-snp.min_tcb"),
        (f'measurements = ["{DIGEST}"]', "", "measurements"),
        (f'["{DIGEST}"]', "[]", "measurements"),
        (f'["{DIGEST}"]', '["00"]', "measurements"),
        (f'["{DIGEST}"]', f'["{"g" * 96}"]', "measurements"),
        ("snp = 22\n", "", "snp"),
        ("snp = 22", "snp = 256", "snp"),
        ("snp = 22", "snp = -1", "snp"),
        ("snp = 22", "snp = true", "snp"),
        ("snp = 22", "snp = 22\nfmc = 1", "fmc"),
        ("min_tcb.Milan", "min_tcb.Genoa", "Genoa"),
        ("[sev-snp.min_tcb.Milan]", "vlek = 1\n[sev-snp.min_tcb.Milan]", "vlek"),
        ("[sev-snp.min_tcb.Milan]", "debug = true\n[sev-snp.min_tcb.Milan]", "debug"),
        ("[sev-snp.min_tcb.Milan]", "chips = []\n[sev-snp.min_tcb.Milan]", "chips"),
        ("[sev-snp.min_tcb.Milan]", "report_versions = []\n[sev-snp.min_tcb.Milan]", "report_v"),
        ("[sev-snp.min_tcb.Milan]", "report_versions = [1]\n[sev-snp.min_tcb.Milan]", "report_v"),
        ("[sev-snp.min_tcb.Milan]", "report_versions = 2\n[sev-snp.min_tcb.Milan]", "report_v"),
    ],
)
def test_mistakes_about_snp(policy_of, old, new, named):
    assert old in SNP
    policy_of("sev-snp", sev_snp=SNP)
    assert named in complaint(lambda: policy_of("sev-snp", sev_snp=SNP.replace(old, new, 1)))


def test_what_a_section_says(policy_of):
    more = f'chips = ["{"cd" * 64}"]\nvlek = true\ncrl_required = true\nreport_versions = [3, 5]\n'
    snp = policy_of("sev-snp", sev_snp=more + SNP).snp
    assert snp.chips == {bytes.fromhex("cd" * 64)}
    assert snp.vlek
    assert snp.crl_required
    assert snp.report_versions == {3, 5}
    assert snp.min_tcb["Milan"]["snp"] == 22


TDX = f'mrtd = ["{DIGEST}"]\nrtmr1 = ["{DIGEST}"]\nrtmr2 = ["{DIGEST}"]\n'


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (f'mrtd = ["{DIGEST}"]', "", "mrtd"),
        (f'rtmr1 = ["{DIGEST}"]', "rtmr1 = []", "rtmr1"),
        (f'rtmr2 = ["{DIGEST}"]', "", "rtmr2"),
        ("rtmr2", f'rtmr3 = ["{DIGEST}"]\nrtmr2', "rtmr3"),
        ("mrtd", 'statuses = ["Revoked"]\nmrtd', "Revoked"),
        ("mrtd", "statuses = []\nmrtd", "statuses"),
        ("mrtd", 'fmspcs = ["00"]\nmrtd', "fmspcs"),
        ("mrtd", "mr_seam = []\nmrtd", "mr_seam"),
    ],
)
def test_mistakes_about_tdx(policy_of, old, new, named):
    assert policy_of("tdx", tdx=TDX + f'rtmr0 = ["{DIGEST}"]').tdx.rtmrs.keys() == {0, 1, 2}
    assert named in complaint(lambda: policy_of("tdx", tdx=TDX.replace(old, new, 1)))


def test_mistakes_about_tpms(policy_of, makers):
    root = f'"""\n{makers.Authority("maker").pem.decode()}"""'
    leaf = f'"""\n{makers.Authority("ek", is_authority=False).pem.decode()}"""'
    broken = '"""-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----"""'
    good = f"ak_roots = [{root}]"
    assert policy_of("tpm", floor="HARDWARE_TPM", tpm=good).tpm.secure_boot
    for section, named in (
        ("", "ek_roots"),
        (f"ek_roots = [{root}]", "activation_keys"),
        (f'activation_keys = ["{"00" * 32}"]', "activation_keys"),
        (f"ak_roots = [{leaf}]", "authority"),
        (f"ak_roots = [{broken}]", "damaged"),
        ('ak_roots = ["no PEM"]', "authority"),
        ("ak_roots = []", "ak_roots"),
        (f"{good}\nsecure_boot = 1", "secure_boot"),
        (f"{good}\npcrs = {{ }}", "missing"),
        (f'{good}\npcrs = {{ 16 = ["{"00" * 32}"] }}', "16"),
        (f'{good}\npcrs = {{ 23 = ["{"00" * 32}"] }}', "23"),
        (f"{good}\npcrs = {{ 7 = [] }}", "7"),
    ):
        found = complaint(lambda s=section: policy_of("tpm", floor="HARDWARE_TPM", tpm=s))
        assert named in found, section
    vtpm = f'pcrs = {{ 7 = ["{"00" * 32}"] }}'
    assert policy_of("sev-snp-vtpm", sev_snp_vtpm=vtpm).vtpm.pcrs == {7: {bytes(32)}}


def test_mistakes_about_gpus(policy_of):
    for section in ("", 'drivers = ["1"]', 'drivers = []\nvbioses = ["1"]'):
        complaint(lambda s=section: policy_of("sev-snp", "nvidia-gpu", nvidia_gpu=s))


@pytest.mark.parametrize(
    ("types", "floor"),
    [(("sev-snp",), "HARDWARE_TPM"), (("sev-snp",), "SOFTWARE"), (("sev-snp", "tdx"), "NONE")],
)
def test_the_floor_is_what_the_types_stand_for(policy_of, types, floor):
    assert "min_assurance" in complaint(lambda: policy_of(*types, floor=floor))


@pytest.mark.parametrize("kind", sorted(HARDWARE_TEMPLATES))
def test_templates_do_not_load_before_they_are_filled_in(kind):
    text = HARDWARE_TEMPLATES[kind]
    assert "<" in text
    assert "holds" in complaint(lambda: parse_policy(text))


# --- attestation results ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "assurance", "debug", "policy", "status", "configuration"),
    [
        ("accepted", Assurance.HARDWARE_TEE, "false", "sha256:x", "affirming", 2),
        ("accepted", Assurance.HARDWARE_TPM, "false", "sha256:x", "affirming", 2),
        ("authentic", Assurance.HARDWARE_TEE, "false", None, "none", 0),
        ("authentic", Assurance.NONE, "true", None, "warning", 36),
    ],
)
def test_an_attestation_result_claims_what_was_checked(
    verdict, assurance, debug, policy, status, configuration
):
    found = ear(
        "snp", verdict=verdict, assurance=assurance, claims={"debug": debug}, steps=(),
        rejection=None, policy=policy, now_unix=1, version="0",
    )["submods"]["snp"]  # fmt: skip
    vector = found["ear.trustworthiness-vector"]
    assert found["ear.status"] == status
    assert vector["configuration"] == configuration
    assert vector["runtime-opaque"] == (2 if assurance is Assurance.HARDWARE_TEE else 0)
    assert ("ear.appraisal-policy-id" in found) == (policy is not None)
