"""A model card: what routing weighs about a model, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts about one served model.

    ``context`` is in tokens, ``size_bytes`` on disk. ``skill_accuracy`` maps a skill (or
    ``skill/level``) to the share of right answers measured for this quantization; empty when
    unmeasured. ``tools``: its calls are read; ``json_schema``: its answers can be held to a schema
    or a grammar, and its calls be forced. Prices are in currency units per million tokens, 0 when
    nobody pays.
    ``memory_bytes`` is what the loaded model takes once its cache is full, as estimated before it
    was loaded; 0 when unknown. ``tokenizer`` is its tokenizer's fingerprint, known once it is
    loaded: models of one family share it. ``notes`` are what its user has to know: a context made
    smaller, memory that is tight.
    """

    name: str
    context: int
    runtime: str
    quantization: str = "unknown"
    parameters: int = 0
    size_bytes: int = 0
    sha256: str = ""
    tools: bool = False
    json_schema: bool = False
    modalities: tuple[str, ...] = ("text",)
    languages: tuple[str, ...] = ("en",)
    skill_accuracy: Mapping[str, float] = field(default_factory=dict)
    price_prompt_per_mtok: float = 0.0
    price_completion_per_mtok: float = 0.0
    memory_bytes: int = 0
    notes: tuple[str, ...] = ()
    tokenizer: str = ""

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The price of so many tokens, in currency units."""
        return (
            prompt_tokens * self.price_prompt_per_mtok
            + completion_tokens * self.price_completion_per_mtok
        ) / 1e6
