"""How much one request may show, wherever it is answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from overspill.errors import InvalidRequest
from overspill.types.chat import Message

MAX_SHOWN_BYTES: Final = 48 << 20
"""Of all images of a request together: what fits one message to a worker process."""


def check_shown(messages: Iterable[Message]) -> None:
    """Raise ``InvalidRequest`` where all images together are too large."""
    size = sum([len(image.data) for message in messages for image in message.images])
    if size > MAX_SHOWN_BYTES:
        raise InvalidRequest(
            f"The images have {size} bytes together; the limit is {MAX_SHOWN_BYTES}.",
            param="messages",
            mend="Send fewer, or smaller ones.",
        )
