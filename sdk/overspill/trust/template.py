"""Trust policies to start from: with values, or with places to fill in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from overspill.errors import UsageError
from overspill.trust.log.cosignature import LogPolicy
from overspill.trust.policy import DEV_ED25519, DEV_TPM, PINNED
from overspill.trust.release_policy import ReleasePolicy

_HEAD: Final = """\
# What a node has to prove before anything is sealed to it. An empty list never means "any".
version = 1
min_assurance = "{floor}"        # NONE < SOFTWARE < HARDWARE_TPM < HARDWARE_TEE
accept = ["{kind}"]      # types of evidence; each has its section below
{freshness}
max_age_s = 3600                  # keys are used for this long after they were made
kems = ["MLKEM768_X25519"]        # post-quantum hybrid; "X25519" may be added
"""
_NONCE: Final = 'freshness = "nonce"               # the node answers a fresh challenge'
_WITNESSES: Final = 'freshness = "witnesses"           # witnesses saw the log just before'
_RELEASE: Final = """
[release]                         # what runs has to be released by these keys
keys = [{keys}]
threshold = {threshold}

[log]                             # and to be in this log
key = {log_key}
origin = {origin}
quorum = {quorum}                        # operators whose witnesses have to have seen it

[log.witnesses]                   # by operator: several keys of one count once
{witnesses}
"""
_DEV: Final = """\
dev_unsafe = true                 # development evidence proves nothing; loopback only
"""
_REFERENCE: Final = """
[reference]                       # the node may serve these models and no others
# configs, wheels and engines = ["<sha256>"] pin settings, program and engine library too
models = {{ {models} }}

[{kind}]
"""


@dataclass(frozen=True, slots=True)
class ReleaseDemand:
    """That a node is released and logged, with witnesses: what a policy says of it."""

    release: ReleasePolicy
    log: LogPolicy


_FILL_IN_MODEL: Final = 'NAME = "<SHA-256 of the model file, 64 hexadecimal digits>"'
_FILL_IN_KEY: Final = "<Ed25519 public key, 64 hexadecimal digits>"


def pinned_policy(operator_key: bytes, models: Mapping[str, bytes]) -> str:
    """A policy that pins one operator's key. ``models`` maps names to SHA-256 digests."""
    return _pinned(operator_key.hex(), named_models(models))


def dev_policy(
    root: bytes, models: Mapping[str, bytes], released: ReleaseDemand | None = None
) -> str:
    """A policy for one development key, on loopback only."""
    return _dev(DEV_ED25519, f'roots = ["{root.hex()}"]', named_models(models), released)


def tpm_dev_policy(
    ek_root_pem: str, models: Mapping[str, bytes], released: ReleaseDemand | None = None
) -> str:
    """A policy for software TPMs under one development authority, on loopback only."""
    section = f'ek_roots = ["""\n{ek_root_pem.strip()}\n"""]'
    return _dev(DEV_TPM, section, named_models(models), released)


def _pinned(key: str, models: str) -> str:
    head = _HEAD.format(floor="SOFTWARE", kind=PINNED, freshness=_NONCE)
    section = (
        f'# The operator\'s key, compared by hand: who runs the node, not what.\nkeys = ["{key}"]'
    )
    return head + _REFERENCE.format(models=models, kind=PINNED) + section + "\n"


def _dev(kind: str, section: str, models: str, released: ReleaseDemand | None = None) -> str:
    freshness = _WITNESSES if released else _NONCE
    head = _HEAD.format(floor="NONE", kind=kind, freshness=freshness) + _DEV
    policy = head + _REFERENCE.format(models=models, kind=kind) + section + "\n"
    return policy + (_released(released) if released else "")


def _released(released: ReleaseDemand) -> str:
    operators: dict[str, list[str]] = {}
    for witness in released.log.witnesses:
        operators.setdefault(witness.operator, []).append(str(witness.key))
    lines = (f"{_toml(name)} = [{', '.join(map(_toml, k))}]" for name, k in operators.items())
    return _RELEASE.format(
        keys=", ".join(_toml(key.hex()) for key in sorted(released.release.keys)),
        threshold=released.release.threshold,
        log_key=_toml(str(released.log.key)),
        origin=_toml(released.log.origin),
        quorum=released.log.quorum,
        witnesses="\n".join(lines),
    )


def _toml(text: str) -> str:
    """A basic string: what JSON escapes, TOML reads."""
    return json.dumps(text, ensure_ascii=False)


def named_models(models: Mapping[str, bytes]) -> str:
    """Models and their digests as a table's content. Raises ``UsageError`` for none, or for names
    that TOML would read as something else."""
    if not models or any(len(digest) != 32 for digest in models.values()):
        raise UsageError("A policy names at least one model with its SHA-256 digest.")
    if any(set(name) & set('"\\\n\r\t') or not name.isprintable() for name in models):
        raise UsageError("A model's name in a policy has no quotes, backslashes or line breaks.")
    return ", ".join(f'"{name}" = "{digest.hex()}"' for name, digest in sorted(models.items()))


PINNED_TEMPLATE: Final = _pinned(_FILL_IN_KEY, _FILL_IN_MODEL)
"""A pinned-operator policy with places to fill in; it does not load before they are."""

DEV_TEMPLATE: Final = _dev(DEV_ED25519, f'roots = ["{_FILL_IN_KEY}"]', _FILL_IN_MODEL)
"""The same for a development key."""
