"""`overspill eval quant`: one model in several quantizations, beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.cli.eval_options import require_eval, write_bytes
from overspill.errors import UsageError
from overspill.terminal import print_document


def register(app: typer.Typer) -> None:
    """Add the verb of this file to `eval`."""
    app.command("quant")(quant)


def quant(
    model: Annotated[list[str], typer.Option("--model", help="A file of the model; repeatable.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="More files of it.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts with expected answers: accuracy by skill.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file; - is stdout.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    streams: Annotated[int, typer.Option(min=1, max=64, help="Prompts asked at once.")] = 4,
) -> None:
    """What quantization costs a model: KL to the file with the most bits, accuracy, size, speed."""
    require_eval()
    from overspill.cli.demo import PROMPTS
    from overspill.evals.prompt_set import load_prompts, prompts_of
    from overspill.evals.quant import QuantOptions, compare

    specs = [*model, *(more or ())]
    if len(set(specs)) != len(specs):
        raise UsageError("A file is named twice.", mend="Name each once.")
    if prompts is not None:
        asked = load_prompts(prompts)
    else:
        asked = prompts_of(PROMPTS, json.loads(PROMPTS.read_text("utf-8")))
    options = QuantOptions(streams=streams, graded=prompts is not None)
    report = compare(specs, asked[:limit], options)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    if json_file == Path("-"):
        print_document(report, indent=1)
        return
    if json_file is not None:
        write_bytes(json_file, text.encode())
    for row in report["models"]:
        print(_line(row))
    if left_out := report["left_out"]:
        print(f"{len(left_out)} prompts were left out: {left_out[0]['message']}")


def _line(row: dict[str, Any]) -> str:
    kl, accuracy = row["kl"], row["accuracy"]
    parts = [
        f"{row['quantization']:8}",
        f"{row['size_bytes'] / 2**20:8.1f} MiB",
        "KL      reference      " if kl is None else f"KL {kl['mean']:.4f} (p99 {kl['p99']:.3f})",
        "" if not accuracy else f"right {100 * accuracy['all']:.1f}%",
        f"{row['tokens_per_s']:.0f} tokens/s",
    ]
    return "  ".join(part for part in parts if part)
