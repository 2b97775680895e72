"""`overspill eval traces`: the policy in a world that changes, beside static rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.cli.eval_options import write_bytes

_STDOUT = Path("-")
_SHOWN = ("quality", "missed", "right_in_time", "cloud_share", "cost_per_1000", "joules")


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("traces")(traces)


def traces(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file; - is stdout.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=20, help="Requests in each trace.")] = 1500,
    chains: Annotated[
        int, typer.Option(min=1, help="Chains of 6 to 8 calls in 8 s, in each.")
    ] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Traces.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the first trace.")] = 0,
) -> int:
    """Replay generated arrivals through the real decision: deadlines, cost, energy, chains.

    Device, road and cloud change under the requests; every rule meets the same world. Nothing is
    generated, and nothing is contacted.
    """
    from overspill.evals.traces import TraceOptions
    from overspill.evals.traces_report import ReportOptions, report

    options = TraceOptions(jobs=jobs, chains=chains, seed=seed)
    found = report(ReportOptions(options, seeds))
    text = json.dumps(found, indent=1) + "\n"
    if json_file == _STDOUT:
        sys.stdout.write(text)
        return 0
    if json_file:
        write_bytes(json_file, text.encode())
    _print_table(found)
    return 0


def _print_table(found: dict[str, Any]) -> None:
    print(f"{found['jobs']} requests and {found['chains']} chains in {len(found['seeds'])} traces")
    print(f"{'':20}" + "".join(f"{name:>15}" for name in _SHOWN))
    for name, sums in found["rules"].items():
        print(f"{name:20}" + "".join(f"{sums[key]:15.3f}" for key in _SHOWN))
    for row in found["upgrade"]:
        words = f"device slowed {row['slowed']:g} times"
        print(f"{words:24}cloud {row['cloud_share']:.2f}, right {row['quality']:.3f}")
    for figure in found["figures"]:
        mark = {True: "ok", False: "MISSED", None: ""}[figure["ok"]]
        value = "none" if figure["value"] is None else f"{figure['value']:.4g}"
        print(f"{figure['name']:32} {value:>10} {figure['unit']:8} {mark}")
