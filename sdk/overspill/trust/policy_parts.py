"""Strict reading of a policy's tables: every complaint names file, key and mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import (
    BasicConstraints,
    Certificate,
    DuplicateExtension,
    ExtensionNotFound,
    InvalidVersion,
    load_pem_x509_certificate,
)

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust.certificates import read_pem

_T = TypeVar("_T", str, int)


class Table:
    """One TOML table with the file and the section that it comes from."""

    def __init__(self, raw: Mapping[str, Any], source: str, section: str = "") -> None:
        self._raw = raw
        self._source = source
        self._section = section

    def __contains__(self, key: str) -> bool:
        return key in self._raw

    def error(self, key: str, problem: str, mend: str) -> ConfigurationError:
        """A complaint about ``key``."""
        where = f"[{self._section}] {key}" if self._section else key
        return ConfigurationError(f"{self._source}: '{where}' {problem}.", mend=mend)

    def only(self, known: frozenset[str]) -> None:
        """Raises for the first key that nobody would read."""
        for key in self._raw:
            if key not in known:
                names = ", ".join(sorted(known))
                raise self.error(key, "is not known here", f"Known keys: {names}.")

    def section(self, name: str) -> Table:
        """A sub-table that has to be there."""
        raw = self._raw.get(name)
        if not isinstance(raw, dict):
            raise self.error(name, "is missing as a section", f"Add the section [{name}].")
        return Table(raw, self._source, f"{self._section}.{name}" if self._section else name)

    def one_of(self, key: str, allowed: Sequence[_T], default: _T | None = None) -> _T:
        """One of a few values, of exactly their type."""
        value = self._raw.get(key, default)
        for candidate in allowed:
            if type(value) is type(candidate) and value == candidate:
                return candidate
        names = ", ".join(repr(candidate) for candidate in allowed)
        what = "is missing" if value is None else f"is {value!r}"
        raise self.error(key, what, f"Use one of {names}.")

    def names(self) -> tuple[str, ...]:
        """The table's own keys, where they are names."""
        return tuple(self._raw)

    def text(self, key: str, *, default: str | None = None) -> str:
        """A string with something in it."""
        value = self._raw.get(key, default)
        if not isinstance(value, str) or not value:
            what = "is missing" if value is None else f"is {value!r}"
            raise self.error(key, what, "Give a text.")
        return value

    def integer(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """A whole number in a range; without a default it has to be there."""
        value = self._raw.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"is {value!r}", f"Use a whole number from {low} to {high}.")
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._raw.get(key, default)
        if type(value) is not bool:
            raise self.error(key, f"is {value!r}", "Use true or false.")
        return value

    def strings(self, key: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """A list of strings with something in it."""
        value = self._raw.get(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            what = "is missing" if value is None else "is not a list of strings"
            raise self.error(key, what, "Give a list of strings.")
        if not value:
            raise self.error(key, "is empty", 'List what is allowed: empty never means "any".')
        return tuple(value)

    def choices(
        self, key: str, allowed: Sequence[str], default: Sequence[str] | None = None
    ) -> tuple[str, ...]:
        """A list of some of ``allowed``, with something in it."""
        values = self.strings(key, default)
        for value in values:
            if value not in allowed:
                names = ", ".join(allowed)
                raise self.error(key, f"names the unknown '{value}'", f"Use some of: {names}.")
        return values

    def integers(
        self, key: str, low: int, high: int, default: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """A list of whole numbers in a range, with something in it."""
        value = self._raw.get(key, default)
        is_list = isinstance(value, list | tuple) and bool(value)
        if not is_list or not all(type(item) is int and low <= item <= high for item in value):
            raise self.error(
                key, f"is {value!r}", f"List whole numbers from {low} to {high}, at least one."
            )
        return tuple(value)

    def hexes(self, key: str, size: int) -> tuple[bytes, ...]:
        """A list of byte strings of ``size`` bytes, in hex."""
        return tuple(self._hex(key, item, size) for item in self.strings(key))

    def digests_by_name(self, key: str) -> dict[str, bytes]:
        """A table of SHA-256 digests in hex by name, with something in it."""
        value = self._raw.get(key)
        if not isinstance(value, dict):
            what = "is missing" if value is None else "is not a table"
            raise self.error(key, what, f'Give {key} = {{ name = "<sha256>" }}.')
        if not value:
            raise self.error(key, "is empty", 'List what is allowed: empty never means "any".')
        return {name: self._hex(key, text, 32) for name, text in value.items()}

    def authorities(self, key: str) -> tuple[bytes, ...]:
        """A list of PEM certificates of authorities with any kind of key, as DER."""
        return tuple(self._authority(key, text) for text in self.strings(key))

    def certificates(self, key: str) -> tuple[bytes, ...]:
        """A list of PEM certificates of Ed25519 authorities, as DER."""
        return tuple(self._certificate(key, text) for text in self.strings(key))

    def _hex(self, key: str, text: Any, size: int) -> bytes:
        mend = f"Give {size} bytes as {2 * size} hexadecimal digits."
        if not isinstance(text, str) or len(text) != 2 * size:
            raise self.error(key, f"holds {text!r}", mend)
        try:
            value = bytes.fromhex(text)
        except ValueError as error:
            raise self.error(key, f"holds {text!r}", mend) from error
        if len(value) != size:  # fromhex skips spaces
            raise self.error(key, f"holds {text!r}", mend)
        return value

    def _authority(self, key: str, text: str) -> bytes:
        try:
            found, _ = read_pem(text.encode("utf-8"))
            is_authority = len(found) == 1 and found[0].path_length is not None
        except EvidenceRejected as error:
            raise self.error(
                key, f"holds a damaged certificate: {error.actual}", "Give the authority's PEM."
            ) from error
        if not is_authority:
            raise self.error(
                key, "holds something else than one authority's certificate", "Give one PEM each."
            )
        return found[0].der

    def _certificate(self, key: str, text: str) -> bytes:
        try:
            certificate = load_pem_x509_certificate(text.encode("utf-8"))
            is_authority = _is_authority(certificate)
        except (ValueError, InvalidVersion, DuplicateExtension, UnsupportedAlgorithm) as error:
            raise self.error(
                key, "holds something that is no PEM certificate", "Give the certificate's PEM."
            ) from error
        if not is_authority:
            raise self.error(
                key, "holds a certificate of no Ed25519 authority", "Give the authority's own."
            )
        return certificate.public_bytes(Encoding.DER)


def _is_authority(certificate: Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(BasicConstraints).value
    except ExtensionNotFound:
        return False
    return constraints.ca and isinstance(certificate.public_key(), Ed25519PublicKey)
