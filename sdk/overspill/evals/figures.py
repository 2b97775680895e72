"""The figures of a routing report, under stable names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def routing_figures(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each metric of the router, its lead over the best baseline, and the decision time.

    What was asked is a matter of the data, which the command does not know: only what holds on
    any data has an ``asked``.
    """
    router = report["router"]
    reason = router.get("reason", "")
    found = [
        _figure(f"routing.{name}", router[name], unit, None, reason)
        for name, unit in _RANKING_UNITS.items()
    ]
    rivals = [
        one["apgr"]
        for name, one in report["baselines"].items()
        if name in ("length", "domain_prior", "confidence") and one["apgr"] is not None
    ]
    lead = router["apgr"] - max(rivals) if rivals and router["apgr"] is not None else None
    found.append(_figure("routing.apgr_over_best_baseline", lead, "APGR", None, reason))
    found.append(_figure("routing.ece_small", router["ece"]["small"], "probability", None, ""))
    found.append(_figure("routing.flips", router["flips"]["mean"], "share", None, ""))
    for quantile, asked in (("p50", 150.0), ("p99", 1000.0)):
        value = report["decision_us"][quantile]
        found.append(_figure(f"routing.decision_us.{quantile}", value, "us", asked, ""))
    return found


_RANKING_UNITS = {
    "apgr": "APGR",
    "cpt50": "share of calls",
    "cpt80": "share of calls",
    "cpt95": "share of calls",
    "pgr20": "share of the gap",
}


def _figure(
    name: str, value: float | None, unit: str, at_most: float | None, reason: str
) -> dict[str, Any]:
    ok = None if value is None or at_most is None else value <= at_most
    figure = {"name": name, "value": value, "unit": unit, "asked": at_most, "ok": ok}
    if at_most is not None:
        figure["bound"] = "at_most"
    return figure if value is not None else {**figure, "reason": reason}
