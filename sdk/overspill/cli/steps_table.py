"""How the numbered steps of a verification are shown to people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from overspill.types.evidence import VerificationStep

_MARKS = {True: ("ok", "green"), False: ("REFUSED", "bold red"), None: ("not run", "dim")}
_WIDTH_OFF_TERMINAL = 160


def print_steps(steps: Iterable[VerificationStep]) -> None:
    """One line a step: its number, its name, how it went, and what was found."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", no_wrap=True)
    table.add_column("check")
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for step in steps:
        mark, style = _MARKS[step.ok]
        # Text, not markup: what evidence says of itself must not style this terminal.
        table.add_row(step.n, Text(step.name), Text(mark, style), Text(step.detail))
    console = Console(highlight=False)
    if not console.is_terminal:  # a log must not lose columns
        console = Console(highlight=False, width=_WIDTH_OFF_TERMINAL)
    console.print(table)
