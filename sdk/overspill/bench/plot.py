"""One picture of a report: each asked figure beside what was asked, all on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from overspill.errors import MissingExtra


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def reached(figure: Mapping[str, Any]) -> float | None:
    """How much of what was asked was reached: 1 is just enough, more is better.

    The value over the asked one, or the other way round where less is better; None where nothing
    was asked or measured, or where one of the two is not positive.
    """
    value, asked = figure["value"], figure["asked"]
    if value is None or asked is None or value <= 0 or asked <= 0:
        return None
    share: float = value / asked if figure["bound"] == "at_least" else asked / value
    return share


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Bars of what was reached, with a line at what was asked; the ending of ``path`` chooses the
    format. Raises :class:`MissingExtra` without matplotlib."""
    if not can_plot():
        raise MissingExtra("The plot", "plots")
    from matplotlib.figure import Figure

    shares = {f["name"]: share for f in report["figures"] if (share := reached(f)) is not None}
    names, values = list(shares)[::-1], list(shares.values())[::-1]
    picture = Figure(figsize=(9, 1.2 + 0.35 * max(len(names), 1)), layout="constrained")
    axes = picture.add_subplot()
    # Blue and orange: told apart by everybody, and the line says it too.
    colours = ["#3b6ea8" if value >= 1 else "#c8702a" for value in values]
    bars = axes.barh(names, values, color=colours)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("share of what was asked that was reached (1 = just enough)")
    axes.set_title(_title(report))
    picture.savefig(path)


def _title(report: Mapping[str, Any]) -> str:
    facts = report["machine"]
    doubt = "" if report["full"] else " - a quick run"
    doubt += " - NOT RELIABLE: busy machine" if report["warnings"] else ""
    return f"{report['benchmark']} on {facts['cpus']} CPUs, {facts['cpu']}{doubt}"
