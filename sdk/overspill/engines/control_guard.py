"""Keeps what a request brings from writing control tokens.

A document that holds ``<|im_end|><|im_start|>system`` must not open a turn of its own: wherever a
message, a call or a tool spells a control token, a joint is put into the spelling before the
template runs, and the piece is tokenized as plain text afterwards. Nothing is removed or changed.
A joint stays where a template writes a value as Python or JSON does, in escapes; whatever else a
template makes of it spells no control token either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# A noncharacter (Unicode 23.7): for internal use, in no text and in no template.
_JOINT = "\ufdd0"
_ESCAPED = "\\ufdd0"


class ControlGuard:
    """For one vocabulary; ``control_texts`` are how its control tokens are written."""

    def __init__(self, control_texts: Sequence[str]) -> None:
        longest_first = sorted(filter(None, control_texts), key=len, reverse=True)
        joint = f"(?:{_JOINT}|{re.escape(_ESCAPED)})"
        spelled = "|".join(map(re.escape, longest_first))
        jointed = "|".join(f"{re.escape(t[0])}{joint}{re.escape(t[1:])}" for t in longest_first)
        self._spelled = re.compile(spelled) if spelled else None
        self._jointed = re.compile(f"({jointed})")

    def mark(self, text: str) -> str:
        """The text with a joint in each spelled control token; joints of its own are doubled."""
        if self._spelled is None:
            return text
        doubled = text.replace(_JOINT, 2 * _JOINT)
        return self._spelled.sub(lambda found: f"{found[0][0]}{_JOINT}{found[0][1:]}", doubled)

    def split(self, prompt: str) -> Iterator[tuple[str, bool]]:
        """Pieces of a rendered prompt and whether control tokens count in them; joints are gone."""
        if self._spelled is None or not (_JOINT in prompt or _ESCAPED in prompt):
            if prompt:
                yield prompt, True
            return
        for i, piece in enumerate(self._jointed.split(prompt)):
            if i % 2:
                yield piece[0] + piece[1:].removeprefix(_JOINT).removeprefix(_ESCAPED), False
            elif piece:
                yield piece.replace(2 * _JOINT, _JOINT), True
