"""`overspill service`: the daemon under launchd or systemd, for this user alone."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from overspill.cli.common import Json, print_json
from overspill.cli.units import (
    Done,
    Manager,
    daemon_runs,
    is_reachable,
    log_file,
    run_all,
    this_manager,
)
from overspill.config import Places, child_environment, load_settings
from overspill.errors import BusyError, ConfigurationError, MissingExtra

service_app = typer.Typer(
    help="Run the daemon by launchd or systemd, for this user.", no_args_is_help=True
)
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")]
ManagerChoice = Annotated[
    str | None, typer.Option("--manager", help="systemd or launchd; default: this system's.")
]


@service_app.command()
def install(dry_run: DryRun = False, manager: ManagerChoice = None, as_json: Json = False) -> None:
    """Install the daemon for this user and start it, or its socket."""
    try:
        from overspill_edge.service import UnitOptions, kept_environment, unit_texts, write_units
    except ModuleNotFoundError:
        raise MissingExtra("The daemon", "edge") from None
    chosen, places = this_manager(manager), load_settings().places
    options = UnitOptions(places, kept_environment(child_environment()))
    texts = unit_texts(chosen, options)
    if dry_run:
        _show_texts(chosen, {str(file): text for file, text in texts.items()}, as_json)
        return
    if daemon_runs(places) and not chosen.installed:
        raise BusyError(
            f"A daemon already serves {options.socket}.", mend="Stop it (Ctrl-C), then install."
        )
    log_file(places).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_units(texts)
    done = run_all(chosen.start, reachable=is_reachable(chosen))
    _report(chosen, places, done, as_json)
    _check(done)


@service_app.command()
def uninstall(
    dry_run: DryRun = False, manager: ManagerChoice = None, as_json: Json = False
) -> None:
    """Stop the daemon and remove its unit files; models, settings and keys stay."""
    chosen, places = this_manager(manager), load_settings().places
    files = chosen.installed
    commands = (*chosen.stop, *chosen.after_removal)
    if dry_run:
        _report(chosen, places, tuple(Done(" ".join(c), ran=False) for c in commands), as_json)
        return
    reachable = bool(files) and is_reachable(chosen)
    done = run_all(chosen.stop if files else (), reachable=reachable)
    if daemon_runs(places):
        _check(done)  # what was not loaded cannot be stopped, and may go
    for file in files:
        file.unlink()
    done += run_all(chosen.after_removal if files else (), reachable=reachable)
    _report(chosen, places, done, as_json)


@service_app.command()
def status(manager: ManagerChoice = None, as_json: Json = False) -> None:
    """Say whether the daemon is installed and whether one runs."""
    _report(this_manager(manager), load_settings().places, (), as_json)


def _report(manager: Manager, places: Places, done: tuple[Done, ...], as_json: bool) -> None:
    document: dict[str, Any] = {
        "manager": manager.name,
        "installed": manager.installed == manager.files,
        "files": [str(file) for file in manager.installed],
        "running": daemon_runs(places),
        "log": str(log_file(places)),
        "commands": [dataclasses.asdict(one) for one in done],
    }
    if as_json:
        print_json(document)
        return
    there = "installed" if document["installed"] else "not installed"
    running = "runs" if document["running"] else "does not run"
    typer.echo(f"{manager.name}: {there}; the daemon {running}")
    for file in document["files"]:
        typer.echo(f"  file  {file}")
    for one in done:
        typer.echo(f"  {'ran ' if one.ran else 'run:'}  {one.command}")


def _show_texts(manager: Manager, texts: dict[str, str], as_json: bool) -> None:
    commands = [" ".join(command) for command in manager.start]
    if as_json:
        print_json({"manager": manager.name, "files": texts, "commands": commands})
        return
    for file, text in texts.items():
        typer.echo(f"--- {file}\n{text}")
    for command in commands:
        typer.echo(f"run:  {command}")


def _check(done: tuple[Done, ...]) -> None:
    for one in done:
        if one.error is not None:
            raise ConfigurationError(
                f"`{one.command}` failed: {one.error}.", mend="Mend that, and run this again."
            )
