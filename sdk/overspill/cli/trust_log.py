"""`overspill trust log`: what this client has seen of logs, and a person's word on split views."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from overspill.cli.common import Json, print_json
from overspill.config import load_settings
from overspill.errors import UsageError
from overspill.opening import open_log_state
from overspill.state.log_state import LogStateStore
from overspill.terminal import Verbs
from overspill.trust.log.checkpoint import Checkpoint
from overspill.trust.log.note import Note
from overspill.types.transparency import LogMemory, SplitEvidence

REMEMBERED, SHOWN = "remembered", "shown"


def register(trust: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(
        cls=Verbs,
        help="Show the logs that this client has seen, and decide on split views.",
        no_args_is_help=True,
    )
    group.command("status")(status)
    group.command("decide")(decide)
    trust.add_typer(group, name="log")


def status(as_json: Json = False) -> None:
    """Show each log's size, the newest release seen, and split views that wait for a decision."""
    logs = log_status()
    if as_json:
        print_json({"logs": logs})
    else:
        print_log_status(logs)


def decide(
    split_id: Annotated[str, typer.Argument(help="The split view's id, from `status`.")],
    keep: Annotated[str, typer.Option(help="Whose history is true: 'remembered' or 'shown'.")],
    as_json: Json = False,
) -> None:
    """Go on with one of two histories, after finding out who lied. The evidence stays on record."""
    if keep not in (REMEMBERED, SHOWN):
        raise UsageError(f"--keep is '{keep}'.", mend=f"Use {REMEMBERED} or {SHOWN}.")
    store = _store()
    found = next((s for s in store.split_views() if s.id == split_id), None)
    shown = _memory_of(found) if found is not None and keep == SHOWN else None
    store.decide(split_id, shown, int(time.time()))
    if as_json:
        print_json({"decided": split_id, "keep": keep})
    else:
        print(f"Decided {split_id}: the {keep} history counts.")


def log_status() -> list[LogMemory]:
    """What is remembered, without the tiles; for this verb and for `overspill trust status`."""
    return [replace(log, edge=b"") for log in _store().logs()]


def print_log_status(logs: list[LogMemory]) -> None:
    """The same for people."""
    if not logs:
        print("No log was seen yet.")
    for log in logs:
        print(f"{log.origin}: {log.size} entries, root {log.root.hex()[:16]}...")
        print(f"  newest release {log.release_seq}, security floor {log.security_floor_seq}")
        if log.split is not None:
            _print_split(log.split)


def _print_split(split: SplitEvidence) -> None:
    when = datetime.fromtimestamp(split.seen_unix, UTC)
    print(f"  SPLIT VIEW {split.id}, seen {when:%Y-%m-%d %H:%M} UTC: nothing is accepted under it.")
    for name, note in ((REMEMBERED, split.remembered), (SHOWN, split.shown)):
        print(f"  {name}:")
        for line in note.decode("utf-8", "replace").splitlines():
            print(f"    {line}")


def _memory_of(split: SplitEvidence) -> LogMemory:
    head = Checkpoint.parse(Note.parse(split.shown).text)
    return LogMemory(split.origin, head.size, head.root, split.shown)


def _store() -> LogStateStore:
    return open_log_state(load_settings())
