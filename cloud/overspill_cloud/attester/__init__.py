"""What vouches for a node: one module per kind of evidence, opened by name."""

from __future__ import annotations

from pathlib import Path

from overspill.errors import UsageError
from overspill_cloud.attester.base import Attester

DEV_KEY_FILE = "dev-ed25519.key"
DEV_ROOT_FILE = "dev-ed25519.pub"
OPERATOR_KEY_FILE = "operator.key"


def open_attester(kind: str, state: Path) -> Attester:
    """The attester of a kind: ``dev``, ``pinned``, ``tpm`` (a software TPM of the node's own) or
    ``tpm:TCTI`` (one that runs already, e.g. ``tpm:swtpm:host=127.0.0.1,port=2321``).

    Keys lie in the ``state`` folder; what a policy has to name lies beside them: the development
    key's public half, or the software TPM's authority. Raises ``UsageError`` for another kind,
    ``ConfigurationError`` for a key or a TPM that cannot be used, ``MissingExtra``.
    """
    name, _, tcti = kind.partition(":")
    if name == "tpm":
        from overspill_cloud.attester.tpm import open_tpm

        return open_tpm(state, tcti)
    if kind == "dev":
        return _dev(state)
    if kind == "pinned":
        from overspill_cloud.attester.pinned import PinnedOperatorAttester

        return PinnedOperatorAttester.from_file(state / OPERATOR_KEY_FILE)
    raise UsageError(f"'{kind}' is no attester.", mend="Use dev, pinned, tpm or tpm:TCTI.")


def _dev(state: Path) -> Attester:
    from overspill_cloud.attester.dev import UnsafeDevAttester

    attester = UnsafeDevAttester.from_file(state / DEV_KEY_FILE)
    (state / DEV_ROOT_FILE).write_text(attester.root.hex() + "\n", encoding="ascii")
    return attester
