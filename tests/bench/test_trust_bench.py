"""`overspill bench trust`: its figures' names and shape, what it measures, and a checkout less."""

from __future__ import annotations

import json

import pytest

from overspill.bench.trust import KINDS, entries
from overspill.bench.trust_evidence import kinds, load_makers
from overspill.bench.trust_node import NOW, ReleasedNode
from overspill.cli.main import main
from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust.verifier import Context, verify
from overspill.types.evidence import Assurance

NAMES = [
    *(f"trust.verify.{kind}_{what}" for kind in KINDS for what in ("ms", "vs_bare")),
    "trust.first_contact_ms",
    "trust.request_ms",
    "trust.request_vs_bare",
    "trust.frame_us",
    "trust.frame_both_us",
    "trust.frame_vs_bare",
    "trust.bundle_kib",
]
ASKED = {"trust.first_contact_ms": 15, "trust.request_ms": 1, "trust.frame_us": 10,
         "trust.bundle_kib": 32}  # fmt: skip


@pytest.fixture(scope="module")
def makers_file(repository_root):
    return repository_root / "tests/trust/hardware/makers/__init__.py"


@pytest.fixture(scope="module")
def repository_root(request):
    return request.getfixturevalue("repository")


def figures(tmp_path, *options) -> dict[str, dict]:
    file = tmp_path / "trust.json"
    assert main(["bench", "trust", "--quick", "--json", str(file), *options]) == 0
    return {figure["name"]: figure for figure in json.loads(file.read_text())["figures"]}


def test_every_figure_is_there_with_its_value(tmp_path, makers_file, capsys):
    found = figures(tmp_path, "--makers", str(makers_file))
    assert list(found) == NAMES
    assert {name: found[name]["asked"] for name in ASKED} == ASKED
    for name, figure in found.items():
        assert figure["value"] > 0, name
        assert (figure["ok"] is None) == (name not in ASKED)
    assert found["trust.bundle_kib"]["ok"]  # a size: the same on every machine


def test_without_a_checkout_figures_are_null_with_the_reason(tmp_path, capsys):
    found = figures(
        tmp_path, "--makers", str(tmp_path / "nowhere.py"), "--only", "verify.snp,frame"
    )
    assert found["trust.verify.snp_ms"]["value"] is None
    assert "nowhere.py" in found["trust.verify.snp_ms"]["reason"]
    assert found["trust.verify.tdx_ms"]["reason"] == "not chosen for this run"
    assert found["trust.frame_us"]["value"] > 0


def test_what_is_measured_is_what_is_meant(makers_file):
    """Each kind verifies, its bare signatures too; and neither does once a byte has changed."""
    makers = load_makers(makers_file)
    for kind, make in kinds(makers).items():
        made = make()
        assert made.check(), kind
        made.bare()
    with pytest.raises(ConfigurationError, match="look-alike"):
        load_makers(makers_file.with_name("nothing.py"))


def test_the_node_is_released_logged_and_witnessed():
    node = ReleasedNode()
    context = Context(NOW, "node.example:443", False)
    result = verify(node.bundle, context, node.policy)
    assert result.assurance is Assurance.SOFTWARE
    assert result.claims["release_seq"] == "7"
    assert result.remember.size == 1001
    with pytest.raises(EvidenceRejected):
        verify(node.bundle, context, ReleasedNode().policy)


def test_entries_have_names_of_their_own(makers_file):
    names = [entry.name for entry in entries(makers_file)]
    assert len(set(names)) == len(names) == 8
