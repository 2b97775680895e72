"""`overspill models prewarm|unload`: the model that the daemon holds."""

from __future__ import annotations

from typing import Annotated

import typer

from overspill.cli.common import Json, print_json
from overspill.cli.models import models
from overspill.config import load_settings
from overspill_edge.extra import needs_edge

Name = Annotated[str | None, typer.Argument(metavar="MODEL", help="Default: the daemon's own.")]


def register() -> None:
    """Add the verbs below `models`."""
    models.command("prewarm")(prewarm)
    models.command("unload")(unload)


def prewarm(
    model: Name = None,
    keep_alive: Annotated[
        str | None, typer.Option("--keep-alive", help="Stay for so long: 10m, 300, forever.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Have the daemon load its model now, before anybody asks."""
    _order("prewarm", {"model": model, "keep_alive": keep_alive}, as_json=as_json)


def unload(model: Name = None, as_json: Json = False) -> None:
    """Have the daemon free its model until it is needed again. Exit 7 while it answers."""
    _order("unload", {"model": model}, as_json=as_json)


def _order(what: str, body: dict[str, str | None], *, as_json: bool) -> None:
    with needs_edge():
        from overspill_edge.daemon_http import ask
    answer = ask(load_settings(), "POST", f"/overspill/v1/models/{what}", body)
    if as_json:
        print_json(answer)
        return
    typer.echo(f"{answer['model']}: {answer['state']}")
