"""The committed bundles, each named for its defect, and the script that made them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from overspill.config import child_environment
from overspill.trust.policy import default_policy, parse_policy
from overspill.trust.verifier import Context, appraise
from overspill.types.evidence import Evidence, EvidenceBundle

FOLDER = Path(__file__).resolve().parent / "vectors"
FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_vector_is_judged_as_it_says(file):
    raw = json.loads(file.read_text())
    bundle = EvidenceBundle(
        node_key_config=bytes.fromhex(raw["node_key_config"]),
        evidence=(Evidence(raw["evidence"]["type"], bytes.fromhex(raw["evidence"]["data"])),),
        measured_log=tuple(bytes.fromhex(entry) for entry in raw["measured_log"]),
    )
    context = Context(raw["now_unix"], raw["address"], raw["is_local"], bytes.fromhex(raw["nonce"]))
    policy = parse_policy(raw["policy"]) if raw["policy"] else default_policy()
    rejection = appraise(bundle, context, policy).rejection
    assert (rejection.reason if rejection else "accepted") == raw["expect"]


def test_there_are_vectors_of_both_kinds():
    expected = [json.loads(file.read_text())["expect"] for file in FILES]
    assert expected.count("accepted") == 2
    assert len(expected) > 15


def test_the_script_makes_exactly_these():
    environment = child_environment({"PYTHONPATH": ":".join(sys.path)})
    done = subprocess.run(
        [sys.executable, FOLDER / "make_vectors.py", "--check"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
