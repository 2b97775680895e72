"""What a generation took: tokens and time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, and the engine's own times in seconds.

    ``cached_tokens`` of the prompt were not computed again. ``prefill_s`` runs from admission to
    the first sampled token, ``decode_s`` from there to the last. Of ``drafted_tokens`` guesses
    that were checked, ``accepted_tokens`` were what the model chose.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens after the first per second of decoding; None when there were fewer than two."""
        if self.completion_tokens < 2 or self.decode_s <= 0:
            return None
        return (self.completion_tokens - 1) / self.decode_s
