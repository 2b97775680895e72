"""The verifier's policy: what evidence has to prove, as strict TOML.

::

    version = 1
    min_assurance = "SOFTWARE"        # NONE < SOFTWARE < HARDWARE_TPM < HARDWARE_TEE (default)
    accept = ["pinned-operator"]      # evidence types; each has its own section below
    freshness = "nonce"               # a challenge per connection; "witnesses" needs [log]
    max_age_s = 3600                  # a key is accepted for this long after not_before
    kems = ["MLKEM768_X25519"]        # and "X25519"
    dev_unsafe = false                # true lets development evidence pass, on loopback only
    closed = ["swap", "ptrace"]       # optional: what the node has to have closed, see closed.py

    [reference]                       # what the node may run: exactly these
    models = { river = "<sha256 of its file>" }
    adapters = { }                    # optional: "model/adapter" = sha256
    configs = ["<sha256>"]            # optional; so are wheels and engines

    [release]                         # optional: what runs has to be released, see release_policy
    keys = ["<Ed25519 public key, hex>"]
    [log]                             # and logged
    key = "<origin>+<hash>+<base64>"
    [log.witnesses]                   # and seen by two of these operators' witnesses
    "Alice" = ["alice.example/w1+<hash>+<base64>"]

    [pinned-operator]
    keys = ["<Ed25519 public key, hex>"]

    [dev-ed25519]
    roots = ["<Ed25519 public key, hex>"]

    [dev-tpm-software]
    ek_roots = ["<PEM certificate>"]

    [sev-snp]
    products = ["Milan", "Genoa", "Turin"]
    measurements = ["<48 bytes, hex>"]  # launch measurements of the released image
    vlek = false                      # true also accepts keys that a cloud provider loads
    crl_required = false              # true demands AMD's CRL beside the report
    report_versions = [2, 3, 4, 5]    # optional
    chips = ["<64 bytes, hex>"]       # optional: these chips only
    [sev-snp.min_tcb.Milan]           # one for each product; Turin has 'fmc' too
    bootloader = 4
    tee = 0
    snp = 22
    microcode = 213

    [tdx]
    statuses = ["UpToDate"]           # Intel's words for the platform's TCB
    mrtd = ["<48 bytes, hex>"]        # firmware
    rtmr1 = ["<48 bytes, hex>"]       # kernel
    rtmr2 = ["<48 bytes, hex>"]       # initrd and command line; rtmr0 is optional
    fmspcs = ["<6 bytes, hex>"]       # optional: these platforms only

    [tpm]
    ek_roots = ["<PEM certificate>"]  # of the TPM's maker
    activation_keys = ["<Ed25519 public key, hex>"]  # who saw the key activated
    ak_roots = ["<PEM certificate>"]  # instead of both: who certifies attestation keys
    secure_boot = true                # demanded from the replayed event log
    pcrs = { 7 = ["<32 bytes, hex>"] }  # optional; never 16 or 23

    [nvidia-gpu]                      # beside the evidence of the machine
    drivers = ["570.00"]
    vbioses = ["96.00.9F.00.01"]
    rim_required = false              # true demands NVIDIA's manifests, and compares with them

Unknown keys, wrong types, a missing section for an accepted type and empty lists are errors at
load: an empty list never means "any".
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from overspill.errors import ConfigurationError
from overspill.trust import policy_parts as parts
from overspill.trust.closed import CLOSABLE
from overspill.trust.log.cosignature import LogPolicy
from overspill.trust.policy_vendors import (
    GpuPolicy,
    SnpPolicy,
    TdxPolicy,
    TpmPolicy,
    VtpmPolicy,
    gpu_policy,
    snp_policy,
    tdx_policy,
    tpm_policy,
    vtpm_policy,
)
from overspill.trust.release_policy import KEYS, ReleasePolicy, release_and_log
from overspill.types.evidence import Assurance

MAX_AGE_LIMIT_S: Final = 3600
KEM_IDS: Final = MappingProxyType({"MLKEM768_X25519": 0x647A, "X25519": 0x0020})

PINNED: Final = "pinned-operator"
DEV_ED25519: Final = "dev-ed25519"
DEV_TPM: Final = "dev-tpm-software"
DEV_TYPES: Final = frozenset({DEV_ED25519, DEV_TPM})
SNP: Final = "sev-snp"
TDX: Final = "tdx"
TPM: Final = "tpm"
SNP_VTPM: Final = "sev-snp-vtpm"
GPU: Final = "nvidia-gpu"
ASSURANCE_OF: Final = MappingProxyType(
    {
        DEV_ED25519: Assurance.NONE,
        DEV_TPM: Assurance.NONE,
        PINNED: Assurance.SOFTWARE,
        TPM: Assurance.HARDWARE_TPM,
        SNP: Assurance.HARDWARE_TEE,
        SNP_VTPM: Assurance.HARDWARE_TEE,
        TDX: Assurance.HARDWARE_TEE,
    }
)
"""What evidence of each type stands for; ``nvidia-gpu`` stands beside one of them."""

CONFIGURABLE_TYPES: Final = frozenset(ASSURANCE_OF) | {GPU}

_TOP_KEYS: Final = frozenset(
    {
        "version",
        "min_assurance",
        "accept",
        "freshness",
        "max_age_s",
        "kems",
        "dev_unsafe",
        "closed",
        "reference",
    }
    | KEYS
)
_REFERENCE_KEYS: Final = frozenset({"models", "adapters", "configs", "wheels", "engines"})


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """What a node may run. ``None`` leaves a kind to whoever vouches for the node.

    ``models`` and ``adapters`` (keyed ``model/adapter``) map a name to its SHA-256. ``by_release``
    leaves all of it to the release that the policy demands.
    """

    models: Mapping[str, bytes] = field(default_factory=dict)
    adapters: Mapping[str, bytes] = field(default_factory=dict)
    configs: frozenset[bytes] | None = None
    wheels: frozenset[bytes] | None = None
    engines: frozenset[bytes] | None = None
    by_release: bool = False


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """A loaded policy. ``sha256`` is of its text, and goes into every attestation result."""

    sha256: bytes
    source: str
    min_assurance: Assurance = Assurance.HARDWARE_TEE
    accept: frozenset[str] = frozenset({SNP, TDX})
    freshness: str = "witnesses"
    max_age_s: int = MAX_AGE_LIMIT_S
    kems: frozenset[int] = frozenset({KEM_IDS["MLKEM768_X25519"]})
    dev_unsafe: bool = False
    reference: ReferenceValues = ReferenceValues()
    closed: frozenset[str] = frozenset()
    dev_roots: frozenset[bytes] = frozenset()
    operator_keys: frozenset[bytes] = frozenset()
    release: ReleasePolicy | None = None
    log: LogPolicy | None = None
    ek_roots: tuple[bytes, ...] = ()
    """DER certificates of the development authorities for software TPMs."""
    snp: SnpPolicy | None = None
    tdx: TdxPolicy | None = None
    tpm: TpmPolicy | None = None
    vtpm: VtpmPolicy | None = None
    gpu: GpuPolicy | None = None


def default_policy() -> TrustPolicy:
    """What holds without a policy file: a hardware TEE or nothing."""
    return TrustPolicy(
        hashlib.sha256(b"overspill/default-policy/v1").digest(), "the default policy"
    )


def load_policy(path: Path) -> TrustPolicy:
    """Reads and parses a policy file. Raises ``ConfigurationError`` naming file, key and mend."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The trust policy {path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            mend="Check the path, or write one with: overspill trust init",
        ) from error
    return parse_policy(text, source=str(path))


def parse_policy(text: str, source: str = "the trust policy") -> TrustPolicy:
    """Parses a policy strictly. Raises ``ConfigurationError`` naming ``source``, key and mend."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # no TOML, or a number of thousands of digits
        raise ConfigurationError(
            f"{source} is not valid TOML: {error}.", mend="Correct the file."
        ) from error
    table = parts.Table(raw, source)
    accept = _accepted(table)
    table.only(_TOP_KEYS | accept | ({SNP} if SNP_VTPM in accept else frozenset()))
    table.one_of("version", (1,))
    policy = TrustPolicy(
        sha256=hashlib.sha256(text.encode("utf-8")).digest(),
        source=source,
        min_assurance=Assurance[
            table.one_of("min_assurance", tuple(a.name for a in Assurance), default="HARDWARE_TEE")
        ],
        accept=accept,
        max_age_s=table.integer("max_age_s", 1, MAX_AGE_LIMIT_S, default=MAX_AGE_LIMIT_S),
        kems=_kems(table),
        dev_unsafe=table.boolean("dev_unsafe", default=False),
        **release_and_log(table, production=bool(accept - DEV_TYPES - {PINNED})),
        reference=_reference(table),
        closed=frozenset(table.choices("closed", CLOSABLE) if "closed" in table else ()),
        **_sections(table, accept),
    )
    _check_floor(policy, table)
    return policy


def _accepted(table: parts.Table) -> frozenset[str]:
    names = frozenset(table.strings("accept"))
    for name in sorted(names - CONFIGURABLE_TYPES):
        known = ", ".join(sorted(CONFIGURABLE_TYPES))
        raise table.error("accept", f"names '{name}', which is unknown", f"Use some of: {known}.")
    if names == {GPU}:
        raise table.error("accept", f"names '{GPU}' alone", "Name the machine's evidence too.")
    return names


def _kems(table: parts.Table) -> frozenset[int]:
    names = table.strings("kems", default=("MLKEM768_X25519",))
    for name in names:
        if name not in KEM_IDS:
            known = ", ".join(KEM_IDS)
            raise table.error("kems", f"names the unknown KEM '{name}'", f"Use some of: {known}.")
    return frozenset(KEM_IDS[name] for name in names)


def _reference(whole: parts.Table) -> ReferenceValues:
    """What the policy itself lists; it has to, unless it demands a release that does."""
    if "release" in whole and "reference" not in whole:
        return ReferenceValues(by_release=True)
    table = whole.section("reference")
    table.only(_REFERENCE_KEYS)
    return ReferenceValues(
        models=table.digests_by_name("models"),
        adapters=table.digests_by_name("adapters") if "adapters" in table else {},
        configs=_pinned(table, "configs"),
        wheels=_pinned(table, "wheels"),
        engines=_pinned(table, "engines"),
    )


def _pinned(table: parts.Table, key: str) -> frozenset[bytes] | None:
    return frozenset(table.hexes(key, 32)) if key in table else None


def _sections(table: parts.Table, accept: frozenset[str]) -> dict[str, Any]:
    """The settings of each accepted type, from its own section and nowhere else."""
    found: dict[str, Any] = {}
    if PINNED in accept:
        section = table.section(PINNED)
        section.only(frozenset({"keys"}))
        found["operator_keys"] = frozenset(section.hexes("keys", 32))
    if DEV_ED25519 in accept:
        section = table.section(DEV_ED25519)
        section.only(frozenset({"roots"}))
        found["dev_roots"] = frozenset(section.hexes("roots", 32))
    if DEV_TPM in accept:
        section = table.section(DEV_TPM)
        section.only(frozenset({"ek_roots"}))
        found["ek_roots"] = section.certificates("ek_roots")
    return found | _vendor_sections(table, accept)


def _vendor_sections(table: parts.Table, accept: frozenset[str]) -> dict[str, Any]:
    """The settings of accepted hardware types; a vTPM in a guest needs those of both."""
    found: dict[str, Any] = {}
    if accept & {SNP, SNP_VTPM}:
        found["snp"] = snp_policy(table.section(SNP))
    if TDX in accept:
        found["tdx"] = tdx_policy(table.section(TDX))
    if TPM in accept:
        found["tpm"] = tpm_policy(table.section(TPM))
    if SNP_VTPM in accept:
        found["vtpm"] = vtpm_policy(table.section(SNP_VTPM))
    if GPU in accept:
        found["gpu"] = gpu_policy(table.section(GPU))
    return found


def _check_floor(policy: TrustPolicy, table: parts.Table) -> None:
    """The floor has to say plainly what the accepted types can ever give."""
    accepts_dev = bool(policy.accept & DEV_TYPES)
    if accepts_dev != policy.dev_unsafe:
        have = "accepts development evidence" if accepts_dev else "names no development root"
        raise table.error(
            "dev_unsafe",
            f"is {str(policy.dev_unsafe).lower()}, but the policy {have}",
            "Say both or neither: dev_unsafe = true, and a dev type in accept with its root.",
        )
    wanted = min(ASSURANCE_OF[kind] for kind in policy.accept - {GPU})
    if policy.min_assurance is not wanted:
        raise table.error(
            "min_assurance",
            f"is {policy.min_assurance.name}, which what the policy accepts "
            f"({', '.join(sorted(policy.accept))}) does not stand for",
            f'Say min_assurance = "{wanted.name}" if that is meant.',
        )
    if accepts_dev and policy.accept - DEV_TYPES:
        raise table.error(
            "accept", "mixes development evidence with other", "Use a policy file for each."
        )
