"""What an image file says about itself, read before a decoder sees it.

Decoders allocate by these numbers: a file of some hundred bytes may ask for gigabytes. A file that
is not laid out plainly is refused, so that no decoder finds other numbers in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn
from zlib import crc32

from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.types.chat import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = (0xC0, 0xC1, 0xC2)
"""JPEG's start-of-frame markers of what is in use: baseline, extended, progressive."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one request may show. Decoding takes 8 bytes a pixel at most, one image at a time."""

    max_images: int = 16
    max_bytes: int = 20 << 20
    """Of one image's file."""
    max_pixels: int = 32 << 20
    """Of one image."""


def check_images(images: tuple[Image, ...], limits: ImageLimits) -> tuple[tuple[int, int], ...]:
    """Width and height in pixels of each, by its header.

    Raises ``InvalidRequest`` for one that is malformed or over the limits, ``UnsupportedOption``
    for a kind that the decoder cannot read, or could only in part.
    """
    if len(images) > limits.max_images:
        raise InvalidRequest(
            f"There are {len(images)} images; the limit is {limits.max_images}.", param="messages"
        )
    return tuple(_checked(image, limits) for image in images)


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of a PNG, JPEG or GIF, as its header has them.

    Raises as :func:`check_images`.
    """
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        raise UnsupportedOption(
            "llama.cpp reads no WebP images.", param="messages", mend="Send PNG or JPEG."
        )
    _malformed("is of no known type")


def _checked(image: Image, limits: ImageLimits) -> tuple[int, int]:
    if len(image.data) > limits.max_bytes:
        raise InvalidRequest(
            f"An image has {len(image.data)} bytes; the limit is {limits.max_bytes}.",
            param="messages",
        )
    width, height = image_size(image.data)
    if width < 1 or height < 1:
        _malformed(f"is {width} x {height} pixels large")
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"An image has {width} x {height} pixels; the limit is {limits.max_pixels} in all.",
            param="messages",
            mend="Send it smaller: models look at far fewer.",
        )
    return width, height


def _png(data: bytes) -> tuple[int, int]:
    """PNG (ISO/IEC 15948) 5.3 and 11.2.2: IHDR comes first; each chunk has its CRC, up to IEND.

    The decoder looks at no CRC: what was damaged on the way would be shown as it is.
    """
    if len(data) < 33 or data[8:16] != b"\x00\x00\x00\x0dIHDR":
        _malformed("has no PNG header")
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if len(data) < end + 4:
            _malformed("is cut off")
        if crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            _malformed("is damaged")
        if kind == b"acTL":
            _animated()
        at = end + 4
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _jpeg(data: bytes) -> tuple[int, int]:
    """JPEG (ITU-T T.81) B.2: segments up to the frame's header, nothing between them; EOI ends it.

    The decoder makes up what is cut off.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:
            at += 1  # B.1.1.2: a marker may be preceded by fill bytes.
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES and len(data) >= at + 9:
            if data.find(b"\xff\xd9", at) < 0:
                _malformed("is cut off")
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        if not 0xC4 <= marker <= 0xFE or marker in (0xD8, 0xD9, 0xDA):
            break
        at += 2 + length
    _malformed("has no JPEG frame of a common kind")


def _gif(data: bytes) -> tuple[int, int]:
    """GIF89a 18: the logical screen; sections 20 to 26 tell whether there is a second image."""
    if len(data) < 13:
        _malformed("has no GIF screen")
    at, images = 13 + _colors(data[10]), 0
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C and at + 10 < len(data):
            images += 1
            at += 10 + _colors(data[at + 9]) + 1
        elif data[at] == 0x21:
            at += 2
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    if images > 1:
        _animated()
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _colors(flags: int) -> int:
    """Bytes of a colour table by the flags that announce it."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _animated() -> NoReturn:
    raise UnsupportedOption(
        "An image is animated: its first frame alone would be seen.",
        param="messages",
        mend="Send the frames that matter as images of their own.",
    )


def _malformed(what: str) -> NoReturn:
    raise InvalidRequest(f"An image {what}.", param="messages", mend="Send PNG, JPEG or GIF.")
