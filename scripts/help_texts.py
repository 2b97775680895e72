"""Write the verbs of the commands into the READMEs, from the commands' own help.

    python scripts/help_texts.py [--check]

A table stands between ``<!-- verbs of COMMAND -->`` and ``<!-- end of verbs -->``. With ``--check``
nothing is written, and a table that is out of date is exit code 1.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import typer

from overspill.cli.main import whole_app
from overspill.terminal import Verbs
from overspill_cloud.cli import app as overspill_cloud

ROOT = Path(__file__).resolve().parent.parent
WHERE = {"README.md": "overspill", "cloud/README.md": "overspill-cloud"}


@cache
def group_of(program: str) -> Verbs:
    """A command's verbs, those that other packages add among them."""
    if program == "overspill-cloud":
        return _as_verbs(typer.main.get_command(overspill_cloud))
    return _as_verbs(typer.main.get_command(whole_app()))


def _as_verbs(command: Any) -> Verbs:
    if not isinstance(command, Verbs):
        raise TypeError(f"{command.name} is not a group of verbs")
    return command


def table(program: str) -> str:
    """A row for each verb: what it is called, what it does, and the verbs inside it."""
    group, lines = group_of(program), []
    for heading, rows in group.by_section():
        title = "" if heading == "Commands" else f"**{heading}**"
        lines += [f"| {title} | |"] if lines else [f"| {title} | |", "| --- | --- |"]
        for name, told in rows:
            verb = group.commands[name]
            inner = sorted(verb.commands) if isinstance(verb, Verbs) else []
            more = f" ({', '.join(f'`{one}`' for one in inner)})" if inner else ""
            lines.append(f"| `{program} {name}` | {told}{more} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The README with its tables as they are now."""
    return re.sub(
        r"(<!-- verbs of ([\w-]+) -->\n).*?(<!-- end of verbs -->)",
        lambda found: f"{found[1]}{table(found[2])}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> int:
    """Write them, or say which are out of date."""
    stale = 0
    for name in WHERE:
        file = ROOT / name
        before = file.read_text("utf-8")
        after = with_tables(before)
        if "--check" in sys.argv[1:]:
            if before != after:
                print(f"{name} is out of date; run scripts/help_texts.py", file=sys.stderr)
                stale = 1
        else:
            file.write_text(after, "utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
