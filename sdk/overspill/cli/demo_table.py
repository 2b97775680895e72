"""How the demo shows what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from overspill.types.evidence import AttestationResult

PROMPT_WIDTH = 34


def print_evidence(address: str, result: AttestationResult | None) -> None:
    """Each step of the verification, and what stands behind the node."""
    if result is None:
        return
    print(
        f"\nThe node at {address} proved itself ({result.evidence_type}) before anything was sent:"
    )
    for step in result.steps:
        mark = {True: "ok", False: "REFUSED", None: "not run"}[step.ok]
        print(f"  {step.n}  {step.name:<57} {mark}  {step.detail}".rstrip())
    warning = " (development evidence: it proves nothing about hardware)" if result.dev else ""
    print(f"  assurance: {result.assurance.name}{warning}\n")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """One line a prompt: where it ran, why, how fast, what left, and whether it was right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("prompt", "skill", "level", "route", "reason", "model"):
        table.add_column(name, no_wrap=True)
    for name in ("TTFT", "tok/s", "sent", "receipt", "right"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    # Fixed width off a terminal: a log must not lose columns.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(table)


def print_summary(summary: dict[str, Any]) -> None:
    """The sum, against all-device and all-cloud."""
    print(
        f"\nright answers: {summary['right']} by policy, "
        f"{summary['right_all_device']} all on the device, "
        f"{summary['right_all_cloud']} all in the cloud (which may not see what has to stay)\n"
        f"kept on the device: {summary['device_share']:.0%}; "
        f"the cloud's assurance: {summary['assurance']}"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    prompt = " ".join(row["prompt"].split())
    short = prompt if len(prompt) <= PROMPT_WIDTH else prompt[: PROMPT_WIDTH - 1] + "…"
    return [
        short.replace("[", r"\["),
        row["skill"],
        row["level"],
        str(row["route"]),
        str(row["reason"]),
        row["model"],
        "-" if row["ttft_s"] is None else f"{1000 * row['ttft_s']:.0f} ms",
        "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f}",
        f"{row['bytes_sent']} B",
        {True: "verified", False: "INVALID", None: "-"}[row["receipt_verified"]],
        {True: "yes", False: "no", None: "?"}[row["correct"]],
    ]
