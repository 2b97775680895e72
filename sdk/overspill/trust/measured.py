"""The measured log: what a node runs, one entry each, and the manifest of its models.

An entry is ``u8 kind | u16 length + name | digest 32 | u32 length + content``. The models' and the
configuration's entries carry their content, whose SHA-256 is their digest; wheel and engine library
carry none. A TPM extends each entry's SHA-256 into the register of its kind, so the log replays
into the quoted registers or is refused.

The models manifest is ``"OVSM" | u8 version | u16 count`` and per model, sorted by name:
``u16 + name | file 32 | tokenizer 32 | template 32 | u16 count`` and per adapter, sorted by name,
``u16 + name | digest 32``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from overspill.errors import EvidenceRejected, UsageError
from overspill.types.binary import ByteReader, prefixed

_MANIFEST_HEAD: Final = b"OVSM\x01"
_MAX_NAME_BYTES: Final = 256
_MAX_LOG_BYTES: Final = 128 << 10
_STEP: Final = "5"
_SINGLE_MODEL: Final = b"overspill/v1/model\x00"
_ALL_MODELS: Final = b"overspill/v1/models\x00"


class Measured(IntEnum):
    """What is measured; each exactly once."""

    WHEEL = 1
    ENGINE = 2
    MODELS = 3
    CONFIG = 4


PCR_OF: Final[Mapping[Measured, int]] = {
    Measured.WHEEL: 12,
    Measured.ENGINE: 12,
    Measured.MODELS: 13,
    Measured.CONFIG: 14,
}
"""The TPM register (SHA-256 bank) that each kind extends."""

_WITH_CONTENT: Final = frozenset({Measured.MODELS, Measured.CONFIG})


@dataclass(frozen=True, slots=True)
class MeasuredEntry:
    """One measured thing: its name for people, its SHA-256, and its content where that is short."""

    kind: Measured
    name: str
    sha256: bytes
    content: bytes = b""

    def encode(self) -> bytes:
        """The entry's bytes; a TPM extends their SHA-256."""
        if len(self.sha256) != 32 or len(self.content) > _MAX_LOG_BYTES:
            raise UsageError(f"The measured {self.kind.name} does not fit a log entry.")
        head = bytes((self.kind,)) + _name(self.name)
        return head + self.sha256 + prefixed(4, self.content)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One served model: digests of file, tokenizer and template, and of each adapter by name.

    A file that carries its tokenizer and template inside gives its own digest for all three.
    """

    name: str
    file_sha256: bytes
    tokenizer_sha256: bytes
    template_sha256: bytes
    adapters: tuple[tuple[str, bytes], ...] = ()

    def encode(self) -> bytes:
        """The manifest's part for this model."""
        digests = (self.file_sha256, self.tokenizer_sha256, self.template_sha256)
        if any(len(digest) != 32 for digest in (*digests, *(d for _, d in self.adapters))):
            raise UsageError(f"A digest of model '{self.name}' has not 32 bytes.")
        adapters = [_name(name) + digest for name, digest in sorted(self.adapters)]
        count = len(adapters).to_bytes(2, "big")
        return b"".join((_name(self.name), *digests, count, *adapters))


@dataclass(frozen=True, slots=True)
class ModelsManifest:
    """All models that a node serves."""

    models: tuple[ModelEntry, ...]

    def encode(self) -> bytes:
        """The manifest's bytes, sorted by name."""
        parts = [model.encode() for model in sorted(self.models, key=_by_name)]
        return _MANIFEST_HEAD + len(parts).to_bytes(2, "big") + b"".join(parts)

    @property
    def digest(self) -> bytes:
        """``models_digest`` of the NKC: SHA-256 over the sorted digests of the models."""
        singles = (hashlib.sha256(_SINGLE_MODEL + m.encode()).digest() for m in self.models)
        return hashlib.sha256(_ALL_MODELS + b"".join(sorted(singles))).digest()

    @classmethod
    def decode(cls, data: bytes) -> ModelsManifest:
        """Strict decoding. Raises ``EvidenceRejected("models_manifest_malformed")``."""
        reader = ByteReader(data, _bad_manifest)
        if reader.take(len(_MANIFEST_HEAD), "the head") != _MANIFEST_HEAD:
            raise _bad_manifest("these bytes are no models manifest of version 1")
        count = reader.uint(2, "the number of models")
        manifest = cls(tuple(_model(reader) for _ in range(count)))
        reader.end("the manifest")
        if not _has_unique_names(manifest) or manifest.encode() != data:
            raise _bad_manifest("it is not in its one canonical encoding")
        return manifest


@dataclass(frozen=True, slots=True)
class MeasuredLog:
    """The whole log, exactly one entry of each kind."""

    entries: tuple[MeasuredEntry, ...]

    @classmethod
    def decode(cls, log: Iterable[bytes]) -> MeasuredLog:
        """Strict decoding. Raises ``EvidenceRejected``: ``measured_log_malformed``, or
        ``extra_measurement`` for a second entry of a kind or one of an unknown kind."""
        raw = tuple(log)
        if (size := sum(len(entry) for entry in raw)) > _MAX_LOG_BYTES:
            raise _bad_log(f"{size} bytes, at most {_MAX_LOG_BYTES} are allowed")
        entries = tuple(_entry(data) for data in raw)
        kinds = sorted(entry.kind for entry in entries)
        if len(set(kinds)) != len(kinds):
            raise _extra("two entries of one kind")
        if kinds != sorted(Measured):
            missing = ", ".join(kind.name for kind in Measured if kind not in kinds)
            raise _bad_log(f"no entry for {missing}")
        return cls(entries)

    def entry(self, kind: Measured) -> MeasuredEntry:
        """The one entry of a kind."""
        return next(entry for entry in self.entries if entry.kind is kind)

    @property
    def models(self) -> ModelsManifest:
        """The models manifest that the log carries."""
        return ModelsManifest.decode(self.entry(Measured.MODELS).content)

    def replay(self) -> dict[int, bytes]:
        """PCR index to the SHA-256 value that extending this log from zero leads to."""
        registers = {pcr: bytes(32) for pcr in PCR_OF.values()}
        for pcr, digest in self.extensions():
            registers[pcr] = hashlib.sha256(registers[pcr] + digest).digest()
        return registers

    def replay_rtmr(self) -> bytes:
        """The 48-byte value of a TDX register that each entry's SHA-384 extends, from zero."""
        register = bytes(48)
        for digest in self.rtmr_extensions():
            register = hashlib.sha384(register + digest).digest()
        return register

    def rtmr_extensions(self) -> list[bytes]:
        """What each entry extends into the TDX register: 48 bytes, in the log's order."""
        return [hashlib.sha384(entry.encode()).digest() for entry in self.entries]

    def extensions(self) -> list[tuple[int, bytes]]:
        """What each entry extends: a PCR index and 32 bytes, in the log's order."""
        digests = (hashlib.sha256(entry.encode()).digest() for entry in self.entries)
        return [(PCR_OF[e.kind], digest) for e, digest in zip(self.entries, digests, strict=True)]


def log_digest(log: Iterable[bytes]) -> bytes:
    """SHA-256 over the entries' digests: binds a log where no TPM replays it."""
    return hashlib.sha256(b"".join(hashlib.sha256(entry).digest() for entry in log)).digest()


def _entry(data: bytes) -> MeasuredEntry:
    reader = ByteReader(data, _bad_log)
    number = reader.uint(1, "the kind")
    if number not in set(Measured):
        raise _extra(f"an entry of kind {number}")
    entry = MeasuredEntry(
        kind=Measured(number),
        name=_read_name(reader, _bad_log),
        sha256=reader.take(32, "the digest"),
        content=reader.prefixed(4, "the content", max_bytes=_MAX_LOG_BYTES),
    )
    reader.end("the entry")
    if entry.kind in _WITH_CONTENT and hashlib.sha256(entry.content).digest() != entry.sha256:
        raise _bad_log(f"the content of {entry.kind.name} is not what its digest says")
    if entry.kind not in _WITH_CONTENT and entry.content:
        raise _bad_log(f"{entry.kind.name} carries content")
    return entry


def _model(reader: ByteReader) -> ModelEntry:
    return ModelEntry(
        name=_read_name(reader, _bad_manifest),
        file_sha256=reader.take(32, "a model's digest"),
        tokenizer_sha256=reader.take(32, "a tokenizer's digest"),
        template_sha256=reader.take(32, "a template's digest"),
        adapters=tuple(_adapter(reader) for _ in range(reader.uint(2, "the adapters' number"))),
    )


def _adapter(reader: ByteReader) -> tuple[str, bytes]:
    name = _read_name(reader, _bad_manifest)
    return name, reader.take(32, "an adapter's digest")


def _read_name(reader: ByteReader, fail: Callable[[str], EvidenceRejected]) -> str:
    name = reader.text(2, "a name", max_bytes=_MAX_NAME_BYTES)
    if not name:
        raise fail("an empty name")
    return name


def _has_unique_names(manifest: ModelsManifest) -> bool:
    lists = [[model.name for model in manifest.models]]
    lists += [[name for name, _ in model.adapters] for model in manifest.models]
    return all(len(set(names)) == len(names) for names in lists)


def _by_name(model: ModelEntry) -> bytes:
    return model.name.encode("utf-8")


def _name(text: str) -> bytes:
    encoded = text.encode("utf-8")
    if not 0 < len(encoded) <= _MAX_NAME_BYTES:
        raise UsageError(f"A measured name has 1 to {_MAX_NAME_BYTES} bytes, not {len(encoded)}.")
    return prefixed(2, encoded)


def _bad_manifest(what: str) -> EvidenceRejected:
    return EvidenceRejected(
        "models_manifest_malformed", _STEP, expected="a models manifest", actual=what
    )


def _bad_log(what: str) -> EvidenceRejected:
    return EvidenceRejected("measured_log_malformed", _STEP, expected="a measured log", actual=what)


def _extra(what: str) -> EvidenceRejected:
    return EvidenceRejected(
        "extra_measurement",
        _STEP,
        expected="one wheel, one engine library, one models manifest, one configuration",
        actual=what,
    )
