"""`overspill eval`: judge routers on results of two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.cli import eval_quant, eval_run
from overspill.cli.eval_options import (
    ConfidenceColumn,
    DataFile,
    GroupColumn,
    LargeColumn,
    LargerColumn,
    PromptColumn,
    SmallColumn,
    TrainFile,
    require_eval,
    write_bytes,
)
from overspill.cli.eval_traces import register as register_traces
from overspill.terminal import Verbs, print_document

STDOUT = Path("-")
_SHOWN = ("apgr", "cpt50", "cpt80", "cpt95", "pgr20")

app = typer.Typer(
    cls=Verbs,
    help="Judge models, quantizations and routing by their results.",
    no_args_is_help=True,
)
register_traces(app)


def register(parent: typer.Typer) -> None:
    """Add the group of this file."""
    parent.add_typer(app, name="eval")


for module in (eval_run, eval_quant):
    module.register(app)


@app.command("routing")
def routing(
    data: DataFile,
    train: TrainFile = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file; - is stdout.")
    ] = None,
    prompt: PromptColumn = "prompt",
    small: SmallColumn = "small_correct",
    large: LargeColumn = "large_correct",
    group: GroupColumn = None,
    confidence: ConfidenceColumn = None,
    larger_device: LargerColumn = None,
    seed: Annotated[int, typer.Option(help="For folds, samples and resamples.")] = 0,
) -> int:
    """Fit a router, cross-fitted by group and near-duplicate, and judge it beside its baselines.

    A value in a nested object is named OBJECT:KEY. Labels are booleans, 0 or 1, or scores.
    """
    require_eval()
    from overspill.evals.data import Columns, load
    from overspill.evals.figures import routing_figures
    from overspill.evals.routing_eval import EvalOptions, evaluate

    columns = Columns(prompt, small, large, group, confidence, larger_device)
    rows = load(data, columns)
    report = evaluate(rows, load(train, columns) if train else None, EvalOptions(seed=seed))
    report["figures"] = routing_figures(report)
    if json_file == STDOUT:
        print_document(report, indent=1)
        return 0
    if json_file:
        write_bytes(json_file, _json(report).encode())
    _print_table(report)
    return 0


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def _print_table(report: dict[str, Any]) -> None:
    print(
        f"{report['n']} prompts; small {report['q_small']:.3f}, large {report['q_large']:.3f}; "
        f"fitted by {report['cross_fitted']} on up to {report['labels_used']} labels"
    )
    print(f"{'':14}" + "".join(f"{name:>9}" for name in _SHOWN))
    for name, found in {"router": report["router"], **report["baselines"]}.items():
        if found.get("quality") is not None:
            print(f"{name:14} right {100 * found['quality']:.1f}%")
        elif found["apgr"] is None:
            print(f"{name:14} undefined: {found['reason']}")
        else:
            print(f"{name:14}" + "".join(f"{found[key]:9.3f}" for key in _SHOWN))
    took = report["decision_us"]
    print(f"a decision takes {took['p50']:.0f} us (p50), {took['p99']:.0f} us (p99)")
