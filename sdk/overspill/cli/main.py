"""The `overspill` command: its verbs, found where they are; `terminal` shows the errors."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, Final

import typer

from overspill import __version__
from overspill.terminal import Verbs, run_app

_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "run": ("ask",),
    "plan": ("ask",),
    "chat": ("chat",),
    "models": ("models",),
    "doctor": ("doctor",),
    "costs": ("costs",),
    "demo": ("demo",),
    "purge": ("purge",),
    "logs": ("logs",),
    "cloud": ("cloud",),
    "trust": ("trust",),
    "receipts": ("receipts",),
    "eval": ("evals",),
    "calibrate": ("calibrate",),
    "policy": ("calibrate", "policy_show"),
    "bench": ("bench",),
}
"""The modules of this package that bring a verb."""
_OTHERS: Final = frozenset(("models", "serve", "service", "token", "ui", "batch"))
"""Verbs that other packages bring, or add to."""


class OverspillVerbs(Verbs):
    """The verbs as a newcomer looks for them."""

    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "Ask": ("run", "chat", "plan", "batch"),
        "This machine": ("models", "doctor", "costs", "demo", "purge"),
        "For other programs": ("serve", "service", "token", "ui", "logs"),
        "The cloud": ("cloud", "trust", "receipts"),
        "Measure and tune": ("eval", "calibrate", "policy", "bench"),
    }


def run() -> None:
    """Entry point of the script: load other packages' verbs, run, and end with an exit code."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Prints errors, never a traceback."""
    return run_app(app_for(arguments), "overspill", arguments)


def whole_app() -> typer.Typer:
    """All verbs."""
    return _app(tuple(dict.fromkeys(name for names in _MODULES.values() for name in names)), True)


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """As much of the app as a command line needs, for to read every verb takes a second or more:
    the verb that it begins with, or all where it begins with none that is known."""
    verb = next(iter(arguments), "")
    if verb in _MODULES or verb in _OTHERS:
        return _app(_MODULES.get(verb, ()), verb in _OTHERS)
    return _app((), False) if verb == "--version" else whole_app()


@functools.cache
def _app(modules: tuple[str, ...], with_others: bool) -> typer.Typer:
    app = typer.Typer(
        cls=OverspillVerbs,
        name="overspill",
        help="Language models that run where the user is and spill over into a proven cloud.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for name in modules:
        import_module(f"overspill.cli.{name}").register(app)
    for point in entry_points(group="overspill.commands") if with_others else ():
        _register(app, point)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"overspill {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    del version  # its callback has printed it


def _register(app: typer.Typer, point: EntryPoint) -> None:
    try:
        register = point.load()
    except ImportError:  # the extra is not installed: its verbs are not there
        return
    register(app)


if __name__ == "__main__":
    run()
