"""A prompt with pictures: its parts as text and images, and what of it can be computed when.

Images stand in a message's text as marks that no text can spell; the model's template carries
them to where they belong, and what it loses or repeats is refused.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from overspill.engines.backend import BatchRow, Picture, PictureSpan, PromptPart
from overspill.engines.control_guard import ControlGuard
from overspill.errors import OverspillError, UnsupportedOption
from overspill.types.chat import Image, Message

# Noncharacters (Unicode 23.7), others than the control guard's.
_BEGIN, _END = "\ufdd2", "\ufdd3"


class ImageMarks:
    """One request's images as marks in its messages; the marks are random, so nobody writes one."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._nonce = secrets.token_hex(16)
        self._images: list[Image] = []
        self.messages = tuple(self._marked(message) for message in messages)

    def split(self, prompt: str, guard: ControlGuard, model: str) -> list[PromptPart]:
        """The parts of a rendered prompt.

        Raises ``UnsupportedOption`` where not each image stands in it once, in their order.
        """
        pieces = re.split(f"{_BEGIN}{self._nonce}:([0-9]+){_END}", prompt)
        if pieces[1::2] != [str(number) for number in range(len(self._images))]:
            raise UnsupportedOption(
                f"The chat template of {model} loses or moves images.",
                param="messages",
                mend="Show them in the user's messages only, or use another model.",
            )
        parts: list[PromptPart] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                parts.append(self._images[int(piece)])
            else:
                parts.extend(guard.split(piece))
        return parts

    def _marked(self, message: Message) -> Message:
        if not message.images:
            return message
        text, content, done = "", message.content, 0
        for image in sorted(message.images, key=lambda image: image.at):
            text += f"{content[done : image.at]}{_BEGIN}{self._nonce}:{len(self._images)}{_END}"
            done = max(done, image.at)
            self._images.append(image)
        return dataclasses.replace(message, content=text + content[done:], images=())


@dataclass(slots=True, eq=False)
class PicturePrompt:
    """The pictures of one generation.

    The encoder's thread fills ``ready`` and sets ``failure``; the scheduler's thread empties it.
    """

    parts: tuple[PromptPart, ...]
    spans: tuple[PictureSpan, ...]
    shares: bool
    ready: dict[int, Picture] = field(default_factory=dict)
    """Pictures by the number of their span, until they are computed."""
    failure: OverspillError | None = None

    def missing(self, computed: int) -> list[int]:
        """Spans that a prompt still needs of which so many tokens are computed."""
        return [n for n, span in enumerate(self.spans) if span.start + span.tokens > computed]

    def waits(self, computed: int) -> bool:
        """Whether what comes next is a picture that is not there yet."""
        number = self._at(computed)
        return number is not None and number not in self.ready

    def row(self, slot: int, prompt: Sequence[int], start: int, limit: int) -> BatchRow:
        """The next tokens of text, or the next part of a picture, at most ``limit``.

        A picture that has to be computed at once is, however long it is.
        """
        number = self._at(start)
        if number is None:
            ahead = [span.start for span in self.spans if span.start > start]
            tokens = prompt[start : min([start + limit, *ahead])]
            last = start + len(tokens) == len(prompt)
            return BatchRow(slot, start, tokens, wants_logits=last)
        span, picture = self.spans[number], self.ready[number]
        end = span.start + span.tokens
        stop = end if span.whole else min(end, start + limit)
        if stop == end:
            del self.ready[number]
        return BatchRow(
            slot,
            start,
            prompt[start:stop],
            wants_logits=False,
            picture=picture,
            picture_from=start - span.start,
        )

    def _at(self, position: int) -> int | None:
        for number, span in enumerate(self.spans):
            if span.start <= position < span.start + span.tokens:
                return number
        return None
