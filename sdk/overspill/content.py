"""A message's content as text and images, from OpenAI's content parts.

Images come as bytes or as ``data:`` URLs. Nothing is fetched: another URL is refused, since its
host would learn of it, and of the address of whoever asks.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any

from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.types.chat import Image

MAX_IMAGE_BYTES = 20 << 20
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)
_BEGINNINGS = (
    # How files of a type begin: what is not one of these is no picture that a model reads.
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/gif", re.compile(rb"GIF8[79]a")),
    ("image/webp", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
)


def read_content(content: Any) -> tuple[str, tuple[Image, ...]]:
    """Text parts joined, and the images with their places in it.

    Raises ``InvalidRequest`` for what is malformed, ``UnsupportedOption`` for parts of another
    kind and for images that would have to be fetched.
    """
    if content is None:
        return "", ()
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, Iterable) or isinstance(content, bytes | Mapping):
        raise InvalidRequest("A message's content is neither text nor parts.", param="messages")
    texts: list[str] = []
    images: list[Image] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            images.append(_image(part.get("image_url"), at=sum(map(len, texts))))
        else:
            raise UnsupportedOption(
                f"A message has a part of the type {kind!r}.",
                param="messages",
                mend="Use text and image_url parts.",
            )
    return "".join(texts), tuple(images)


def image_of(data: bytes, *, at: int = 0) -> Image:
    """An image from its file's bytes: PNG, JPEG, GIF or WebP, up to 20 MiB.

    Raises ``InvalidRequest`` for anything else.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidRequest(
            f"An image has {len(data)} bytes; the limit is {MAX_IMAGE_BYTES}.", param="messages"
        )
    for media_type, beginning in _BEGINNINGS:
        if beginning.match(data):
            return Image(data, media_type, at)
    raise InvalidRequest(
        "An image is of no known type.", param="messages", mend="Use PNG, JPEG, GIF or WebP."
    )


def _image(source: Any, *, at: int) -> Image:
    url = source.get("url") if isinstance(source, Mapping) else source
    if isinstance(source, Mapping) and source.get("detail") not in (None, "auto"):
        raise UnsupportedOption(
            "An image's detail cannot be chosen: a model's projector has its own.",
            param="messages",
            mend='Use "auto", or leave it out; send a smaller image for fewer tokens.',
        )
    if isinstance(url, bytes):
        return image_of(url, at=at)
    if not isinstance(url, str):
        raise InvalidRequest("An image_url part has no url.", param="messages")
    head = _DATA_URL.match(url)
    if head is None:
        raise UnsupportedOption(
            f"An image's URL is no data: URL of base64, and nothing is fetched: {url:.60}",
            param="messages",
            mend="Send the image itself: data:image/png;base64,...",
        )
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error:
        raise InvalidRequest("An image's base64 is malformed.", param="messages") from None
    image = image_of(data, at=at)
    if image.media_type != head[1]:
        raise InvalidRequest(
            f"An image says that it is {head[1]:.40}, and is {image.media_type}.", param="messages"
        )
    return image
