"""The policy's sections for hardware evidence: SEV-SNP, TDX, TPM, vTPM and GPU.

Debugging and migration are never allowed and have no key. What identifies the software (launch
measurement, registers) has to be listed: without it any guest on genuine hardware would pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from overspill.trust.policy_parts import Table
from overspill.trust.snp_report import PRODUCTS, VERSIONS, component_names

TDX_STATUSES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
"""What a policy may accept; ``Revoked`` is never accepted."""

_SNP_KEYS: Final = frozenset(
    {"products", "min_tcb", "report_versions", "vlek", "crl_required", "measurements", "chips"}
)
_TDX_KEYS: Final = frozenset({"statuses", "mrtd", "rtmr0", "rtmr1", "rtmr2", "fmspcs", "mr_seam"})
_TPM_KEYS: Final = frozenset({"ek_roots", "activation_keys", "ak_roots", "pcrs", "secure_boot"})
_VTPM_KEYS: Final = frozenset({"pcrs", "secure_boot"})
_GPU_KEYS: Final = frozenset({"drivers", "vbioses", "rim_required"})
_PCR_NEVER: Final = (16, 23)


@dataclass(frozen=True, slots=True)
class SnpPolicy:
    """``[sev-snp]``. ``min_tcb`` maps each product to the least version of each component;
    ``chips`` None leaves the chip open."""

    products: frozenset[str]
    min_tcb: Mapping[str, Mapping[str, int]]
    measurements: frozenset[bytes]
    report_versions: frozenset[int] = frozenset(VERSIONS)
    vlek: bool = False
    crl_required: bool = False
    chips: frozenset[bytes] | None = None


@dataclass(frozen=True, slots=True)
class TdxPolicy:
    """``[tdx]``. ``rtmrs`` maps a register's index to its accepted values; None elsewhere leaves
    a thing open."""

    statuses: frozenset[str]
    mrtd: frozenset[bytes]
    rtmrs: Mapping[int, frozenset[bytes]]
    fmspcs: frozenset[bytes] | None = None
    mr_seam: frozenset[bytes] | None = None


@dataclass(frozen=True, slots=True)
class TpmPolicy:
    """``[tpm]``. Roots are DER certificates. A key is believed because a maker's EK certificate
    and the word of an ``activation_keys`` holder say so, or because its own certificate ends in
    ``ak_roots``."""

    ek_roots: tuple[bytes, ...] = ()
    activation_keys: frozenset[bytes] = frozenset()
    ak_roots: tuple[bytes, ...] = ()
    pcrs: Mapping[int, frozenset[bytes]] | None = None
    secure_boot: bool = True


@dataclass(frozen=True, slots=True)
class VtpmPolicy:
    """``[sev-snp-vtpm]``: the vTPM's registers; ``[sev-snp]`` holds for the guest around it."""

    pcrs: Mapping[int, frozenset[bytes]] | None = None
    secure_boot: bool = True


@dataclass(frozen=True, slots=True)
class GpuPolicy:
    """``[nvidia-gpu]``: accepted driver and VBIOS versions; ``rim_required`` demands NVIDIA's
    reference manifests of both, and each measurement as they list it."""

    drivers: frozenset[str]
    vbioses: frozenset[str]
    rim_required: bool = False


def snp_policy(table: Table) -> SnpPolicy:
    """Reads ``[sev-snp]``. Raises ``ConfigurationError``."""
    table.only(_SNP_KEYS)
    products = table.choices("products", PRODUCTS)
    versions = table.integers("report_versions", VERSIONS[0], VERSIONS[-1], default=VERSIONS)
    return SnpPolicy(
        products=frozenset(products),
        min_tcb=_min_tcb(table.section("min_tcb"), products),
        measurements=frozenset(table.hexes("measurements", 48)),
        report_versions=frozenset(versions),
        vlek=table.boolean("vlek", default=False),
        crl_required=table.boolean("crl_required", default=False),
        chips=frozenset(table.hexes("chips", 64)) if "chips" in table else None,
    )


def tdx_policy(table: Table) -> TdxPolicy:
    """Reads ``[tdx]``. Raises ``ConfigurationError``."""
    table.only(_TDX_KEYS)
    rtmrs = {index: frozenset(table.hexes(f"rtmr{index}", 48)) for index in (1, 2)}
    if "rtmr0" in table:
        rtmrs[0] = frozenset(table.hexes("rtmr0", 48))
    return TdxPolicy(
        statuses=frozenset(table.choices("statuses", TDX_STATUSES, default=("UpToDate",))),
        mrtd=frozenset(table.hexes("mrtd", 48)),
        rtmrs=rtmrs,
        fmspcs=frozenset(table.hexes("fmspcs", 6)) if "fmspcs" in table else None,
        mr_seam=frozenset(table.hexes("mr_seam", 48)) if "mr_seam" in table else None,
    )


def tpm_policy(table: Table) -> TpmPolicy:
    """Reads ``[tpm]``. Raises ``ConfigurationError``."""
    table.only(_TPM_KEYS)
    if ("ek_roots" in table) != ("activation_keys" in table):
        raise table.error(
            "ek_roots",
            "and 'activation_keys' go together",
            "Name the makers' roots and the keys of who saw an activation, or neither.",
        )
    if not ("ek_roots" in table or "ak_roots" in table):
        raise table.error(
            "ek_roots", "is missing", "Name ek_roots and activation_keys, or ak_roots."
        )
    is_ek = "ek_roots" in table
    return TpmPolicy(
        ek_roots=table.authorities("ek_roots") if is_ek else (),
        activation_keys=frozenset(table.hexes("activation_keys", 32)) if is_ek else frozenset(),
        ak_roots=table.authorities("ak_roots") if "ak_roots" in table else (),
        pcrs=_pcrs(table.section("pcrs")) if "pcrs" in table else None,
        secure_boot=table.boolean("secure_boot", default=True),
    )


def vtpm_policy(table: Table) -> VtpmPolicy:
    """Reads ``[sev-snp-vtpm]``. Raises ``ConfigurationError``."""
    table.only(_VTPM_KEYS)
    return VtpmPolicy(
        pcrs=_pcrs(table.section("pcrs")) if "pcrs" in table else None,
        secure_boot=table.boolean("secure_boot", default=True),
    )


def gpu_policy(table: Table) -> GpuPolicy:
    """Reads ``[nvidia-gpu]``. Raises ``ConfigurationError``."""
    table.only(_GPU_KEYS)
    return GpuPolicy(
        drivers=frozenset(table.strings("drivers")),
        vbioses=frozenset(table.strings("vbioses")),
        rim_required=table.boolean("rim_required", default=False),
    )


def _min_tcb(table: Table, products: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """A floor for each accepted product and no other, each with all of its components."""
    table.only(frozenset(products))
    floors = {}
    for product in products:
        section, names = table.section(product), component_names(product)
        section.only(frozenset(names))
        floors[product] = {name: section.integer(name, 0, 255) for name in names}
    return floors


def _pcrs(table: Table) -> dict[int, frozenset[bytes]]:
    """Accepted values by register; those that can be reset at will are refused by name."""
    known = [str(index) for index in range(24) if index not in _PCR_NEVER]
    table.only(frozenset(known))
    found = {int(key): frozenset(table.hexes(key, 32)) for key in known if key in table}
    if not found:
        raise table.error("0", "to '22' are all missing", "List a register, or leave pcrs out.")
    return found
