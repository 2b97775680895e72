"""The `overspill` command: its verbs, found where they are; `terminal` shows the errors."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar

import typer

from overspill import __version__
from overspill.cli import (
    ask,
    bench,
    calibrate,
    chat,
    cloud,
    costs,
    demo,
    doctor,
    evals,
    logs,
    models,
    policy_show,
    purge,
    receipts,
    trust,
)
from overspill.terminal import Verbs, run_app


class OverspillVerbs(Verbs):
    """The verbs as a newcomer looks for them."""

    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "Ask": ("run", "chat", "plan", "batch"),
        "This machine": ("models", "doctor", "costs", "demo", "purge"),
        "For other programs": ("serve", "service", "token", "ui", "logs"),
        "The cloud": ("cloud", "trust", "receipts"),
        "Measure and tune": ("eval", "calibrate", "policy", "bench"),
    }


app = typer.Typer(
    cls=OverspillVerbs,
    name="overspill",
    help="Language models that run where the user is and spill over into a proven cloud.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"overspill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    del version  # its callback has printed it


for module in (
    ask, bench, calibrate, chat, cloud, costs, demo, doctor, evals, logs, models, policy_show,
    purge, receipts, trust,
):  # fmt: skip
    module.register(app)


def run() -> None:
    """Entry point of the script: load other packages' verbs, run, and end with an exit code."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Prints errors, never a traceback."""
    _register_others()
    return run_app(app, "overspill", arguments)


@functools.cache
def _register_others() -> None:
    """Once for a process: a verb that is registered twice is there twice."""
    for point in entry_points(group="overspill.commands"):
        _register(point)


def _register(point: EntryPoint) -> None:
    try:
        register = point.load()
    except ImportError:  # the extra is not installed: its verbs are not there
        return
    register(app)


if __name__ == "__main__":
    run()
