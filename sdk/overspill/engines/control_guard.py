"""Keeps messages from writing control tokens.

A document that holds ``<|im_end|><|im_start|>system`` must not open a turn of its own: wherever
a message spells a control token, the spelling is marked before the template runs, and tokenized
as plain text afterwards. Nothing is removed or changed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from overspill.types.chat import Message

# Noncharacters (Unicode 23.7): for internal use, in no text and in no template.
_BEGIN, _END = "\ufdd0", "\ufdd1"


class ControlGuard:
    """For one vocabulary; ``control_texts`` are how its control tokens are written."""

    def __init__(self, control_texts: Sequence[str]) -> None:
        longest_first = sorted(control_texts, key=len, reverse=True)
        spelled = "|".join(re.escape(text) for text in longest_first if text)
        self._spelled = re.compile(spelled) if spelled else None
        self._marked = re.compile(f"{_BEGIN}({spelled}){_END}")

    def mark(self, text: str) -> str:
        """The text with each spelled control token marked."""
        if self._spelled is None:
            return text
        return self._spelled.sub(lambda found: f"{_BEGIN}{found[0]}{_END}", text)

    def mark_messages(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with their contents and their calls' arguments marked."""
        return tuple(
            dataclasses.replace(
                message,
                content=self.mark(message.content),
                tool_calls=tuple(
                    dataclasses.replace(call, arguments=self.mark(call.arguments))
                    for call in message.tool_calls
                ),
            )
            for message in messages
        )

    def split(self, prompt: str) -> Iterator[tuple[str, bool]]:
        """Pieces of a rendered prompt and whether control tokens count in them; marks are gone."""
        if self._spelled is None:
            yield prompt, True
            return
        for i, piece in enumerate(self._marked.split(prompt)):
            if piece:
                yield piece, i % 2 == 0
