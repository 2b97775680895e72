"""Writes appraisal policies: a documented file to start from, strict in every line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from overspill.errors import UsageError
from overspill.trust.policy import DEV_ED25519, DEV_TPM, PINNED, parse_policy

_INTRODUCTIONS = {
    PINNED: (
        "# The operator's key vouches for the node. This is called pinned, never attested: no\n"
        "# hardware stands behind it, and it never satisfies the privacy floor 'attested'.\n"
    ),
    DEV_ED25519: (
        "# A development key vouches for the node: it proves nothing about hardware, and only this\n"
        "# file, for this machine alone, lets it pass. The default policy refuses it.\n"
    ),
    DEV_TPM: (
        "# A software TPM vouches for the node: the whole flow of a TPM, and no hardware. Only this\n"
        "# file, for this machine alone, lets it pass. The default policy refuses it.\n"
    ),
}
_SECTION_KEY = {PINNED: "keys", DEV_ED25519: "roots", DEV_TPM: "ek_roots"}


def policy_text(evidence_type: str, anchors: Sequence[str], models: Mapping[str, str]) -> str:
    """A policy for one evidence type, as TOML that :func:`parse_policy` accepts.

    ``anchors`` are the keys (hex) or certificates (PEM) that the type trusts; ``models`` maps the
    names a node may serve to the SHA-256 (hex) of their files. Raises ``UsageError`` for another
    type and ``ConfigurationError`` for values that the strict reading refuses.
    """
    if evidence_type not in _INTRODUCTIONS:
        known = ", ".join(_INTRODUCTIONS)
        raise UsageError(f"No policy is written for '{evidence_type}'.", mend=f"Use: {known}.")
    dev = evidence_type != PINNED
    references = ", ".join(f"{json.dumps(n)} = {json.dumps(d)}" for n, d in models.items())
    lines = [
        f"{_INTRODUCTIONS[evidence_type]}version = 1",
        f'min_assurance = "{"NONE" if dev else "SOFTWARE"}"',
        f'accept = ["{evidence_type}"]',
        'freshness = "nonce"  # a challenge at first contact',
        *(["dev_unsafe = true"] if dev else []),
        "",
        "[reference]  # what the node may run: exactly these",
        f"models = {{ {references} }}",
        "",
        f"[{evidence_type}]",
        f"{_SECTION_KEY[evidence_type]} = {json.dumps(list(anchors))}",
        "",
    ]
    text = "\n".join(lines)
    parse_policy(text, "the new policy")
    return text
