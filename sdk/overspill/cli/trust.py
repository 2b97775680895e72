"""`overspill trust`: write and check the policy that says what a node has to prove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overspill.cli.common import Json, print_json
from overspill.errors import UsageError
from overspill.trust.policy import PINNED, load_policy
from overspill.trust.template import policy_text

PolicyFile = Annotated[Path, typer.Argument(help="The policy file (TOML).")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(help="What a node has to prove.", no_args_is_help=True)
    group.command("init")(init)
    group.command("check")(check)
    app.add_typer(group, name="trust")


def init(
    file: PolicyFile,
    key: Annotated[list[str], typer.Option(help="A key (hex) or a file with a certificate.")],
    model: Annotated[list[str], typer.Option(help="NAME=SHA256 of its file; may be repeated.")],
    evidence: Annotated[str, typer.Option(help="The evidence type to accept.")] = PINNED,
) -> None:
    """Write a policy for nodes that a key of yours vouches for."""
    if file.exists():
        raise UsageError(f"{file} is there already.", mend="Remove it, or give another name.")
    models = dict(_model(text) for text in model)
    anchors = [Path(k).read_text("utf-8") if Path(k).is_file() else k for k in key]
    file.write_text(policy_text(evidence, anchors, models), "utf-8")
    print(f"Wrote {file}.")


def check(file: PolicyFile, as_json: Json = False) -> None:
    """Read a policy as strictly as a client does, and say what it demands."""
    policy = load_policy(file)
    if as_json:
        print_json(policy)
        return
    print(f"{file} is a valid policy (sha256 {policy.sha256.hex()}).")
    print(f"least assurance: {policy.min_assurance.name}")
    print(f"accepted evidence: {', '.join(sorted(policy.accept))}")
    print(f"models: {', '.join(sorted(policy.reference.models)) or 'any that a release lists'}")


def _model(text: str) -> tuple[str, str]:
    name, sign, digest = text.partition("=")
    if not sign or not name or not digest:
        raise UsageError(f"'{text}' is no model.", mend="Give --model NAME=SHA256")
    return name, digest
