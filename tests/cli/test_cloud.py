"""`overspill cloud`, `receipts` and `run` against a node that is a process of its own."""

import hashlib
import json
import signal
import subprocess
import sys

import pytest

from overspill.cli.node_process import enrolment_code, running_node
from overspill.trust.template import dev_policy

NODE = [sys.executable, "-m", "overspill_cloud"]


@pytest.fixture
def node(tmp_path, brook_file):
    state = tmp_path / "node"
    state.mkdir()
    with running_node("river", brook_file, state) as running:
        yield running


@pytest.fixture
def policy(tmp_path, node):
    file = tmp_path / "trust.toml"
    root, digest = bytes.fromhex(node.started["dev_root"]), bytes.fromhex(node.model_sha256)
    file.write_text(dev_policy(root, {"river": digest}))
    return file


def test_verify_shows_every_step_and_refuses_under_the_default_policy(overspill, node, policy):
    refused = overspill("cloud", "verify", node.listen)
    assert refused.code == 6
    assert "REFUSED" in refused.out
    assert "not run" in refused.out
    as_json = overspill("cloud", "verify", node.listen, "--json").json
    assert (as_json["verdict"], as_json["code"]) == ("rejected", "dev_evidence")
    accepted = overspill("cloud", "verify", node.listen, "--trust-policy", str(policy), "--json")
    assert accepted.code == 0
    assert accepted.json["assurance"] == "NONE"
    assert all(step["ok"] for step in accepted.json["steps"])
    result = overspill("cloud", "verify", node.listen, "--trust-policy", str(policy), "--ear").json
    (submodule,) = result["submods"].values()
    assert submodule["ear.status"] == "affirming"
    assert submodule["ear.trustworthiness-vector"]["hardware"] == 0  # a development key


def test_enrol_ask_and_check_the_receipt(overspill, node, policy):
    cloud = ("--cloud", node.listen, "--trust-policy", str(policy))
    code = enrolment_code(node.state)
    assert overspill("cloud", "enroll", code, *cloud).code == 0
    again = overspill("cloud", "enroll", code, *cloud)
    assert again.code == 6  # a code is good once
    answer = overspill("run", "12 + 30 = ?", *cloud, "--privacy", "any", "--answer-by", "river")
    assert answer.code == 0
    assert answer.err.startswith("[cloud: river")
    (receipt,) = overspill("receipts", "list", "--json").json
    assert (receipt["node"], receipt["model"]) == (node.listen, "river")
    shown = overspill("receipts", "show", receipt["id"][:8]).out
    for word in (node.listen, "river", node.model_sha256, "dev-ed25519", receipt["nkc_sha256"]):
        assert word in shown
    verified = overspill("receipts", "verify", receipt["id"][:8])
    assert verified.code == 0
    assert "river" in verified.out
    again = ("receipts", "verify", receipt["id"], "--trust-policy", str(policy))
    assert overspill(*again, "--json").json["evidence_verified"] is True
    assert "REFUSED" not in overspill(*again).out
    policy.write_text(policy.read_text().replace(node.model_sha256, "00" * 32))
    refused = overspill(*again)
    assert refused.code == 6
    assert "model_digest" in refused.out


def test_another_model_than_the_policy_names_is_refused(overspill, node, policy):
    policy.write_text(policy.read_text().replace(node.model_sha256, "00" * 32))
    result = overspill("cloud", "verify", node.listen, "--trust-policy", str(policy), "--json")
    assert result.code == 6
    assert result.json["step"] == "6"


def test_a_node_killed_in_mid_stream_leaves_its_text_marked_unconfirmed(overspill, tmp_path, home):
    state = tmp_path / "node"
    serve = ["serve", "--model", "river=echo", "--echo-delay-s", "0.05", "--state", str(state)]
    with subprocess.Popen(
        [*NODE, *serve, "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, text=True
    ) as node:
        said = json.loads(node.stdout.readline())
        policy = tmp_path / "trust.toml"
        nothing = hashlib.sha256().digest()  # echo has no file
        policy.write_text(dev_policy(bytes.fromhex(said["dev_root"]), {"river": nothing}))
        cloud = ["--cloud", said["listen"], "--trust-policy", str(policy)]
        assert overspill("cloud", "enroll", enrolment_code(state), *cloud).code == 0
        asked = [sys.executable, "-m", "overspill.cli.main", "run", "word " * 100, *cloud]
        with subprocess.Popen(
            [*asked, "--privacy", "any", "--answer-by", "river"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as client:
            first = client.stdout.read(10)
            node.send_signal(signal.SIGKILL)
            _, errors = client.communicate(timeout=60)
    assert first.startswith("echo: word")
    assert client.returncode == 6
    assert "(The text above is unconfirmed: the answer broke off.)" in errors
    assert "Traceback" not in errors
