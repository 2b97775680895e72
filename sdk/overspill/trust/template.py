"""Trust policies to start from: with values, or with places to fill in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from overspill.errors import UsageError
from overspill.trust.policy import DEV_ED25519, DEV_TPM, PINNED

_HEAD: Final = """\
# What a node has to prove before anything is sealed to it. An empty list never means "any".
version = 1
min_assurance = "{floor}"        # NONE < SOFTWARE < HARDWARE_TPM < HARDWARE_TEE
accept = ["{kind}"]      # types of evidence; each has its section below
freshness = "nonce"               # the node answers a fresh challenge
max_age_s = 3600                  # keys are used for this long after they were made
kems = ["MLKEM768_X25519"]        # post-quantum hybrid; "X25519" may be added
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

_FILL_IN_MODEL: Final = 'NAME = "<SHA-256 of the model file, 64 hexadecimal digits>"'
_FILL_IN_KEY: Final = "<Ed25519 public key, 64 hexadecimal digits>"


def pinned_policy(operator_key: bytes, models: Mapping[str, bytes]) -> str:
    """A policy that pins one operator's key. ``models`` maps names to SHA-256 digests."""
    return _pinned(operator_key.hex(), _models(models))


def dev_policy(root: bytes, models: Mapping[str, bytes]) -> str:
    """A policy for one development key, on loopback only."""
    return _dev(DEV_ED25519, f'roots = ["{root.hex()}"]', _models(models))


def tpm_dev_policy(ek_root_pem: str, models: Mapping[str, bytes]) -> str:
    """A policy for software TPMs under one development authority, on loopback only."""
    return _dev(DEV_TPM, f'ek_roots = ["""\n{ek_root_pem.strip()}\n"""]', _models(models))


def _pinned(key: str, models: str) -> str:
    head = _HEAD.format(floor="SOFTWARE", kind=PINNED)
    section = (
        f'# The operator\'s key, compared by hand: who runs the node, not what.\nkeys = ["{key}"]'
    )
    return head + _REFERENCE.format(models=models, kind=PINNED) + section + "\n"


def _dev(kind: str, section: str, models: str) -> str:
    head = _HEAD.format(floor="NONE", kind=kind) + _DEV
    return head + _REFERENCE.format(models=models, kind=kind) + section + "\n"


def _models(models: Mapping[str, bytes]) -> str:
    if not models or any(len(digest) != 32 for digest in models.values()):
        raise UsageError("A policy names at least one model with its SHA-256 digest.")
    if any(set(name) & set('"\\\n\r\t') or not name.isprintable() for name in models):
        raise UsageError("A model's name in a policy has no quotes, backslashes or line breaks.")
    return ", ".join(f'"{name}" = "{digest.hex()}"' for name, digest in sorted(models.items()))


PINNED_TEMPLATE: Final = _pinned(_FILL_IN_KEY, _FILL_IN_MODEL)
"""A pinned-operator policy with places to fill in; it does not load before they are."""

DEV_TEMPLATE: Final = _dev(DEV_ED25519, f'roots = ["{_FILL_IN_KEY}"]', _FILL_IN_MODEL)
"""The same for a development key."""
