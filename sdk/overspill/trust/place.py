"""Step 3: development evidence counts on loopback and Unix sockets only, whatever a policy says."""

from __future__ import annotations

import ipaddress

from overspill.errors import EvidenceRejected
from overspill.trust.base import EvidenceVerifier
from overspill.trust.nkc import NodeKeyConfig

_STEP = "3"
_LOCAL_SCHEMES = ("unix:", "memory:")


def check(config: NodeKeyConfig, verifier: EvidenceVerifier, address: str, is_local: bool) -> str:
    """Raises ``EvidenceRejected``: ``mode_mismatch`` or ``dev_not_local``.

    The transport's word (``is_local``) and the address have to agree: either alone is not enough.
    """
    if config.is_dev != verifier.dev:
        raise EvidenceRejected(
            "mode_mismatch",
            _STEP,
            expected=f"a {_mode(verifier.dev)} configuration for {verifier.evidence_type}",
            actual=f"a {_mode(config.is_dev)} one",
        )
    if verifier.dev and not (is_local and is_loopback(address)):
        raise EvidenceRejected(
            "dev_not_local",
            _STEP,
            expected="a loopback address or a Unix socket for development evidence",
            actual=address[:256],
            mend="Development evidence is never accepted from another machine.",
        )
    return "development evidence, on this machine" if verifier.dev else "any address"


def is_loopback(address: str) -> bool:
    """True for ``unix:...``, in-process transports, ``localhost`` and loopback IPs with a port."""
    if address.startswith(_LOCAL_SCHEMES):
        return True
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _mode(dev: bool) -> str:
    return "development" if dev else "production"
