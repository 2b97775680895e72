"""The verifier's policy: what evidence has to prove, as strict TOML.

::

    version = 1
    min_assurance = "SOFTWARE"        # NONE < SOFTWARE < HARDWARE_TPM < HARDWARE_TEE (default)
    accept = ["pinned-operator"]      # evidence types; each has its own section below
    freshness = "nonce"               # a challenge per connection; "witnesses" needs [log]
    max_age_s = 3600                  # a key is accepted for this long after not_before
    kems = ["MLKEM768_X25519"]        # and "X25519"
    dev_unsafe = false                # true lets development evidence pass, on loopback only

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
from overspill.trust.log.cosignature import LogPolicy
from overspill.trust.release_policy import SECTIONS, ReleasePolicy, release_and_log
from overspill.types.evidence import Assurance

MAX_AGE_LIMIT_S: Final = 3600
KEM_IDS: Final = MappingProxyType({"MLKEM768_X25519": 0x647A, "X25519": 0x0020})

PINNED: Final = "pinned-operator"
DEV_ED25519: Final = "dev-ed25519"
DEV_TPM: Final = "dev-tpm-software"
DEV_TYPES: Final = frozenset({DEV_ED25519, DEV_TPM})
CONFIGURABLE_TYPES: Final = DEV_TYPES | {PINNED}
HARDWARE_TYPES: Final = frozenset({"sev-snp", "tdx", "tpm", "nvidia-gpu"})
"""Types whose names are reserved; this version has no verifiers for them."""

_TOP_KEYS: Final = frozenset(
    {
        "version",
        "min_assurance",
        "accept",
        "freshness",
        "max_age_s",
        "kems",
        "dev_unsafe",
        "reference",
    }
    | SECTIONS
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
    accept: frozenset[str] = frozenset({"sev-snp", "tdx"})
    freshness: str = "witnesses"
    max_age_s: int = MAX_AGE_LIMIT_S
    kems: frozenset[int] = frozenset({KEM_IDS["MLKEM768_X25519"]})
    dev_unsafe: bool = False
    reference: ReferenceValues = ReferenceValues()
    dev_roots: frozenset[bytes] = frozenset()
    operator_keys: frozenset[bytes] = frozenset()
    release: ReleasePolicy | None = None
    log: LogPolicy | None = None
    ek_roots: tuple[bytes, ...] = ()
    """DER certificates of the development authorities for software TPMs."""


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
            f"The trust policy {path} cannot be read: {error}.",
            mend="Check the path, or write one with: overspill trust init",
        ) from error
    return parse_policy(text, source=str(path))


def parse_policy(text: str, source: str = "the trust policy") -> TrustPolicy:
    """Parses a policy strictly. Raises ``ConfigurationError`` naming ``source``, key and mend."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"{source} is not valid TOML: {error}.", mend="Correct the file."
        ) from error
    table = parts.Table(raw, source)
    accept = _accepted(table)
    table.only(_TOP_KEYS | accept)
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
        reference=_reference(table),
        **release_and_log(table),
        **_sections(table, accept),
    )
    _check_floor(policy, table)
    return policy


def _accepted(table: parts.Table) -> frozenset[str]:
    names = frozenset(table.strings("accept"))
    for name in sorted(names - CONFIGURABLE_TYPES):
        what = "cannot be verified by this version yet" if name in HARDWARE_TYPES else "is unknown"
        known = ", ".join(sorted(CONFIGURABLE_TYPES))
        raise table.error("accept", f"names '{name}', which {what}", f"Use some of: {known}.")
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
    wanted = Assurance.NONE if accepts_dev else Assurance.SOFTWARE
    if policy.min_assurance is not wanted:
        raise table.error(
            "min_assurance",
            f"is {policy.min_assurance.name}, which what the policy accepts "
            f"({', '.join(sorted(policy.accept))}) does not stand for",
            f'Say min_assurance = "{wanted.name}" if that is meant.',
        )
    if accepts_dev and PINNED in policy.accept:
        raise table.error(
            "accept", "mixes development and pinned evidence", "Use a policy file for each."
        )
