"""A made-up tokenizer in which a word is a token: prompts of exactly n tokens, for any runtime.

Byte-level BPE as GPT-2's: 256 bytes, then syllables, then words of two and three syllables with a
space before them, each with the merge that makes it, so that " bake" is one token and any UTF-8
text can still be encoded. The sizes are those of real models, and so is the work of loading it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SPACE = "\u0120"
"""How byte-level BPE writes a space."""
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SYLLABLES = tuple(c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou")
BYTE_TOKENS = 256
MIN_SIZE = BYTE_TOKENS + 2 * len(_SYLLABLES) + len(_SYLLABLES) ** 2 + len(CONTROL)
"""Bytes, syllables without and with a space, all words of two syllables, control tokens."""


@dataclass(frozen=True, slots=True)
class MadeVocabulary:
    """``tokens`` by id; the last ``len(CONTROL)`` are control tokens, ``merges`` in rank order."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]

    @property
    def end_id(self) -> int:
        """``<|im_end|>``, which ends an answer."""
        return len(self.tokens) - 1


def make_vocabulary(size: int) -> MadeVocabulary:
    """A vocabulary of exactly ``size`` tokens.

    Raises ``ValueError`` below ``MIN_SIZE``, and where there are no more words of three syllables.
    """
    room = size - BYTE_TOKENS - len(CONTROL)
    made = list(itertools.islice(_made_tokens(), max(room, 0)))
    if size < MIN_SIZE or len(made) < room:
        raise ValueError(f"no vocabulary of {size} tokens can be made")
    return MadeVocabulary(
        tokens=(*_byte_tokens(), *(token for token, _ in made), *CONTROL),
        merges=tuple(merge for _, merge in made),
    )


def make_words(count: int, seed: Sequence[int]) -> str:
    """``count`` words of two syllables, each one token; the same ones for the same seed.

    The text begins with a space, so that the first word is one token too.
    """
    chosen = random.Random(repr(tuple(seed)))  # noqa: S311 - prompts, not secrets
    return "".join(f" {chosen.choice(_SYLLABLES)}{chosen.choice(_SYLLABLES)}" for _ in range(count))


def _made_tokens() -> Iterator[tuple[str, str]]:
    """(token, merge): later ones build on earlier ones, so their ranks rise."""
    for syllable in _SYLLABLES:
        yield syllable, f"{syllable[0]} {syllable[1]}"
    for syllable in _SYLLABLES:
        yield SPACE + syllable, f"{SPACE} {syllable}"
    for first, second in itertools.product(_SYLLABLES, repeat=2):
        yield SPACE + first + second, f"{SPACE}{first} {second}"
    for first, second, third in itertools.product(_SYLLABLES, repeat=3):
        yield SPACE + first + second + third, f"{SPACE}{first}{second} {third}"


def _byte_tokens() -> list[str]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(BYTE_TOKENS)]
