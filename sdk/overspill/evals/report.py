"""A calibration for people: the cost-quality plot, and one page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from overspill.errors import MissingExtra
from overspill.evals import metrics
from overspill.evals.baselines import BASELINES, Case, fixed_rules
from overspill.evals.calibrate import Calibration, CalibrationOptions
from overspill.evals.metrics import Floats

_MAX_POINTS = 400
# Told apart by everybody, also in grey.
_COLOURS = {
    "router": "#3b6ea8",
    "random": "#888888",
    "length": "#c8702a",
    "domain_prior": "#6a9a3b",
    "confidence": "#8a4fa0",
    "oracle": "#222222",
}


def orders(found: Calibration, options: CalibrationOptions) -> dict[str, Floats | str]:
    """The router's order of the calibration's prompts and every baseline's, or why it has none."""
    case = Case(found.judged, None, 5, options.seed)
    return {"router": found.gain, **{name: score(case) for name, score in BASELINES.items()}}


def plot_png(found: Calibration, options: CalibrationOptions) -> bytes:
    """Mean quality by the share of calls to the large model. Raises ``MissingExtra``."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("The plot", "eval") from None
    outcomes = found.judged.outcomes
    picture = Figure(figsize=(8, 5), layout="constrained")
    axes = picture.add_subplot()
    shares = np.linspace(0, 100, len(outcomes) + 1)
    points = np.unique(np.linspace(0, len(outcomes), _MAX_POINTS).astype(int))
    for name, score in orders(found, options).items():
        if isinstance(score, str):
            continue
        curve = metrics.quality_curve(score, outcomes)
        width = 2.2 if name == "router" else 1.1
        axes.plot(shares[points], 100 * curve[points], _COLOURS[name], label=name, linewidth=width)
    calls = 100 * (1 - found.certified.device_share)
    axes.axvline(calls, color="black", linewidth=1, linestyle="--")
    axes.plot([calls], [100 * _quality(found)], "o", color="black", label="certified")
    axes.set_xlabel("calls to the large model, %")
    axes.set_ylabel("mean quality, %")
    axes.legend()
    out = io.BytesIO()
    picture.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def page(found: Calibration, options: CalibrationOptions, facts: Mapping[str, Any]) -> str:
    """The report as one HTML page with the plot inside."""
    png = base64.b64encode(plot_png(found, options)).decode()
    outcomes = found.judged.outcomes
    small, large = float(outcomes.small.mean()), float(outcomes.large.mean())
    rows = "".join(_row(name, score, found) for name, score in orders(found, options).items())
    rows += "".join(_fixed_row(name, one) for name, one in fixed_rules(found.judged).items())
    problem = metrics.gap_problem(outcomes)
    return _PAGE.format(
        title=html.escape(f"Routing {options.pair[0]} to {options.pair[1]}"),
        png=png,
        epsilon=f"{options.epsilon:g}",
        confidence=f"{100 * (1 - options.delta):g}",
        share=f"{100 * found.certified.device_share:.1f}",
        quality=f"{100 * _quality(found):.1f}",
        small=f"{100 * small:.1f}",
        large=f"{100 * large:.1f}",
        regret=f"{found.certified.regret:.4f}",
        n=found.certified.n,
        fitted=found.fitted_on,
        rows=rows,
        problem=f"<p>{html.escape(problem)}.</p>" if problem else "",
        facts="".join(
            f"<tr><td>{html.escape(name)}</td><td><code>{html.escape(str(value))}</code></td></tr>"
            for name, value in facts.items()
            if name not in ("gain_quantiles", "signature")
        ),
    )


def _quality(found: Calibration) -> float:
    """Mean quality under the certified threshold."""
    stays = found.gain <= found.certified.threshold
    outcomes = found.judged.outcomes
    return float(np.where(stays, outcomes.small, outcomes.large).mean())


def _row(name: str, score: Floats | str, found: Calibration) -> str:
    if isinstance(score, str):
        return f"<tr><td>{name}</td><td colspan=6>{html.escape(score)}</td></tr>"
    outcomes = found.judged.outcomes
    calls = 1 - found.certified.device_share
    at = metrics.accuracy_at(score, outcomes, (calls,))[f"{calls:g}"]
    cells = [
        "undefined" if value is None else f"{value:.3f}"
        for value in metrics.ranking(score, outcomes).values()
    ]
    cells.append(f"{100 * at:.1f}")
    return f"<tr><td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _fixed_row(name: str, quality: float | str) -> str:
    if isinstance(quality, str):
        return f"<tr><td>{name}</td><td colspan=6>{html.escape(quality)}</td></tr>"
    return f"<tr><td>{name}</td><td colspan=5></td><td>{100 * quality:.1f}</td></tr>"


_PAGE = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
