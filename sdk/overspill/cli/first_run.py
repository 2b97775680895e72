"""The first run: a model that is named and not here is fetched after its plan and a question.

The hub is not asked before the user agrees: its answer has size and digest, but to ask is to be
seen. Without a terminal nobody is asked, and the error names the command.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from typing import Final

import anyio

from overspill import modelroom
from overspill.cli.models import ProgressLine, print_plan
from overspill.config import Settings
from overspill.engines.live_memory import available_memory
from overspill.errors import ModelNotFound
from overspill.models.catalog import CatalogEntry, catalog

_BYTES_PER_PARAMETER: Final = 1.1
"""Of 8-bit weights with their scales: the largest variant in the catalog."""
_SHARE_OF_MEMORY: Final = 0.5
"""What a proposed model's weights may take of the free memory: context and others need some too."""


def obtain_model(settings: Settings, *, quiet: bool = False) -> None:
    """Fetch the settings' device model where it is missing, a terminal is there and says yes.

    With a cloud a missing device model is no obstacle. Raises ``ModelNotFound`` (exit code 3)
    with the command that pulls it for a "no", without a terminal, or with ``quiet``.
    """
    if settings.cloud is not None:
        return
    try:
        modelroom.resolve(settings, settings.model)
    except ModelNotFound:
        if quiet or not _is_terminal() or not modelroom.is_pullable(settings.model):
            raise
        if not _fetch(settings):
            raise


def suggest_model(settings: Settings) -> None:
    """At a terminal, where brook is all there is: which larger one would fit, and its command."""
    if settings.model != "brook" or not _is_terminal() or modelroom.open_store(settings).models():
        return
    proposed = proposed_model(available_memory())
    if proposed is None:
        return
    name, entry = proposed
    print(
        f"brook is a small demonstration model. For this machine ({_machine()}): "
        f"overspill models pull {name} ({entry.licence})",
        file=sys.stderr,
    )


def proposed_model(free_bytes: int | None) -> tuple[str, CatalogEntry] | None:
    """The largest device model of the catalog whose weights leave half of ``free_bytes``;
    None where none does, or nobody knows what is free."""
    room = (free_bytes or 0) * _SHARE_OF_MEMORY
    runtime = modelroom.preferred_runtime()
    fitting = [
        (entry.parameters, name)
        for name, entry in catalog().items()
        if entry.place == "device"
        and entry.parameters is not None
        and entry.parameters * _BYTES_PER_PARAMETER <= room
        and any(variant.runtime == runtime for variant in entry.variants)
    ]
    if not fitting:
        return None
    name = max(fitting)[1]
    return name, catalog()[name]


def _fetch(settings: Settings) -> bool:
    """Show, ask, show all of it, ask, fetch; False for a no."""
    name = settings.model
    say = functools.partial(print, file=sys.stderr)
    say(f"The model '{name}' is not on this machine ({_machine()}).")
    if (entry := catalog().get(name)) is not None:
        say(f"{entry.title} by {entry.publisher}, licence {entry.licence}, {entry.source}")
    if not _agrees(f"Ask {settings.hub} for its size and digest?"):
        return False
    planned = anyio.run(modelroom.plan, settings, name)
    print_plan(planned, modelroom.judge_size(planned, settings).detail, to=sys.stderr)
    if not _agrees("Fetch it?"):
        return False
    line = ProgressLine(quiet=False)
    try:
        anyio.run(functools.partial(modelroom.pull, settings, planned, on_progress=line.show))
    finally:
        line.end()
    return True


def _agrees(question: str) -> bool:
    """Asked on standard error to the last space: standard output is the answer's."""
    print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.endswith("\n") and line.strip().lower() in ("", "y", "yes")


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _machine() -> str:
    free = available_memory()
    there = "" if free is None else f", {free / 1e9:.1f} GB free"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors{there}"
