"""What vouches for a node: one module per kind of evidence, opened by name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from overspill.errors import UsageError
from overspill.trust.snp import TYPE as SEV_SNP
from overspill.trust.tdx import TYPE as TDX
from overspill_cloud.attester import sev_snp, tdx
from overspill_cloud.attester.base import Attester
from overspill_cloud.attester.tsm import TsmReports, provider_here

DEV_KEY_FILE = "dev-ed25519.key"
DEV_ROOT_FILE = "dev-ed25519.pub"
OPERATOR_KEY_FILE = "operator.key"
AUTO: Final = "auto"
HARDWARE_TPM: Final = "hardware-tpm"
KINDS: Final = "auto, sev-snp, tdx, hardware-tpm, pinned, dev, tpm or tpm:TCTI"
_OF_PROVIDER: Final = {sev_snp.PROVIDER: SEV_SNP, tdx.PROVIDER: TDX}


def choose_attester(kind: str, state: Path) -> str:
    """``kind``, or for ``auto`` what this machine has: a guest's own reports, else the operator's
    key where there is one in ``state``, else development evidence, which proves nothing."""
    if kind != AUTO:
        return kind
    provider = provider_here()
    if provider in _OF_PROVIDER:
        return _OF_PROVIDER[provider]
    return "pinned" if (state / OPERATOR_KEY_FILE).exists() else "dev"


def open_attester(kind: str, state: Path) -> Attester:
    """The attester of a kind: ``sev-snp`` or ``tdx`` (a guest's reports, by the kernel),
    ``hardware-tpm`` (the machine's own; ``hardware-tpm:TCTI`` for another way to it), ``dev``,
    ``pinned``, ``tpm`` (a software TPM of the node's own) or ``tpm:TCTI`` (one that runs already,
    e.g. ``tpm:swtpm:host=127.0.0.1,port=2321``); ``auto`` as :func:`choose_attester` says.

    Keys lie in the ``state`` folder; what a policy has to name lies beside them: the development
    key's public half, or the software TPM's authority. Certificates and Intel's documents are read
    from its folders ``sev-snp`` and ``tdx``. Raises ``UsageError`` for another kind,
    ``ConfigurationError`` for a key, a TPM or a machine that cannot be used, ``MissingExtra``.
    """
    kind = choose_attester(kind, state)
    name, _, tcti = kind.partition(":")
    if name == "tpm":
        from overspill_cloud.attester.tpm import open_tpm

        return open_tpm(state, tcti)
    if name == HARDWARE_TPM:
        from overspill_cloud.attester.hardware_tpm import open_hardware_tpm

        return open_hardware_tpm(state, tcti)
    if kind == SEV_SNP:
        return sev_snp.SevSnpAttester(TsmReports(), state / sev_snp.CERTIFICATES_FOLDER)
    if kind == TDX:
        return tdx.TdxAttester(TsmReports(), state / tdx.COLLATERAL_FOLDER)
    if kind == "dev":
        return _dev(state)
    if kind == "pinned":
        from overspill_cloud.attester.pinned import PinnedOperatorAttester

        return PinnedOperatorAttester.from_file(state / OPERATOR_KEY_FILE)
    raise UsageError(f"'{kind}' is no attester.", mend=f"Use {KINDS}.")


def _dev(state: Path) -> Attester:
    from overspill_cloud.attester.dev import UnsafeDevAttester

    attester = UnsafeDevAttester.from_file(state / DEV_KEY_FILE)
    (state / DEV_ROOT_FILE).write_text(attester.root.hex() + "\n", encoding="ascii")
    return attester
