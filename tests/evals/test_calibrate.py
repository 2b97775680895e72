"""`overspill calibrate`: five files that belong together, or exit 4 and none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from overspill.cli.main import main
from overspill.config import load_settings
from overspill.errors import ConfigurationError
from overspill.opening import open_routing_policy
from overspill.policy_certificate import certificate_path, verify
from overspill.routing.complexity import Scorer
from overspill.routing.policy import RoutingPolicy, parse_policy

Row = dict[str, object]
SUFFIXES = (".toml", ".cert.json", ".scorer.json", ".png", ".html")


@pytest.fixture
def run(tmp_path: Path, results_csv: Callable[..., Path]) -> Callable[..., int]:
    """Calibrate on some rows into ``out/policy.*``."""

    def call(*options: str, rows: list[Row] | None = None) -> int:
        data = results_csv(rows) if rows else results_csv()
        levels = [] if "--epsilon" in options else ["--epsilon", "0.1", "--delta", "0.1"]
        files = ["--out", str(tmp_path / "out/policy.toml"), "--key-file", str(tmp_path / "key")]
        return main(["calibrate", "--data", str(data), *levels, *files, *options])

    return call


@pytest.fixture
def policy_file(tmp_path: Path, run: Callable[..., int]) -> Path:
    assert run() == 0
    return tmp_path / "out/policy.toml"


def test_the_certificate_has_the_contracts_fields(policy_file: Path) -> None:
    facts: dict[str, Any] = json.loads(policy_file.with_suffix(".cert.json").read_text())
    assert (facts["epsilon"], facts["delta"], facts["certified"]) == (0.1, 0.1, True)
    assert facts["policy_sha256"] == sha256(policy_file.read_bytes()).hexdigest()
    assert facts["n"] + facts["fitted_on"] == 240
    assert 0.3 < facts["device_share"] < 0.9
    assert facts["regret"] <= 0.1
    assert [s for s in SUFFIXES if policy_file.with_suffix(s).stat().st_size == 0] == []
    assert policy_file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_routing_reads_the_policy_and_knows_it_by_its_hash(policy_file: Path) -> None:
    policy = parse_policy(policy_file.read_text(encoding="utf-8"))
    facts = json.loads(policy_file.with_suffix(".cert.json").read_text())
    assert policy.threshold == facts["threshold"]
    assert policy.sha256 == facts["policy_sha256"]
    assert policy.certificate["epsilon"] == 0.1
    scorer = Scorer.from_json(policy_file.with_suffix(".scorer.json").read_text(encoding="utf-8"))
    assert policy.is_for(scorer.sha256)
    assert not policy.is_for("")
    assert replace(policy, version="x").sha256 != policy.sha256


def test_the_page_stands_alone_and_has_every_baseline(policy_file: Path) -> None:
    page = policy_file.with_suffix(".html").read_text(encoding="utf-8")
    orders = ("router", "random", "length", "domain_prior", "confidence", "oracle")
    for name in (*orders, "always_device", "always_cloud", "larger_device"):
        assert f"<td>{name}</td>" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page


@pytest.mark.parametrize("suffix", [".toml", ".scorer.json", ".cert.json"])
def test_a_change_to_any_part_is_found(policy_file: Path, suffix: str) -> None:
    assert verify(policy_file)["certified"]
    path = policy_file.with_suffix(suffix)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("0.1", "0.2", 1) if suffix != ".scorer.json" else text + " ")
    with pytest.raises(ConfigurationError):
        verify(policy_file)


def test_only_the_key_that_is_trusted_counts(policy_file: Path) -> None:
    with pytest.raises(ConfigurationError, match="another key"):
        verify(policy_file, b"another")


def test_what_cannot_be_certified_writes_nothing_and_exits_with_4(
    run: Callable[..., int], tmp_path: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = [{**row, "small_correct": 0} for row in rows]
    assert run(rows=hopeless) == 4
    assert "No threshold can be certified" in capsys.readouterr().err
    assert run("--epsilon", "0.001", "--delta", "0.1") == 4
    assert "At least 2667 prompts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [("--epsilon", "0", "--delta", "0.1"), ("--epsilon", "0.1", "--delta", "1")]
)
def test_levels_are_checked(run: Callable[..., int], options: tuple[str, ...]) -> None:
    assert run(*options) == 2


def test_models_that_are_alike_keep_all_on_the_device(
    run: Callable[..., int], tmp_path: Path, rows: list[Row]
) -> None:
    assert run(rows=[{**row, "small_correct": 1} for row in rows]) == 0
    facts = json.loads((tmp_path / "out/policy.cert.json").read_text())
    assert facts["device_share"] == 1.0


def test_new_prompts_drift_or_do_not(
    policy_file: Path, results_csv: Callable[..., Path], rows: list[Row]
) -> None:
    same = results_csv(rows, "same.csv")
    other = results_csv([row for row in rows if not row["small"]], "other.csv")
    assert main(["policy", "drift", str(policy_file), "--data", str(same)]) == 0
    assert main(["policy", "drift", str(policy_file), "--data", str(other)]) == 4


def test_the_verb_verifies(policy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "verify", str(policy_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["expired"] is False
    assert main(["policy", "verify", str(policy_file.with_name("none.toml"))]) == 2


def test_a_policy_expires() -> None:
    policy = RoutingPolicy(expires_unix=100)
    assert not policy.is_expired(99)
    assert policy.is_expired(100)
    assert not RoutingPolicy().is_expired(1 << 40)


def test_an_app_does_not_open_what_was_changed_since(policy_file: Path) -> None:
    settings = replace(load_settings(), routing_policy=policy_file)
    assert open_routing_policy(settings).certificate
    beside = certificate_path(policy_file)
    text, facts = policy_file.read_text(encoding="utf-8"), beside.read_text(encoding="utf-8")
    another = re.sub(r"(?m)^threshold = .*", "threshold = 1.0", text)
    digests = [sha256(one.encode()).hexdigest() for one in (text, another)]
    assert another != text
    for changed, told in (
        (another, facts),
        (text + "# mine\n", facts),
        (text, facts.replace('"n": ', '"n": 1')),
        (another, facts.replace(*digests)),
        (text, None),
    ):
        policy_file.write_text(changed, encoding="utf-8")
        if told is None:
            beside.unlink()
        else:
            beside.write_text(told, encoding="utf-8")
        with pytest.raises(ConfigurationError, match=r"certificate|signed") as error:
            open_routing_policy(settings)
        assert "calibrate" in error.value.mend


def test_the_app_opens_the_policy_with_its_scorer(policy_file: Path) -> None:
    settings = replace(load_settings(), routing_policy=policy_file, private_terms=())
    policy = open_routing_policy(settings)
    assert policy.scorer is not None
    assert policy.sha256 == sha256(policy_file.read_bytes()).hexdigest()
    beside = policy_file.with_suffix(".scorer.json")
    beside.write_text(beside.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="certified with"):
        open_routing_policy(settings)
