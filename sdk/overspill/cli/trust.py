"""`overspill trust`: write and check the policy that says what a node has to prove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overspill.cli import trust_log, trust_release, trust_status, trust_verify, trust_witness
from overspill.cli.common import Json, print_json
from overspill.errors import UsageError
from overspill.terminal import Verbs
from overspill.trust.policy import PINNED, load_policy
from overspill.trust.template import PINNED_TEMPLATE, pinned_policy
from overspill.trust.template_hardware import HARDWARE_TEMPLATES

PolicyFile = Annotated[Path, typer.Argument(help="The policy file (TOML).")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(
        cls=Verbs,
        help="Write and check what a node has to prove; verify evidence, releases and logs.",
        no_args_is_help=True,
    )
    group.command("init")(init)
    group.command("check")(check)
    for module in (trust_status, trust_verify, trust_release, trust_witness, trust_log):
        module.register(group)
    app.add_typer(group, name="trust")


def init(
    file: PolicyFile,
    key: Annotated[
        str | None, typer.Option(help="The operator's Ed25519 public key, hex; or fill it in.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=SHA256 of its file; may be repeated.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help=f"Type of evidence: {', '.join((PINNED, *HARDWARE_TEMPLATES))}.")
    ] = PINNED,
) -> None:
    """Write a documented policy: for an operator's pinned key, or for hardware evidence."""
    if kind not in (PINNED, *HARDWARE_TEMPLATES):
        known = ", ".join((PINNED, *HARDWARE_TEMPLATES))
        raise UsageError(f"--kind: '{kind}' has no template.", mend=f"Use one of {known}.")
    if kind != PINNED and (key or model):
        raise UsageError(
            f"--key and --model are for {PINNED}.", mend="Fill the others into the file."
        )
    if file.exists():
        raise UsageError(f"{file} is there already.", mend="Remove it, or give another name.")
    if kind != PINNED:
        file.write_text(HARDWARE_TEMPLATES[kind], "utf-8")
        print(f"Wrote {file}: fill in what stands in <>, then: overspill trust check {file}")
        return
    models = dict(_model(text) for text in model or ())
    if key and models:
        file.write_text(pinned_policy(_hex(key, "--key"), models), "utf-8")
        print(f"Wrote {file}.")
    else:
        file.write_text(PINNED_TEMPLATE, "utf-8")
        print(f"Wrote {file}: fill in what stands in <>, then: overspill trust check {file}")


def check(file: PolicyFile, as_json: Json = False) -> None:
    """Read a policy as strictly as a client does, and say what it demands."""
    policy = load_policy(file)
    if as_json:
        print_json(policy)
        return
    print(f"{file} is a valid policy (sha256 {policy.sha256.hex()}).")
    print(f"least assurance: {policy.min_assurance.name}")
    print(f"accepted evidence: {', '.join(sorted(policy.accept))}")
    print(f"the node has to have closed: {', '.join(sorted(policy.closed)) or 'nothing'}")
    print(f"models: {', '.join(sorted(policy.reference.models)) or 'any that a release lists'}")


def _model(text: str) -> tuple[str, bytes]:
    name, sign, digest = text.partition("=")
    if not sign or not name or not digest:
        raise UsageError(f"'{text}' is no model.", mend="Give --model NAME=SHA256")
    return name, _hex(digest, "--model")


def _hex(text: str, option: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise UsageError(f"{option}: '{text}' is not 64 hexadecimal digits.")
    return value
