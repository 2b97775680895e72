"""`overspill trust verify|init|check|status`: what scripts rely on, and what people see."""

from __future__ import annotations

import json

import pytest

from overspill.cli.main import main
from overspill.trust.policy import load_policy
from overspill.trust.template_hardware import HARDWARE_TEMPLATES

MILAN = ("sevsnp/virtee/report_milan.hex", "sevsnp/virtee/vcek_milan.der")
AT = "2025-07-01T12:00:00Z"
KEYS = {
    "verdict", "code", "step", "expected", "actual", "mend", "steps", "claims", "assurance",
}  # fmt: skip


@pytest.fixture
def vector(shared_data):
    return lambda name: str(shared_data / "vectors" / name)


@pytest.fixture
def run_json(capsys):
    """``run_json(arguments)``: the exit code and the one document on standard output."""

    def run(*arguments: str):
        code = main([*arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def snp_policy(folder, **places):
    """The template with everything filled in."""
    text = HARDWARE_TEMPLATES["sev-snp"]
    filled = {
        "<SHA-256 of the model file, 64 hexadecimal digits>": "ab" * 32,
        "<launch measurement of the released image, 96 hexadecimal digits>": places["measurement"],
    }
    for place, value in filled.items():
        text = text.replace(place, value)
    for line in ("bootloader = 4", "snp = 22", "microcode = 213"):
        text = text.replace(line, line.split("=")[0] + f"= {places.get('floor', 0)}")
    file = folder / "trust.toml"
    file.write_text(text)
    return str(file)


def test_authentic_accepted_and_rejected(run_json, vector, tmp_path):
    report, vcek = map(vector, MILAN)
    code, found = run_json("trust", "verify", "snp", report, "--collateral", vcek, "--at", AT)
    assert code == 0
    assert set(found) == KEYS
    assert (found["verdict"], found["code"], found["assurance"]) == (
        "authentic", None, "HARDWARE_TEE",
    )  # fmt: skip
    assert {"n", "name", "ok", "detail"} == set(found["steps"][0])
    assert [step["n"] for step in found["steps"]][:3] == ["8.0", "8.1", "8.2"]
    policy = snp_policy(tmp_path, measurement=found["claims"]["measurement"])
    arguments = ("trust", "verify", "snp", report, vcek, "--at", AT, "--policy")
    code, found = run_json(*arguments, policy)
    assert (code, found["verdict"]) == (0, "accepted")
    policy = snp_policy(tmp_path, measurement=found["claims"]["measurement"], floor=200)
    code, found = run_json(*arguments, policy)
    assert (code, found["verdict"], found["code"]) == (6, "rejected", "tcb_below_floor")
    assert found["step"] == "8.8"
    assert [step["ok"] for step in found["steps"] if step["n"] == "8.9"] == [None]
    assert found["assurance"] == "NONE"


def test_the_table_for_people(capsys, vector):
    report, vcek = map(vector, MILAN)
    assert main(["trust", "verify", "snp", report, vcek, "--at", AT]) == 0
    shown = capsys.readouterr().out
    assert "SEV-VCEK <- SEV-Milan <- ARK-Milan" in shown
    assert "authentic; assurance HARDWARE_TEE" in shown
    assert main(["trust", "verify", "snp", report, "--at", AT]) == 6
    shown = capsys.readouterr().out
    assert "REFUSED" in shown
    assert "rejected: Evidence rejected at step 8.2 (vcek_missing)" in shown


def test_a_nonce(run_json, vector):
    report, vcek = map(vector, MILAN)
    code, found = run_json("trust", "verify", "snp", report, vcek, "--at", AT, "--nonce", "ab" * 32)
    assert (code, found["code"], found["step"]) == (6, "nonce_mismatch", "8.6")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sgx", "FILE"], "sgx"),
        (["snp", "absent.bin"], "absent.bin"),
        (["snp", "FILE", "--at", "yesterday"], "yesterday"),
        (["snp", "FILE", "--at", "2025-07-01T12:00:00"], "--at"),
        (["snp", "FILE", "--nonce", "xyz"], "xyz"),
        (["snp", "FILE", "--nonce", ""], "--nonce"),
        (["snp", "FILE", "--nonce", "00" * 65], "--nonce"),
        (["snp", "FILE", "--policy", "absent.toml"], "absent.toml"),
    ],
)
def test_wrong_use(run_json, tmp_path, arguments, named):
    (tmp_path / "x").write_bytes(b"x")
    arguments = [str(tmp_path / "x") if one == "FILE" else one for one in arguments]
    code, found = run_json("trust", "verify", *arguments)
    assert code == 2
    assert named in found["error"]["message"]
    assert found["error"]["mend"] or named in ("--nonce", "xyz")


def test_garbage_and_huge_files_get_a_verdict(run_json, tmp_path):
    for data in (b"", b"x", bytes(2 << 20)):
        (tmp_path / "x").write_bytes(data)
        for kind in ("snp", "tdx", "tpm", "nvidia"):
            code, found = run_json("trust", "verify", kind, str(tmp_path / "x"))
            assert (code, found["verdict"]) == (6, "rejected")


def test_an_attestation_result(capsys, vector):
    report, vcek = map(vector, MILAN)
    for files, status, hardware in (
        ([report, vcek], "none", 2),
        ([report, vector("sevsnp/gosev_milan_v2/vcek.der")], "contraindicated", 99),
    ):
        main(["trust", "verify", "snp", *files, "--at", AT, "--ear"])
        found = json.loads(capsys.readouterr().out)
        assert found["eat_profile"].startswith("tag:")
        submodule = found["submods"]["snp"]
        assert submodule["ear.status"] == status
        assert submodule["ear.trustworthiness-vector"]["hardware"] == hardware
        assert len(submodule["ear.trustworthiness-vector"]) == 8


def test_a_second_opinion_on_a_quote(run_json, vector):
    """Another verifier, by other people, agrees on the real quote; without all of it, it cannot."""
    pytest.importorskip("dcap_qvl", reason="the extra second-opinion is not installed")
    quote, collateral = (vector(f"tdx/dcap_qvl/{n}") for n in ("tdx_quote", _COLLATERAL))
    arguments = ("trust", "verify", "tdx", quote, "--at", "2025-06-25T12:00:00Z")
    code, found = run_json(*arguments, "--collateral", collateral, "--second-opinion")
    assert (code, found["verdict"]) == (0, "authentic")
    assert found["claims"]["second_opinion"] == "dcap-qvl: UpToDate"
    code, found = run_json(*arguments, "--second-opinion")
    assert (code, found["verdict"], found["assurance"]) == (6, "rejected", "NONE")
    assert run_json("trust", "verify", "snp", quote, "--second-opinion")[0] == 2
    code, found = run_json("trust", "verify", "tdx", vector(MILAN[0]), "--second-opinion")
    assert (code, found["verdict"]) == (6, "rejected")


_COLLATERAL = "tdx_quote_collateral.json"


# --- policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(HARDWARE_TEMPLATES))
def test_init_writes_a_policy_to_fill_in(run_json, capsys, tmp_path, kind):
    file = tmp_path / "trust.toml"
    assert main(["trust", "init", str(file), "--kind", kind]) == 0
    capsys.readouterr()
    code, found = run_json("trust", "check", str(file))
    assert code == 2  # the places are not filled in
    assert "trust.toml" in found["error"]["message"]
    assert main(["trust", "init", str(file), "--kind", kind]) == 2


def test_init_refuses_what_it_cannot_do(run_json, tmp_path):
    file = str(tmp_path / "trust.toml")
    assert run_json("trust", "init", file, "--kind", "sgx")[0] == 2
    assert run_json("trust", "init", file, "--kind", "tdx", "--key", "00" * 32)[0] == 2
    assert not (tmp_path / "trust.toml").exists()


def test_status(run_json, capsys, tmp_path):
    file = snp_policy(tmp_path, measurement="ab" * 48)
    assert load_policy(tmp_path / "trust.toml").snp is not None
    code, found = run_json("trust", "status", file)
    assert code == 0
    assert found["accept"] == ["sev-snp"]
    assert [one["name"] for one in found["anchors"]] == ["ARK-Milan"]
    assert found["warnings"] == []
    assert {"swap", "ptrace", "kexec"} < set(found["closed"])
    assert main(["trust", "status", file]) == 0
    assert "ARK-Milan" in capsys.readouterr().out
