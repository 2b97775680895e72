"""What can be chosen about a local engine. Light: needs no runtime, so any process can state it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Limits of one scheduler; the defaults suit a laptop."""

    prefill_chunk_tokens: int = 256
    prefill_stretch: float = 2.0
    """So many times a step of all that decode or wait for it, once they decode, takes at most one
    that computes prompts beside decoding."""
    short_prompt_stretch: float = 3.0
    """So many times a step of those who decode takes at most one in which a prompt of one chunk is
    done, beside others that wait."""
    max_queued: int = 1024
    batch_ageing_s: float = 10.0
    stall_after_s: float = 10.0
    """Without a step for so long while there is work, the thread counts as stuck."""
    max_failed_steps: int = 3
    """So many failing steps in a row end the thread."""
    prefix_cache_bytes: int = 256 << 20
    """Computed prompts kept in host memory, outside the KV cache; 0 keeps none there."""
    speculation: Literal["auto", "always", "off"] = "auto"
    """``auto`` checks drafts where measured steps say that it pays, ``always`` wherever it can."""
    max_draft_tokens: int = 16
    gather_s: float = 0.0
    """So long, at most, a token waits for the next step's to be handed over with it; 0 hands each
    step's over. The first of an answer and its end never wait, nor does a model whose steps take
    longer than this."""
    max_adapters: int = 5
    """Adapter sets that run at once, taking turns: no one waits for more than the others' steps."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every runtime understands; None leaves the choice to the model or the runtime.

    ``context_tokens`` is per sequence, ``threads`` are CPU threads. ``default_max_tokens`` bounds
    an answer whose request names no ``max_tokens``. ``exact_attention`` computes attention in F32
    where a runtime would round (llama.cpp does). With ``shrink_context`` a context that does not
    fit the memory is made smaller, and the model's card says so, where it would be refused.
    ``token_delay_s`` is for ``echo`` only.
    ``adapters`` are LoRA adapters by name: GGUF files for llama.cpp, folders for MLX.
    ``draft_model`` is a smaller model of the same tokenizer, whose guesses the model checks.
    ``mmproj`` is the projector file by which a GGUF model reads images; other runtimes refuse it.
    ``kv_bits`` (8 or 4) quantizes the caches on MLX, at the price of batches; others refuse it.
    """

    context_tokens: int | None = None
    max_sequences: int = 4
    threads: int | None = None
    default_max_tokens: int = 1024
    exact_attention: bool = False
    shrink_context: bool = False
    token_delay_s: float = 0.0
    adapters: Mapping[str, str] = field(default_factory=dict)
    draft_model: str | None = None
    mmproj: str | None = None
    kv_bits: int | None = None
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
