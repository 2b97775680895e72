"""`overspill logs`: the installed daemon's own lines; they never hold what anybody says."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer

from overspill.cli.common import Json, print_json
from overspill.cli.units import log_file
from overspill.config import default_places
from overspill.errors import UsageError

POLL_S: Final = 0.2
_LINE: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]+) (.*)", re.DOTALL)


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("logs")(logs)


def logs(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many at the end.")] = 100,
    file: Annotated[
        Path | None, typer.Option("--file", help="Of `serve --log-file`; default: the service's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the daemon's log: routes, statuses, times, apps; never prompts or answers."""
    path = file or log_file(default_places())
    if not path.is_file():
        raise UsageError(
            f"There is no log at {path}: an installed daemon writes it, from its first start.",
            mend="Run: overspill service install, or overspill serve --log-file FILE",
        )
    with _opened(path) as log:
        text = log.read()
        whole = text[: text.rfind("\n") + 1]
        last = whole.splitlines()[-lines:] if lines else []
        if as_json and not follow:
            print_json({"file": str(path), "lines": [as_record(line) for line in last]})
            return
        for line in last:
            _print(line, as_json)
        if follow:
            for line in _written(path, log, text[len(whole) :]):
                _print(line, as_json)


def as_record(line: str) -> dict[str, str | None]:
    """``time``, ``level`` and ``message``; the first two None for a line that goes on with another
    (where in the code something broke)."""
    match = _LINE.fullmatch(line)
    if match is None:
        return {"time": None, "level": None, "message": line}
    return {"time": match[1], "level": match[2], "message": match[3]}


def _print(line: str, as_json: bool) -> None:
    print(json.dumps(as_record(line)) if as_json else line, flush=True)


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", mend="Check it.") from None


def _written(path: Path, log: TextIO, half: str) -> Iterator[str]:
    """Lines as they are written, over a turn of the log to a new file; without end."""
    while True:
        turned = _was_turned(path, log)  # asked first: what was written before the turn is read
        piece = log.read()
        *whole, half = (half + piece).split("\n")
        yield from whole
        if turned:
            log.close()
            log = _opened(path)
        elif not piece:
            time.sleep(POLL_S)


def _was_turned(path: Path, log: TextIO) -> bool:
    try:
        return not os.path.samestat(path.stat(), os.fstat(log.fileno()))
    except FileNotFoundError:  # between the turn and its first line
        return False
