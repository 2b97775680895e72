"""The text that C2SP's formats are made of: one spelling for each value, or a refusal."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from overspill.errors import LogInvalid

HASH_BYTES: Final = 32
MAX_SIZE: Final = 2**63 - 1
_MAX_DIGITS: Final = 19


def decode_base64(text: str, what: str) -> bytes:
    """RFC 4648 section 4, padded, without spaces, and with the spare bits zero."""
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise malformed(what, "no base64") from error
    if encode_base64(value) != text:
        raise malformed(what, "base64 in another spelling")
    return value


def encode_base64(value: bytes) -> str:
    """The one spelling that :func:`decode_base64` reads."""
    return base64.b64encode(value).decode("ascii")


def decode_hash(text: str, what: str) -> bytes:
    """A SHA-256 value in base64."""
    value = decode_base64(text, what)
    if len(value) != HASH_BYTES:
        raise malformed(what, f"{len(value)} bytes where {HASH_BYTES} belong")
    return value


def decode_decimal(text: str, what: str) -> int:
    """A number from 0 to 2^63 - 1 in ASCII digits without leading zeroes."""
    is_decimal = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    if not is_decimal or (text[0] == "0" and text != "0") or int(text) > MAX_SIZE:
        raise malformed(what, f"{text[:32]!r} is no decimal number")
    return int(text)


def decode_text(data: bytes, what: str, *, max_bytes: int) -> str:
    """UTF-8 without control characters other than newline, at most ``max_bytes`` long."""
    if len(data) > max_bytes:
        raise malformed(what, f"{len(data)} bytes, at most {max_bytes} are allowed")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed(what, "no UTF-8") from error
    if any(character < " " and character != "\n" for character in text):
        raise malformed(what, "a control character")
    return text


def malformed(what: str, actual: str) -> LogInvalid:
    """The refusal of bytes that are not in their format."""
    return LogInvalid("log_malformed", expected=what, actual=actual)
