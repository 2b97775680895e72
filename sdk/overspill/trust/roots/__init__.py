"""The vendors' roots that ship with the package; README.md beside them says where each is from.

Reading them is the only file access of ``overspill.trust``: package data, once per process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from overspill.trust.certificates import Certificate, read_pem

_AMD_FILES = tuple(
    f"amd_{product}_{kind}.pem"
    for product in ("milan", "genoa", "turin")
    for kind in ("vcek", "vlek")
)


@dataclass(frozen=True)
class VendorRoots:
    """Self-signed roots by vendor, and intermediates that save their being sent along.

    Intermediates are no anchors: each has to be signed by a root, valid and unrevoked.
    """

    amd: tuple[Certificate, ...]
    intel: tuple[Certificate, ...]
    nvidia: tuple[Certificate, ...]
    nvidia_rim: tuple[Certificate, ...]
    intermediates: tuple[Certificate, ...] = ()


@cache
def vendor_roots() -> VendorRoots:
    """The roots as shipped."""
    amd = [one for name in _AMD_FILES for one in _read(name)]
    roots = {one.der: one for one in amd if one.subject == one.issuer}
    others = {one.der: one for one in amd if one.subject != one.issuer}
    return VendorRoots(
        amd=tuple(roots.values()),
        intel=_read("intel_sgx_root_ca.pem"),
        nvidia=_read("nvidia_identity_ca.pem"),
        nvidia_rim=_read("nvidia_rim_root_ca.pem"),
        intermediates=(*others.values(), *_read("intel_tcb_signing.pem")),
    )


def _read(name: str) -> tuple[Certificate, ...]:
    certificates, _ = read_pem(files(__package__).joinpath(name).read_bytes())
    return certificates
