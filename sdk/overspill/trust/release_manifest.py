"""The release manifest: an in-toto Statement v1 about everything that a node runs.

Subjects are named by role: ``wheel/...``, ``engine/...``, ``model/NAME`` (and
``model/NAME/tokenizer``, ``model/NAME/template`` where they are files of their own),
``adapter/MODEL/NAME`` and ``config/...``. A digest set has ``sha256`` of the file,
``overspill-tree-v1`` of what a node measures after installing it, or both. The predicate::

    {"version": "0.1.0", "release_seq": 7, "security_floor_seq": 3, "not_after": 1800000000,
     "measurements": {"sev-snp": {"measurement": ["<hex>"]}}}

``measurements`` lists, by evidence type and claim, the values that hardware may report.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from overspill.trust.log.encoding import MAX_SIZE
from overspill.trust.policy import ReferenceValues
from overspill.trust.release_envelope import fields, malformed, parse_json, refused, text

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://github.com/overspill/overspill/release/v1"
FILE_DIGEST: Final = "sha256"
TREE_DIGEST: Final = "overspill-tree-v1"
ROLES: Final = ("wheel", "engine", "model", "adapter", "config")
_MAX_SUBJECTS: Final = 512
_MAX_NAME: Final = 300
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")
_NO_MEASUREMENTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Subject:
    """One released thing. ``digests`` maps an algorithm's name to 32 bytes."""

    role: str
    name: str
    digests: Mapping[str, bytes]

    @property
    def measured(self) -> bytes:
        """The digest that a node measures: of the installed tree where there is one."""
        return self.digests.get(TREE_DIGEST) or self.digests[FILE_DIGEST]

    def as_json(self) -> dict[str, Any]:
        """The in-toto resource descriptor."""
        digests = {name: value.hex() for name, value in sorted(self.digests.items())}
        return {"name": f"{self.role}/{self.name}", "digest": digests}


@dataclass(frozen=True, slots=True)
class ReleaseManifest:
    """What a release is. ``not_after`` is in Unix seconds; ``security_floor_seq`` is the oldest
    release that is still safe: a client that has seen this one takes none below it."""

    version: str
    release_seq: int
    security_floor_seq: int
    not_after: int
    subjects: tuple[Subject, ...]
    measurements: Mapping[str, Mapping[str, tuple[str, ...]]] = field(
        default_factory=lambda: _NO_MEASUREMENTS
    )

    def encode(self) -> bytes:
        """The DSSE payload."""
        measurements = {
            kind: {claim: list(values) for claim, values in claims.items()}
            for kind, claims in self.measurements.items()
        }
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [subject.as_json() for subject in self.subjects],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "version": self.version,
                "release_seq": self.release_seq,
                "security_floor_seq": self.security_floor_seq,
                "not_after": self.not_after,
                "measurements": measurements,
            },
        }
        return json.dumps(statement, separators=(",", ":"), sort_keys=True).encode("utf-8")

    @classmethod
    def parse(cls, payload: bytes) -> ReleaseManifest:
        """Strict parsing. Raises ``EvidenceRejected``: ``release_malformed``, or
        ``statement_type`` for a statement about something else."""
        statement = fields(
            parse_json(payload), {"_type", "subject", "predicateType", "predicate"}, "a statement"
        )
        _check_types(statement)
        predicate = fields(
            statement["predicate"],
            {"version", "release_seq", "security_floor_seq", "not_after", "measurements"},
            "a predicate",
        )
        manifest = cls(
            version=text(predicate["version"], "a version"),
            release_seq=_number(predicate["release_seq"], "release_seq", low=1),
            security_floor_seq=_number(predicate["security_floor_seq"], "security_floor_seq"),
            not_after=_number(predicate["not_after"], "not_after"),
            subjects=_subjects(statement["subject"]),
            measurements=_measurements(predicate["measurements"]),
        )
        if manifest.security_floor_seq > manifest.release_seq:
            raise malformed("a release under its own security floor")
        return manifest

    def reference(self) -> ReferenceValues:
        """What a node of this release may run: exactly these."""
        return ReferenceValues(
            models=self._by_name("model"),
            adapters=self._by_name("adapter"),
            configs=frozenset(self._by_name("config").values()),
            wheels=frozenset(self._by_name("wheel").values()),
            engines=frozenset(self._by_name("engine").values()),
        )

    def _by_name(self, role: str) -> dict[str, bytes]:
        return {one.name: one.measured for one in self.subjects if one.role == role}


def tree_digest(files: Iterable[tuple[str, bytes]]) -> bytes:
    """``overspill-tree-v1``: over each file's path (with ``/``) and the SHA-256 of its content.

    Sorted by the path's parts, so that an installed tree and an archive of it give the same.
    """
    whole = hashlib.sha256()
    for name, sha256 in sorted(files, key=lambda file: file[0].split("/")):
        whole.update(hashlib.sha256(name.encode("utf-8")).digest() + sha256)
    return whole.digest()


def _check_types(statement: Mapping[str, Any]) -> None:
    found = (statement["_type"], statement["predicateType"])
    if found != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise refused("statement_type", f"{STATEMENT_TYPE}, {PREDICATE_TYPE}", repr(found)[:256])


def _subjects(value: Any) -> tuple[Subject, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_SUBJECTS:
        raise malformed(f"no list of 1 to {_MAX_SUBJECTS} subjects")
    subjects = tuple(_subject(one) for one in value)
    names = [(one.role, one.name) for one in subjects]
    if len(set(names)) != len(names):
        raise malformed("a subject that is listed twice")
    missing = {"wheel", "engine", "model", "config"} - {role for role, _ in names}
    if missing:
        raise malformed(f"a release without {', '.join(sorted(missing))}")
    return subjects


def _subject(value: Any) -> Subject:
    one = fields(value, {"name", "digest"}, "a subject")
    role, _, name = text(one["name"], "a subject's name").partition("/")
    if role not in ROLES or not 0 < len(name) <= _MAX_NAME:
        raise malformed(f"a subject named {one['name'][:80]!r}")
    digest = one["digest"]
    algorithms = {FILE_DIGEST, TREE_DIGEST}
    if not isinstance(digest, dict) or not digest or not digest.keys() <= algorithms:
        raise malformed(f"a digest set of {role}/{name[:80]}")
    return Subject(role, name, {alg: _digest(value) for alg, value in digest.items()})


def _digest(value: Any) -> bytes:
    digest = _hex(value)
    if len(digest) != 64:
        raise malformed("a digest that is not 64 hexadecimal digits")
    return bytes.fromhex(digest)


def _measurements(value: Any) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    found = {kind: _claims(kind, claims) for kind, claims in _object(value).items()}
    return MappingProxyType(found)


def _claims(kind: str, value: Any) -> Mapping[str, tuple[str, ...]]:
    claims = {claim: _values(claim, values) for claim, values in _object(value).items()}
    if not claims:
        raise malformed(f"measurements of {kind} without any")
    return MappingProxyType(claims)


def _values(claim: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise malformed(f"'{claim}' without a list of values: empty never means any")
    return tuple(map(_hex, value))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise malformed("measurements that are no object")
    return value


def _hex(value: Any) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise malformed("a value that is not lower-case hexadecimal")
    return value


def _number(value: Any, name: str, low: int = 0) -> int:
    if type(value) is not int or not low <= value <= MAX_SIZE:
        raise malformed(f"{name} that is no whole number from {low} on")
    return value
