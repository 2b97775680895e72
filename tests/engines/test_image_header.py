"""What image files say about themselves, before a decoder may believe them."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.image_header import ImageLimits, check_images, image_size
from overspill.errors import InvalidRequest, OverspillError, UnsupportedOption
from overspill.types.chat import Image


def _chunk(kind, data=b"") -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, *between) -> bytes:
    """A PNG of that size by its header, with nothing in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), *between, _chunk(b"IDAT", b"x"), _chunk(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(width, height, *before, frame=0xC0) -> bytes:
    """The head of a JPEG, and its end."""
    sof = struct.pack(">BBHBHHB", 0xFF, frame, 11, 8, height, width, 1) + b"\1\x11\0"
    return b"\xff\xd8" + b"".join(before) + sof + b"\xff\xda\0\2data\xff\xd9"


def gif(width, height, frames=1) -> bytes:
    """A GIF without a picture in its frames."""
    frame = b"\x2c" + bytes(8) + b"\0" + b"\2\1\0\0"
    control = b"\x21\xf9\4\0\0\0\0\0"
    return (
        b"GIF89a" + struct.pack("<HH", width, height) + bytes(3) + (control + frame) * frames + b";"
    )


APP1 = b"\xff\xe1\0\x0aExif\0\0\xff\xd9"
WEBP = b"RIFF\x10\0\0\0WEBPVP8 "


@pytest.mark.parametrize(
    "data",
    [
        png(40, 30),
        jpeg(40, 30),
        jpeg(40, 30, APP1, frame=0xC2),
        jpeg(40, 30, b"\xff\xff\xff\xe0\0\4ab"),
        gif(40, 30),
    ],
    ids=["png", "jpeg", "progressive jpeg with a thumbnail", "fill bytes", "gif"],
)
def test_a_size_is_read_from_the_header(data):
    assert image_size(data) == (40, 30)


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (png(40, 30)[:-4], InvalidRequest, "cut off"),
        (png(40, 30).replace(b"IDATx", b"IDATy"), InvalidRequest, "damaged"),
        (png(40, 30)[:20], InvalidRequest, "no PNG header"),
        (png(40, 30, _chunk(b"acTL", bytes(8))), UnsupportedOption, "animated"),
        (jpeg(40, 30)[:-2], InvalidRequest, "cut off"),
        (jpeg(40, 30, APP1)[:-2], InvalidRequest, "cut off"),
        (jpeg(40, 30, frame=0xC3), InvalidRequest, "no JPEG frame"),
        (jpeg(40, 30, APP1, b"padding"), InvalidRequest, "no JPEG frame"),
        (gif(40, 30, frames=2), UnsupportedOption, "animated"),
        (gif(40, 30)[:9], InvalidRequest, "no GIF screen"),
        (WEBP, UnsupportedOption, "WebP"),
        (b"BM" + bytes(60), InvalidRequest, "no known type"),
        (b"\xff\xfb" + bytes(60), InvalidRequest, "no known type"),
        (b"", InvalidRequest, "no known type"),
    ],
)
def test_what_cannot_be_shown_as_it_is_is_refused(data, kind, words):
    with pytest.raises(kind, match=words) as caught:
        image_size(data)
    assert caught.value.param == "messages"
    assert caught.value.mend


def _shown(*data):
    return tuple(Image(each, "image/png") for each in data)


@pytest.mark.parametrize(
    ("images", "numbers"),
    [
        (_shown(png(1 << 16, 1 << 16)), "65536 x 65536"),
        (_shown(jpeg(65535, 65535)), "65535 x 65535"),
        (_shown(png(0, 7)), "0 x 7"),
        (_shown(png(6, 6), png(7, 7)), "7 x 7"),
        (_shown(*[png(1, 1)] * 4), "4 images; the limit is 3"),
        (_shown(png(1, 1, _chunk(b"tEXt", bytes(2000)))), "limit is 1000"),
    ],
)
def test_more_than_the_limits_is_refused_with_numbers(images, numbers):
    limits = ImageLimits(max_images=3, max_bytes=1000, max_pixels=40)
    with pytest.raises(InvalidRequest, match=numbers):
        check_images(images, limits)


def test_what_is_within_the_limits_has_a_size():
    images = _shown(png(5, 8), gif(1, 1), jpeg(40, 1))
    assert check_images(images, ImageLimits(max_pixels=40)) == ((5, 8), (1, 1), (40, 1))


_STARTS = (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", b"\xff\xd8\xff", b"GIF89a", b"RIFF")


@given(st.sampled_from(_STARTS), st.binary(max_size=200))
def test_any_bytes_have_a_size_or_are_refused(start, rest):
    with suppress(OverspillError):
        width, height = image_size(start + rest)
        assert 0 <= width < 1 << 32
        assert 0 <= height < 1 << 32
