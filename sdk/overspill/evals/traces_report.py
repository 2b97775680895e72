"""What a replay comes to: the policy beside static rules, the upgrade path, and chains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from overspill.evals.traces import (
    CALM,
    Trace,
    TraceOptions,
    Truth,
    make_trace,
    requests_of,
    trace_cards,
)
from overspill.evals.traces_replay import ChainResult, Replay, Replayed, Result
from overspill.evals.traces_rules import ByPolicy, Cards, Rule, Static, gains_of, truth_of
from overspill.evals.traces_world import with_feasible_deadlines
from overspill.routing.cost import Prices
from overspill.routing.policy import RoutingPolicy
from overspill.types.card import ModelCard
from overspill.types.route import Route

SLOWED = (1, 2, 4, 8, 16)
HEDGE_SHARE = 0.05
EQUAL_QUALITY = 0.005
"""Answers' quality that counts as equal."""
_LENGTHS = (30, 60, 120, 240, 480)
_GAINS = (0.0, 0.1, 0.2, 0.3, 0.4)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """``seeds`` traces are made, with consecutive seeds from ``options.seed`` on."""

    options: TraceOptions = field(default_factory=TraceOptions)
    seeds: int = 5


def report(asked: ReportOptions) -> dict[str, Any]:
    """Everything that ``overspill eval traces`` writes."""
    cards = trace_cards()
    seeds = range(asked.options.seed, asked.options.seed + asked.seeds)
    traces = [judged_trace(replace(asked.options, seed=seed), cards) for seed in seeds]
    found: dict[str, list[Replayed]] = {}
    for trace in traces:
        for rule in _rules(trace, cards):
            found.setdefault(rule.name, []).append(Replay(trace, rule, cards).run())
    rules = {name: _sums(replayed) for name, replayed in found.items()}
    upgrade = _upgrade(asked.options, cards)
    new_model = _new_model(asked.options, cards)
    return {
        "seeds": list(seeds),
        "jobs": sum(len(trace.jobs) for trace in traces),
        "chains": sum(len(trace.chains) for trace in traces),
        "rules": rules,
        "best_static": best_static(rules),
        "upgrade": upgrade,
        "new_model": new_model,
        "figures": figures(rules, upgrade, new_model),
    }


def best_static(rules: Mapping[str, Mapping[str, float]]) -> str | None:
    """The static rule with the fewest misses among those that answer as well as the policy."""
    enough = rules["policy"]["quality"] - EQUAL_QUALITY
    static = [n for n in rules if not n.startswith("policy") and rules[n]["quality"] >= enough]
    return min(static, key=lambda name: rules[name]["missed"], default=None)


def figures(
    rules: Mapping[str, Mapping[str, float]],
    upgrade: Sequence[Mapping[str, float]],
    new_model: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The figures that were asked for, and what stands beside them."""
    policy, name = rules["policy"], best_static(rules)
    rival = rules[name] if name else None
    shares = [row["cloud_share"] for row in upgrade]
    falls = max(0.0, *(a["quality"] - b["quality"] for a, b in pairwise(upgrade)))
    grows = min(b - a for a, b in pairwise(shares))
    misses = max(row["missed"] for row in upgrade)
    return [
        _figure("traces.missed.policy", policy["missed"], "share"),
        _figure("traces.missed.best_static", rival["missed"] if rival else None, "share"),
        _figure(
            "traces.missed.ratio",
            policy["missed"] / rival["missed"] if rival and rival["missed"] else None,
            "ratio",
            at_most=0.5,
        ),
        _figure("traces.right_in_time.policy", policy["right_in_time"], "share"),
        _figure(
            "traces.right_in_time.best_static", rival["right_in_time"] if rival else None, "share"
        ),
        _figure("traces.chain.ends_within_1_05", policy["chains_in_time"], "share", at_least=0.99),
        _figure("traces.chain.completed", policy["chains_completed"], "share"),
        _figure("traces.upgrade.least_growth", grows, "share", at_least=0.0),
        _figure("traces.upgrade.largest_fall", falls, "quality", at_most=0.005),
        _figure("traces.upgrade.most_missed", misses, "share", at_most=0.01),
        _figure(
            "traces.new_model.gain",
            new_model["after"] - new_model["without"],
            "quality",
            at_least=0.0,
        ),
    ]


def _figure(
    name: str,
    value: float | None,
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    asked = at_most if at_most is not None else at_least
    ok = None
    if value is not None and asked is not None:
        ok = value <= asked if at_most is not None else value >= asked
    figure: dict[str, Any] = {"name": name, "value": value, "unit": unit, "asked": asked, "ok": ok}
    if asked is not None:
        figure["bound"] = "at_most" if at_most is not None else "at_least"
    if value is None:
        figure["reason"] = "no static rule answers as well, or none misses"
    return figure


def judged_trace(options: TraceOptions, cards: Cards) -> Trace:
    """A trace whose truth is drawn around the scorer, with deadlines that one route can meet."""
    truth: list[Truth] = truth_of([request for request, _ in requests_of(options)], cards)
    return with_feasible_deadlines(make_trace(options, truth))


def _rules(trace: Trace, cards: Cards) -> list[Rule]:
    gains = gains_of(trace.jobs + tuple(job for chain in trace.chains for job in chain), cards)
    return [
        ByPolicy(),
        ByPolicy("policy.hedge", RoutingPolicy(prices=Prices(hedge_share=HEDGE_SHARE))),
        ByPolicy("policy.threshold.0", RoutingPolicy(threshold=0.0)),
        Static("device"),
        Static("cloud", max_tokens=-1.0),
        *(Static(f"length.{limit}", max_tokens=float(limit)) for limit in _LENGTHS),
        *(Static(f"gain.{gain:g}", gains, max_gain=gain) for gain in _GAINS),
    ]


def _sums(replayed: Sequence[Replayed]) -> dict[str, float]:
    results = [one for each in replayed for one in each.results]
    chains = [one for each in replayed for one in each.chains]
    of_results: dict[str, Callable[[Result], float]] = {
        "quality": lambda one: one.right,
        "missed": lambda one: one.late,
        "right_in_time": lambda one: one.right and not one.late,
        "cloud_share": lambda one: one.route is Route.CLOUD,
        "cost_per_1000": lambda one: 1000 * one.cost,
        "joules": lambda one: one.joules,
        "hedged": lambda one: one.hedged,
    }
    of_chains: dict[str, Callable[[ChainResult], float]] = {
        "chains_in_time": lambda one: one.seconds <= 1.05 * 8.0,
        "chains_completed": lambda one: one.completed,
        "chain_calls_right": lambda one: one.right,
    }
    return {
        **{name: _mean(map(value, results)) for name, value in of_results.items()},
        **{name: _mean(map(value, chains)) for name, value in of_chains.items()},
    }


def _mean(values: Iterable[float]) -> float:
    """0 of none."""
    listed = list(values)
    return sum(listed) / max(1, len(listed))


def _upgrade(options: TraceOptions, cards: Cards) -> list[dict[str, float]]:
    """The same requests on ever slower devices, in a world that changes nothing else."""
    trace = judged_trace(replace(options, world=CALM, chains=0), cards)
    rows = []
    for slow in SLOWED:
        replayed = Replay(trace, ByPolicy(), cards, slow=float(slow)).run()
        rows.append({"slowed": float(slow), **_sums([replayed])})
    return rows


def _new_model(options: TraceOptions, cards: Cards) -> dict[str, float]:
    """Half-way the node serves another model, and its card says how good that is: the same client
    goes on with it."""
    trace = judged_trace(replace(options, world=CALM, chains=0), cards)
    moment_s = trace.jobs[len(trace.jobs) // 2].at_s
    old = cards[Route.CLOUD]
    card: ModelCard = replace(old, name="ocean", skill_accuracy={"all": 0.98})
    without = Replay(trace, ByPolicy(), cards).run()
    after = Replay(
        trace, ByPolicy(), cards, new_card=card, new_card_from_s=moment_s, new_p_right=0.98
    ).run()
    half = len(trace.jobs) // 2

    def sums(replayed: Replayed) -> dict[str, float]:
        return _sums([Replayed(replayed.results[half:], ())])

    return {
        "without": sums(without)["quality"],
        "after": sums(after)["quality"],
        "cloud_share_without": sums(without)["cloud_share"],
        "cloud_share_after": sums(after)["cloud_share"],
    }
