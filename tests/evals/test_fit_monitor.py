"""The monitor's fit: what it certifies holds, and routing goes as the fit has counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overspill.cli.main import main
from overspill.errors import UsageError
from overspill.evals.fit_monitor import NEVER, MonitorOptions, fit_monitor, leave_after
from overspill.evals.metrics import Outcomes
from overspill.evals.monitor_data import Watched, load_watched
from overspill.routing.monitor import Monitor, Progress
from overspill.routing.monitor_policy import MonitorPolicy
from overspill.routing.policy import parse_policy
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Request, TokenSignal
from overspill.types.route import Route, RouteDecision, RouteReason, Verdict

Line = dict[str, Any]


def answer_line(key: int, right: bool, rng: np.random.Generator, *, telling: bool) -> Line:
    """A line of a log: a wrong answer's tokens are less sure, where signals tell anything."""
    count = int(rng.integers(2, 60))
    doubt = 2.0 if telling and not right else 0.1
    entropies = np.abs(rng.normal(doubt, 0.3, count + 1)).round(4)
    return {
        "id": str(key),
        "model": "tiny",
        "quantization": "Q8_0",
        "runtime": "llama.cpp",
        "model_sha256": "",
        "completion_tokens": count,
        "confidence": -float(entropies.mean()),
        "signals": {
            "token_ids": list(range(count + 1)),
            "logprobs": (-entropies / 2).round(4).tolist(),
            "margins": (4 - entropies).round(4).tolist(),
            "entropies": entropies.tolist(),
            "state": [round(float(v), 4) for v in rng.normal(doubt, 1.0, 3)],
        },
    }


@pytest.fixture
def watched_of(tmp_path: Path) -> Callable[..., Watched]:
    """``watched_of(count, seed, telling=...)``: half of the answers are wrong."""

    def make(count: int, seed: int, *, telling: bool = True) -> Watched:
        rng = np.random.default_rng(seed)
        right = rng.random(count) < 0.5
        lines = [answer_line(n, bool(r), rng, telling=telling) for n, r in enumerate(right)]
        path = tmp_path / f"log-{seed}-{telling}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        large = (rng.random(count) < 0.9).astype(float)
        outcomes = Outcomes(right.astype(float), large)
        return load_watched(path, [line["id"] for line in lines], outcomes)

    return make


OPTIONS = MonitorOptions(epsilon=0.1, delta=0.1)


def test_signals_that_tell_are_certified_and_waste_little(
    watched_of: Callable[..., Watched],
) -> None:
    found = fit_monitor(watched_of(300, 1), watched_of(400, 2), "big", OPTIONS)
    assert found.policy is not None
    report, fresh = found.report, watched_of(2000, 3)
    assert report["regret"] <= 0.1
    assert report["wasted_median"] <= 32
    assert report["gain_kept"] > 0.8
    assert (found.policy.model, found.policy.quantization) == ("tiny", "Q8_0")
    assert found.policy.certificate["auc_low"] >= 0.6
    assert set(found.policy.heads) == {"0", "1", "8", "32", "end"}
    again = fit_monitor(watched_of(300, 1), fresh, "big", OPTIONS).report
    assert again["gain_kept"] == pytest.approx(report["gain_kept"], abs=0.1)


def test_signals_that_tell_nothing_make_no_monitor(watched_of: Callable[..., Watched]) -> None:
    blind = [watched_of(n, seed, telling=False) for n, seed in ((300, 1), (300, 2))]
    found = fit_monitor(blind[0], blind[1], "big", OPTIONS)
    assert found.policy is None
    assert "tell right from wrong" in found.reason
    assert all(low < 0.6 for low, _, _ in found.report["auc"].values())


def test_the_scorers_word_counts_where_the_signals_say_little(
    watched_of: Callable[..., Watched],
) -> None:
    rng = np.random.default_rng(5)

    def with_lift(watched: Watched) -> Watched:
        wrong = 1.0 - watched.outcomes.small
        return watched.with_prompt_lift(wrong + rng.normal(0.0, 0.5, len(watched)))

    known, judged = (watched_of(300, seed, telling=False) for seed in (1, 2))
    assert fit_monitor(known, judged, "big", OPTIONS).policy is None
    found = fit_monitor(with_lift(known), with_lift(judged), "big", OPTIONS).policy
    assert found is not None
    to_device, to_cloud = found.heads["0"]["prompt_lift"]
    assert to_device < -0.2 < to_cloud


def test_what_cannot_be_certified_makes_no_monitor(watched_of: Callable[..., Watched]) -> None:
    strict = MonitorOptions(epsilon=0.001, delta=0.01)
    found = fit_monitor(watched_of(200, 1), watched_of(100, 2), "big", strict)
    assert (found.policy, found.reason) == (None, "no threshold can be certified")


def test_the_certificate_holds_on_other_prompts(watched_of: Callable[..., Watched]) -> None:
    known, whole = watched_of(200, 1), watched_of(3000, 2)
    rng, broken = np.random.default_rng(0), 0
    for _ in range(20):
        rows = rng.permutation(len(whole))
        judged, fresh = whole.take(rows[:300]), whole.take(rows[300:])
        found = fit_monitor(known, judged, "big", OPTIONS)
        if found.policy is None:
            continue
        left = simulated(found.policy, fresh)
        regret = np.maximum(fresh.outcomes.gain, 0)[left == NEVER].sum() / len(fresh)
        broken += regret > OPTIONS.epsilon
    assert broken <= 5  # 2 of 20 are allowed on average, and 5 by luck in 99 of 100 cases


def simulated(policy: MonitorPolicy, watched: Watched) -> np.ndarray:
    """When each answer leaves, by the policy's own weights."""
    gains = {}
    for check, head in policy.heads.items():
        pairs = np.array([head[name] for name in watched.names[check]])
        right = watched.values[check] @ pairs + np.array(head["bias"])
        gains[check] = right[:, 1] - right[:, 0]
    return leave_after(gains, watched.tokens, policy.threshold, policy.clear, policy.hold_tokens)


def test_routing_goes_as_the_fit_has_counted(watched_of: Callable[..., Watched]) -> None:
    found = fit_monitor(watched_of(300, 1), watched_of(300, 2), "big", OPTIONS).policy
    assert found is not None
    rng = np.random.default_rng(4)
    lines = [answer_line(n, bool(n % 2), rng, telling=True) for n in range(60)]
    assert [routed(found, line) for line in lines] == list(
        simulated(found, watched_from(lines)).tolist()
    )


def watched_from(lines: Sequence[Line]) -> Watched:
    """As the fit sees them."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        zeros = np.zeros(len(lines))
        return load_watched(path, [line["id"] for line in lines], Outcomes(zeros, zeros))


def routed(policy: MonitorPolicy, line: Line) -> int:
    """After how many tokens the monitor lets an answer leave, token by token."""
    told = line["signals"]
    columns = (told["token_ids"], told["logprobs"], told["margins"], told["entropies"])
    signals = [TokenSignal(*values) for values in zip(*columns, strict=True)]
    first = signals[0]
    signals[0] = TokenSignal(
        first.token_id, first.logprob, first.margin, first.entropy, tuple(told["state"])
    )
    cards = {
        Route.DEVICE: ModelCard("tiny", 1024, "llama.cpp", quantization="Q8_0"),
        Route.CLOUD: ModelCard("big", 1024, "llama.cpp"),
    }
    decision = RouteDecision(Route.DEVICE, RouteReason.EASY_ENOUGH, ())
    text = 'version = "1"\n'
    with_heads = parse_policy(text)
    object.__setattr__(with_heads, "monitor", policy)
    monitor = Monitor.of(
        Request((Message("user", "x"),)), decision, with_heads, cards, 0, may_leave=True
    )
    shown, before, count = False, -1, line["completion_tokens"]
    for now in range(count + 1):
        for check in monitor.due(before, now, ended=now == count):
            if not shown and now > monitor.hold_tokens:
                return NEVER
            progress = Progress(
                "fine", tuple(range(now)), tuple(signals[: now + 1]), is_whole=now == count
            )
            verdict = monitor.look(progress, check, shown=shown).verdict
            if verdict is Verdict.ESCALATE:
                return now
            shown = shown or verdict is Verdict.SHOW
        before = now
    return NEVER


def test_a_log_that_does_not_fit_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    line = answer_line(1, True, rng, telling=True)
    outcomes = Outcomes(np.zeros(1), np.zeros(1))
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(UsageError, match="no line for '2'"):
        load_watched(path, ["2"], outcomes)
    path.write_text(json.dumps(line | {"signals": {}}) + "\n")
    with pytest.raises(UsageError, match="without the device's signals"):
        load_watched(path, ["1"], outcomes)


def test_a_calibration_with_a_log_writes_the_monitor(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    rng = np.random.default_rng(7)
    data, log = tmp_path / "results.jsonl", tmp_path / "log.jsonl"
    named = [{**row, "id": str(n)} for n, row in enumerate(rows)]
    data.write_text("".join(json.dumps(row) + "\n" for row in named))
    lines = [answer_line(n, row["small"] == 1, rng, telling=True) for n, row in enumerate(rows)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    policy = tmp_path / "policy.toml"
    options = ["--epsilon", "0.1", "--delta", "0.1", "--key-file", str(tmp_path / "key")]
    names = ["--device-model", "tiny", "--cloud-model", "big", "--device-log", str(log)]
    assert main(["calibrate", "--data", str(data), *options, *names, "--out", str(policy)]) == 0
    parsed = parse_policy(policy.read_text(encoding="utf-8"))
    assert parsed.monitor is not None
    assert parsed.monitor.cloud == "big"
    assert parsed.monitor.is_certified_for(
        ModelCard("tiny", 1024, "llama.cpp", quantization="Q8_0")
    )
    assert not parsed.monitor.is_certified_for(
        ModelCard("tiny", 1024, "llama.cpp", quantization="Q4_0")
    )
    facts = json.loads(policy.with_suffix(".cert.json").read_text())
    assert facts["quantization"] == "Q8_0"
    assert facts["monitor"]["wasted_median"] <= 32
    assert main(["policy", "verify", str(policy)]) == 0
