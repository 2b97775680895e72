"""What can be chosen about a local engine. Light: needs no runtime, so any process can state it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Limits of one scheduler; the defaults suit a laptop."""

    prefill_chunk_tokens: int = 256
    max_queued: int = 1024
    batch_ageing_s: float = 10.0
    stall_after_s: float = 10.0
    """Without a step for so long while there is work, the thread counts as stuck."""
    max_failed_steps: int = 3
    """So many failing steps in a row end the thread."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every runtime understands; None leaves the choice to the model or the runtime.

    ``context_tokens`` is per sequence, ``threads`` are CPU threads. ``default_max_tokens`` bounds
    an answer whose request names no ``max_tokens``. ``exact_attention`` computes attention in F32
    where a runtime would round (llama.cpp does). ``token_delay_s`` is for ``echo`` only.
    """

    context_tokens: int | None = None
    max_sequences: int = 4
    threads: int | None = None
    default_max_tokens: int = 1024
    exact_attention: bool = False
    token_delay_s: float = 0.0
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
