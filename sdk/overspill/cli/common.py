"""What several verbs share: options that choose settings, and printing JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.config import Settings, load_settings
from overspill.errors import UsageError
from overspill.terminal import print_document
from overspill.types.chat import Privacy

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Device model: a name, a .gguf or an MLX folder.")
]
CloudAddress = Annotated[
    str | None, typer.Option("--cloud", help="The node to spill over to: HOST:PORT or unix:/path.")
]
TrustPolicyFile = Annotated[
    Path | None,
    typer.Option("--trust-policy", help="What the node has to prove (TOML); see `trust init`."),
]
PrivacyFloor = Annotated[
    str | None,
    typer.Option("--privacy", help="Where prompts may go at most: device, attested or any."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="NAME=FILE: a LoRA adapter that requests may name; repeatable."),
]
DraftModel = Annotated[
    str | None,
    typer.Option("--draft-model", help="Smaller model of the same tokenizer, to guess ahead."),
]
Projector = Annotated[
    Path | None,
    typer.Option("--mmproj", help="Projector file (GGUF) by which the model reads images."),
]


def settings_for(
    model: str | None = None,
    cloud: str | None = None,
    trust_policy: Path | None = None,
    privacy: str | None = None,
    *,
    adapters: Sequence[str] = (),
    draft_model: str | None = None,
    mmproj: Path | None = None,
) -> Settings:
    """The user's settings with the command's options on top."""
    settings = load_settings()
    if model:
        settings = settings.with_model(model)
    if adapters:
        added = dict(map(_adapter, adapters))
        settings = dataclasses.replace(settings, adapters={**settings.adapters, **added})
    if draft_model:
        settings = dataclasses.replace(settings, draft_model=draft_model)
    if mmproj:
        settings = dataclasses.replace(settings, mmproj=mmproj)
    if privacy:
        if privacy not in tuple(Privacy):
            raise UsageError(f"--privacy is '{privacy}'.", mend="Use device, attested or any.")
        settings = settings.with_floor(Privacy(privacy))
    return _with_cloud(settings, cloud, trust_policy)


def _with_cloud(settings: Settings, address: str | None, trust_policy: Path | None) -> Settings:
    old = settings.cloud
    if not address and trust_policy is None:
        return settings
    if old is None:
        if not address:
            raise UsageError("--trust-policy without a cloud.", mend="Add --cloud HOST:PORT.")
        return settings.with_cloud(address, trust_policy=trust_policy)
    return settings.with_cloud(
        address or old.address, trust_policy=trust_policy or old.trust_policy, ca=old.ca
    )


def _adapter(text: str) -> tuple[str, Path]:
    name, sign, file = text.partition("=")
    if not (name and sign and file):
        raise UsageError(f"--adapter is '{text}'.", mend="Give --adapter NAME=FILE.")
    return name, Path(file)


def print_json(value: Any) -> None:
    """One JSON document on standard output; bytes in hex, enums by value, paths as text."""
    print_document(_plain(value), indent=2)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name if isinstance(value.value, int) else value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
