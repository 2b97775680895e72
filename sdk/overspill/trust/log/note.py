"""Signed notes (c2sp.org/signed-note): a text, a blank line, and lines of signatures.

A key's text form, the vkey, is ``name+hash+base64(type || public key)``; the private one is
``PRIVATE+KEY+name+hash+base64(type || seed)``, as the Go tools write it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from overspill.errors import LogInvalid
from overspill.trust.log import mldsa
from overspill.trust.log.encoding import decode_base64, decode_text, encode_base64, malformed

ED25519: Final = 0x01
COSIGNATURE_V1: Final = 0x04
ML_DSA_44: Final = 0x06
"""Signature types: a plain signature over the text, and a witness's timestamped ones: Ed25519, and
ML-DSA-44 (FIPS 204), which a quantum computer does not forge."""

MAX_NOTE_BYTES: Final = 64 << 10
MAX_SIGNATURES: Final = 32
_DASH: Final = "— "
_PRIVATE: Final = "PRIVATE+KEY+"
_KEY_ID_BYTES: Final = 4
_SEED_BYTES: Final = 32
_PUBLIC_BYTES: Final = {ED25519: 32, COSIGNATURE_V1: 32, ML_DSA_44: 1312}


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named key that signs notes (``ED25519``) or cosigns them (``COSIGNATURE_V1``, and
    ``ML_DSA_44`` where the installed ``cryptography`` and its OpenSSL know it)."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes that, with the name, say which key a signature line claims."""
        return key_id(self.name, self.kind, self.public)

    def __str__(self) -> str:
        material = encode_base64(bytes((self.kind,)) + self.public)
        return f"{self.name}+{self.key_id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """A vkey. Raises ``LogInvalid("log_malformed")``."""
        name, _, rest = text.partition("+")
        kind, public = _key_material(name, rest, "a verifier key", _PUBLIC_BYTES)
        key = cls(name, kind, public)
        if str(key) != text:
            raise malformed("a verifier key", "a hash that is not this key's")
        return key

    def is_valid(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` over ``message`` is this key's: 64 bytes of Ed25519, or 2,420 of
        ML-DSA-44. Raises ``LogInvalid("ml_dsa_unsupported")`` where that cannot be told."""
        if self.kind == ML_DSA_44:
            return mldsa.is_valid(self.public, signature, message)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True, repr=False)
class SignerKey:
    """The private half of a :class:`VerifierKey`; ``seed`` has 32 bytes."""

    name: str
    kind: int
    seed: bytes

    @property
    def verifier(self) -> VerifierKey:
        """The public half."""
        if self.kind == ML_DSA_44:
            return VerifierKey(self.name, self.kind, mldsa.public_of(self.seed))
        return VerifierKey(self.name, self.kind, self._key().public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """A signature of the key's kind: 64 bytes of Ed25519, or 2,420 of ML-DSA-44."""
        if self.kind == ML_DSA_44:
            return mldsa.sign(self.seed, message)
        return self._key().sign(message)

    def private_text(self) -> str:
        """What a key file holds. A secret."""
        material = encode_base64(bytes((self.kind,)) + self.seed)
        return f"{_PRIVATE}{self.name}+{self.verifier.key_id.hex()}+{material}"

    @classmethod
    def generate(cls, name: str, kind: int) -> SignerKey:
        """A new key. Raises ``LogInvalid`` for a name that notes cannot carry."""
        check_name(name)
        return cls(name, kind, secrets.token_bytes(_SEED_BYTES))

    @classmethod
    def parse(cls, text: str) -> SignerKey:
        """The inverse of :meth:`private_text`. Raises ``LogInvalid("log_malformed")``."""
        if not text.startswith(_PRIVATE):
            raise malformed("a private note key", "another text")
        name, _, rest = text.removeprefix(_PRIVATE).partition("+")
        sizes = dict.fromkeys(_PUBLIC_BYTES, _SEED_BYTES)
        key = cls(name, *_key_material(name, rest, "a private note key", sizes))
        if key.private_text() != text:
            raise malformed("a private note key", "a hash that is not this key's")
        return key

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: who claims to have signed, and the bytes after the key id."""

    name: str
    key_id: bytes
    signature: bytes

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {encode_base64(self.key_id + self.signature)}\n"

    @classmethod
    def parse(cls, line: str) -> NoteSignature:
        """One line without its newline. Raises ``LogInvalid("log_malformed")``."""
        name, space, encoded = line.removeprefix(_DASH).partition(" ")
        if not line.startswith(_DASH) or not space:
            raise malformed("a signature line", "another line")
        check_name(name)
        value = decode_base64(encoded, "a signature")
        if len(value) <= _KEY_ID_BYTES:
            raise malformed("a signature", "nothing after the key id")
        return cls(name, value[:_KEY_ID_BYTES], value[_KEY_ID_BYTES:])

    def claims(self, key: VerifierKey) -> bool:
        """Whether this line says that ``key`` signed: name and id, as neither alone counts."""
        return self.name == key.name and self.key_id == key.key_id


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note; nothing in it is believed before :meth:`verify`. ``text`` ends in newline."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """The note's bytes."""
        return (self.text + "\n" + "".join(map(str, self.signatures))).encode("utf-8")

    @classmethod
    def parse(cls, data: bytes) -> Note:
        """Strict parsing. Raises ``LogInvalid("log_malformed")``."""
        whole = decode_text(data, "a signed note", max_bytes=MAX_NOTE_BYTES)
        text, blank, lines = whole.rpartition("\n\n")
        if not blank or not lines.endswith("\n"):
            raise malformed("a signed note", "no signature after a blank line, or a cut one")
        signatures = lines.removesuffix("\n").split("\n")
        if len(signatures) > MAX_SIGNATURES:
            raise malformed("a signed note", f"more than {MAX_SIGNATURES} signatures")
        return cls(text + "\n", tuple(NoteSignature.parse(line) for line in signatures))

    def verify(self, keys: Iterable[VerifierKey]) -> tuple[VerifierKey, ...]:
        """The known ``ED25519`` keys that signed, each once.

        Signatures of unknown keys are passed over; a false one of a known key refuses the note.
        Raises ``LogInvalid``: ``note_signature`` or ``note_unsigned``.
        """
        signed = [key for key in keys if key.kind == ED25519 and self._is_signed_by(key)]
        if not signed:
            raise LogInvalid(
                "note_unsigned", expected="a signature by a known key", actual=self._names()
            )
        return tuple(signed)

    def _is_signed_by(self, key: VerifierKey) -> bool:
        lines = [line for line in self.signatures if line.claims(key)]
        message = self.text.encode("utf-8")
        if not all(key.is_valid(line.signature, message) for line in lines):
            raise LogInvalid(
                "note_signature",
                expected=f"a valid signature by {key.name}",
                actual="one that is not",
            )
        return bool(lines)

    def _names(self) -> str:
        return ", ".join(line.name[:80] for line in self.signatures)[:256]


def sign_note(text: str, *keys: SignerKey) -> Note:
    """``text`` (ending in newline) signed by each key, plainly."""
    if not text.endswith("\n"):
        raise malformed("a note's text", "no newline at its end")
    message = text.encode("utf-8")
    lines = (NoteSignature(k.name, k.verifier.key_id, k.sign(message)) for k in keys)
    return Note(text, tuple(lines))


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """SHA-256(name || newline || type || public key), its first four bytes."""
    material = name.encode("utf-8") + b"\n" + bytes((kind,)) + public
    return hashlib.sha256(material).digest()[:_KEY_ID_BYTES]


def check_name(name: str) -> None:
    """Raises ``LogInvalid`` for a key's name that is empty or holds a space or a plus."""
    if not name or "+" in name or any(c.isspace() or c < " " for c in name):
        raise malformed("a key's name", repr(name[:80]))


def _key_material(name: str, rest: str, what: str, sizes: Mapping[int, int]) -> tuple[int, bytes]:
    check_name(name)
    _, _, encoded = rest.partition("+")
    material = decode_base64(encoded, what)
    if not material or len(material) - 1 != sizes.get(material[0]):
        raise malformed(what, "a key of another kind than Ed25519 or ML-DSA-44")
    return material[0], material[1:]
