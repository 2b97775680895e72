"""The policy's ``[release]`` and ``[log]``: whose releases count, and where they must be logged.

::

    [release]
    keys = ["<Ed25519 public key, hex>", ...]    # who may sign
    threshold = 2                                # how many of them have to
    floor_seq = 12                               # optional: no older release than this

    [log]
    key = "<origin>+<hash>+<base64>"             # the log's key as a C2SP vkey
    origin = "releases.example/log"              # optional: where the key has another name
    quorum = 2                                   # operators whose witnesses have to have cosigned

    [log.witnesses]                              # by operator: three keys of one count once
    "Alice" = ["alice.example/w1+<hash>+<base64>"]

A policy that accepts hardware evidence has both sections, or says in so many words that it lists
what may run by itself: ``unreleased = true``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from overspill.errors import LogInvalid
from overspill.trust.log.cosignature import LogPolicy, Witness
from overspill.trust.log.encoding import MAX_SIZE
from overspill.trust.log.note import COSIGNATURE_V1, ED25519, ML_DSA_44, VerifierKey
from overspill.trust.policy_parts import Table

KEYS: Final = frozenset({"release", "log", "unreleased"})
DEFAULT_QUORUM: Final = 2
_LOG_KEYS: Final = frozenset({"key", "origin", "quorum", "witnesses"})


@dataclass(frozen=True, slots=True)
class ReleasePolicy:
    """Who signs releases (Ed25519 keys, 32 bytes each), how many have to, and since when."""

    keys: frozenset[bytes]
    threshold: int
    floor_seq: int = 0


def release_and_log(table: Table, *, production: bool) -> dict[str, Any]:
    """The policy's ``freshness``, ``release`` and ``log``; the last two None without a section.

    Raises ``ConfigurationError``: releases and their log come together, a ``production`` policy
    demands them or says that it does not, and ``freshness = "witnesses"``, which is the default,
    needs a log with witnesses.
    """
    unreleased = table.boolean("unreleased", default=False)
    if unreleased and "release" in table:
        raise table.error("unreleased", "is true beside [release]", "Keep one of them.")
    if production and not unreleased and "release" not in table:
        raise table.error(
            "release",
            "is missing, and the policy accepts hardware evidence",
            "Add [release] and [log], or say unreleased = true: [reference] then lists what runs.",
        )
    if ("release" in table) != ("log" in table):
        lone, missing = ("release", "log") if "release" in table else ("log", "release")
        raise table.error(lone, f"is there without [{missing}]", f"Add the section [{missing}].")
    log = _log(table.section("log")) if "log" in table else None
    release = _release(table.section("release")) if "release" in table else None
    freshness = table.one_of("freshness", ("nonce", "witnesses"), default="witnesses")
    if freshness == "witnesses" and (log is None or not log.witnesses):
        raise table.error(
            "freshness",
            "asks for witnesses, and the policy names none",
            'Add [log.witnesses], or say freshness = "nonce": a node then has to answer a fresh '
            "challenge.",
        )
    return {"freshness": freshness, "release": release, "log": log}


def _release(table: Table) -> ReleasePolicy:
    table.only(frozenset({"keys", "threshold", "floor_seq"}))
    keys = table.hexes("keys", 32)
    if len(set(keys)) != len(keys):
        raise table.error("keys", "names a key twice", "Name each key once.")
    if len(keys) > 1 and "threshold" not in table:
        raise table.error("threshold", "is missing", "Say how many of the keys have to sign.")
    return ReleasePolicy(
        keys=frozenset(keys),
        threshold=table.integer("threshold", 1, len(keys), default=1),
        floor_seq=table.integer("floor_seq", 0, MAX_SIZE, default=0),
    )


def _log(table: Table) -> LogPolicy:
    table.only(_LOG_KEYS)
    key = _key(table, "key", table.text("key"), ED25519)
    origin = table.text("origin", default=key.name)
    if "witnesses" not in table:
        if "quorum" in table:
            raise table.error("quorum", "is of no witnesses", "Add [log.witnesses].")
        return LogPolicy(origin, key)
    witnesses = _witnesses(table.section("witnesses"), key)
    operators = {witness.operator for witness in witnesses}
    default = min(DEFAULT_QUORUM, len(operators))
    quorum = table.integer("quorum", 1, len(operators), default=default)
    return LogPolicy(origin, key, witnesses, quorum)


def _witnesses(table: Table, log_key: VerifierKey) -> tuple[Witness, ...]:
    witnesses = [
        Witness(operator, _key(table, operator, text, COSIGNATURE_V1, ML_DSA_44))
        for operator in table.names()
        for text in table.strings(operator)
    ]
    if not witnesses:
        raise table.error("witnesses", "is empty", "Name operators and their witnesses' keys.")
    seen = {log_key.public: "the log's own"}
    for witness in witnesses:
        whose = seen.get(witness.key.public)
        if whose is not None:
            raise table.error(
                witness.operator, f"names a key that is {whose}", "Each witness has its own key."
            )
        seen[witness.key.public] = f"also {witness.operator}'s"
    return tuple(witnesses)


def _key(table: Table, name: str, text: str, *kinds: int) -> VerifierKey:
    types = " or ".join(f"{kind:#04x}" for kind in kinds)
    mend = f"Give a C2SP verifier key of type {types}: <name>+<hash>+<base64>."
    try:
        key = VerifierKey.parse(text)
    except LogInvalid as error:
        raise table.error(name, f"holds no verifier key: {error.actual}", mend) from error
    if key.kind not in kinds:
        raise table.error(name, f"holds a key of type {key.kind:#04x}", mend)
    return key
