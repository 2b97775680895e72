"""The committed evidence of look-alike vendors: judged as each file says, and for real never."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from overspill.config import child_environment
from overspill.trust.certificates import parse_certificate
from overspill.trust.policy import parse_policy
from overspill.trust.raw import RawContext, appraise_raw
from overspill.trust.roots import VendorRoots

FOLDER = Path(__file__).resolve().parent.parent / "vectors"
FILES = sorted(file for file in (FOLDER / "hardware").glob("*.json") if file.stem != "roots")


def judge(file: Path, roots: VendorRoots | None):
    raw = json.loads(file.read_text())
    policy = parse_policy(raw["policy"]) if "policy" in raw else None
    nonce = bytes.fromhex(raw["nonce"]) if "nonce" in raw else None
    files = [base64.b64decode(text) for text in raw["files"]]
    return raw, appraise_raw(raw["kind"], files, RawContext(raw["now_unix"], nonce), policy, roots)


@pytest.fixture(scope="module")
def committed_roots() -> VendorRoots:
    raw = json.loads((FOLDER / "hardware" / "roots.json").read_text())
    read = {
        vendor: tuple(parse_certificate(base64.b64decode(text)) for text in some)
        for vendor, some in raw.items()
    }
    return VendorRoots(**read, nvidia_rim=())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_vector_is_judged_as_it_says(file, committed_roots):
    raw, found = judge(file, committed_roots)
    assert (found.rejection.reason if found.rejection else "accepted") == raw["expect"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_production_verifier_accepts_none(file):
    """A quote by a bare TPM key is authentic at most, and stands for nothing."""
    _, found = judge(file, None)
    assert found.verdict != "accepted"
    assert found.assurance == 0


def test_each_case_has_a_vector():
    numbers = {int(file.stem[1:3]) for file in FILES if file.stem[0] == "t"}
    assert numbers == {5, *range(11, 25), 41, 42, 43, 44, 48}


def test_the_script_makes_exactly_these():
    environment = child_environment({"PYTHONPATH": ":".join(sys.path)})
    done = subprocess.run(
        [sys.executable, FOLDER / "make_hardware_vectors.py", "--check"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
