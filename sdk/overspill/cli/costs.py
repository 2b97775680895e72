"""`overspill costs`: what answers took, by measured use."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from overspill.cli.common import Json, print_json
from overspill.config import load_settings
from overspill.state.spending import SpendingStore

_DAY_S = 86_400


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("costs")(costs)


def costs(
    days: Annotated[int | None, typer.Option(min=1, help="Only the latest days.")] = None,
    as_json: Json = False,
) -> None:
    """Show tokens, money and energy by route and model, and the cost per million tokens.

    Costs are by the price on the model's signed card when it answered. Answers without an end
    count with the tokens that were seen. Energy is an estimate.
    """
    since = int(time.time()) - days * _DAY_S if days else 0
    found = SpendingStore(load_settings().places.state / "spending.sqlite").sums(since)
    if as_json:
        print_json([{**asdict(one), "cost_per_mtok": one.cost_per_mtok} for one in found])
        return
    print(
        f"{'route':12}{'model':20}{'tries':>8}{'prompt':>12}{'answers':>12}{'cost':>12}{'per M':>9}"
    )
    for one in found:
        price = "" if one.cost_per_mtok is None else f"{one.cost_per_mtok:.3f}"
        print(
            f"{one.route:12}{one.model:20}{one.tries:8}{one.prompt_tokens:12}"
            f"{one.completion_tokens:12}{one.cost:12.6f}{price:>9}"
        )
