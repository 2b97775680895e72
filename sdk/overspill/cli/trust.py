"""`overspill trust`: write and check the policy that says what a node has to prove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overspill.cli.common import Json, print_json
from overspill.errors import UsageError
from overspill.trust.policy import load_policy
from overspill.trust.template import PINNED_TEMPLATE

PolicyFile = Annotated[Path, typer.Argument(help="The policy file (TOML).")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(help="What a node has to prove.", no_args_is_help=True)
    group.command("init")(init)
    group.command("check")(check)
    app.add_typer(group, name="trust")
