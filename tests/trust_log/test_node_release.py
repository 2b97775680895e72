"""A node takes the release that it is, each time its keys are made; and clients demand it."""

from __future__ import annotations

import hashlib
import io
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from overspill.cli.demo_release import release_demo
from overspill.errors import ConfigurationError, EvidenceRejected, MissingExtra, OverspillError
from overspill.releasing import build
from overspill.trust.policy import parse_policy
from overspill.trust.release_envelope import Envelope
from overspill.trust.template import dev_policy
from overspill.trust.verifier import Context, verify
from overspill_cloud import events
from overspill_cloud.attester.dev import UnsafeDevAttester
from overspill_cloud.keys import KeyRing
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.measure import measure_node, node_settings
from overspill_cloud.models import ServedModel, measure
from overspill_cloud.release import ReleaseFile


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "river.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def release(tmp_path, model):
    folder = tmp_path / "release"
    folder.mkdir()
    return release_demo(folder, "river", model, "dev")


def measured(model: Path, attester: str = "dev"):
    served = ServedModel("river", None, measure(model))
    return measure_node([served], node_settings(attester, AdmissionLimits())), served


def test_a_node_that_is_what_was_released_is_accepted(release, model, tmp_path):
    measurements, _ = measured(model)
    attester = UnsafeDevAttester.from_file(tmp_path / "dev.key")
    log = events.EventLog(time.time, io.StringIO())
    file = ReleaseFile(release.file, measurements)
    keys = KeyRing(attester, measurements, [], time.time, log, file)
    assert keys.release_name == file.version
    text = dev_policy(attester.root, {"river": hashlib.sha256(b"weights").digest()}, release.demand)
    policy = parse_policy(text)
    context = Context(time.time(), "127.0.0.1:1", True)
    result = verify(keys.current().bundle, context, policy)
    assert result.release_id == Envelope.parse(release.file.read_bytes()).release_id
    unreleased = KeyRing(attester, measurements, [], time.time, log)
    assert unreleased.release_name == "unreleased"
    with pytest.raises(EvidenceRejected) as caught:
        verify(unreleased.current().bundle, context, policy)
    assert caught.value.reason == "freshness_unproven"


def test_each_renewal_takes_the_proof_that_is_there(release, model):
    measurements, _ = measured(model)
    file = ReleaseFile(release.file, measurements)
    proof = Path(str(release.file) + ".tlog-proof")
    before = file.read()
    lines = proof.read_bytes().splitlines(keepends=True)
    proof.write_bytes(b"".join(lines[:-1]))  # one witness fewer: another beacon
    assert file.read().anchor_sha256 != before.anchor_sha256
    proof.unlink()
    with pytest.raises(ConfigurationError, match="tlog-proof"):
        file.read()


@pytest.mark.parametrize("what", ["model", "settings"])
def test_a_node_that_is_something_else_does_not_start(release, model, what):
    if what == "model":
        model.write_bytes(b"other weights")
    measurements, _ = measured(model, "pinned" if what == "settings" else "dev")
    with pytest.raises(ConfigurationError, match="is not what"):
        ReleaseFile(release.file, measurements)


@pytest.mark.parametrize("damage", ["absent", "release", "proof", "checkpoint"])
def test_files_that_are_no_release_are_refused(release, model, damage):
    measurements, _ = measured(model)
    proof = Path(str(release.file) + ".tlog-proof")
    if damage == "absent":
        release.file.unlink()
    elif damage == "release":
        release.file.write_bytes(b"{}")
    elif damage == "proof":
        proof.write_bytes(b"nonsense")
    else:
        head, _, _ = proof.read_bytes().partition(b"\n\n")
        proof.write_bytes(head + b"\n\nnonsense")
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        ReleaseFile(release.file, measurements)
    assert "--release" in caught.value.mend


def test_a_model_folder_is_measured_as_a_tree(tmp_path):
    folder = tmp_path / "mlx"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    subjects = {f"{s.role}/{s.name}": s for s in build.measured_subjects({"m": folder}, "dev")}
    assert subjects["model/m"].measured == measure(folder).sha256


@pytest.mark.parametrize("points", [[], [EntryPoint("x", "absent_module:f", "overspill.measure")]])
def test_without_the_service_nothing_is_measured(monkeypatch, points):
    monkeypatch.setattr(build, "entry_points", lambda group: points)
    with pytest.raises(MissingExtra) as caught:
        build.measured_subjects({}, "dev")
    assert caught.value.extra == "cloud"


def test_a_demo_whose_witness_does_not_cosign_says_so(tmp_path, model, monkeypatch):
    from overspill.releasing.witness_store import WitnessStore

    monkeypatch.setattr(WitnessStore, "add_log", lambda self, key: None)
    with pytest.raises(OverspillError, match="did not cosign"):
        release_demo(tmp_path, "river", model, "dev")
