"""What can be chosen about a local engine. Light: needs no runtime, so any process can state it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from overspill.errors import ConfigurationError

Speculation = Literal["auto", "always", "off"]


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Limits of one scheduler; the defaults suit a laptop.

    Raises :class:`ConfigurationError` for a number that is out of its bounds.
    """

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
    speculation: Speculation = "auto"
    """``auto`` checks drafts where measured steps say that it pays, ``always`` wherever it can."""
    max_draft_tokens: int = 16
    gather_s: float = 0.0
    """So long, at most, a token waits for the next step's to be handed over with it; 0 hands each
    step's over. The first of an answer and its end never wait, nor does a model whose steps take
    longer than this."""
    max_adapters: int = 5
    """Adapter sets that run at once, taking turns: no one waits for more than the others' steps."""

    def __post_init__(self) -> None:
        for name, (least, most, kind) in _BOUNDS.items():
            _check_number(name, getattr(self, name), least, most, kind)
        if self.speculation not in get_args(Speculation):
            raise ConfigurationError(
                f"speculation is {self.speculation!r}.",
                mend=f"Use {', '.join(get_args(Speculation))}.",
            )

    @property
    def checked_tokens(self) -> int:
        """Tokens of a draft that one step may check for each sequence."""
        return 0 if self.speculation == "off" else self.max_draft_tokens


_BOUNDS: Mapping[str, tuple[float, float, type[int] | type[float]]] = {
    "prefill_chunk_tokens": (1, 1 << 20, int),
    # A step that computes a prompt is not shorter than one that only decodes.
    "prefill_stretch": (1.0, math.inf, float),
    "short_prompt_stretch": (1.0, math.inf, float),
    "max_queued": (0, 1 << 20, int),
    "batch_ageing_s": (0.0, math.inf, float),
    "stall_after_s": (0.001, math.inf, float),
    "max_failed_steps": (1, 1 << 20, int),
    "prefix_cache_bytes": (0, 1 << 50, int),
    "max_draft_tokens": (0, 1 << 16, int),
    "gather_s": (0.0, 60.0, float),
    "max_adapters": (1, 1 << 20, int),
}
"""Of :class:`SchedulerOptions`: least, most, and whether a fraction makes sense."""


def _check_number(
    name: str, value: Any, least: float, most: float, kind: type[int] | type[float]
) -> None:
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if number and least <= value <= most:
        return
    what = "a whole number" if kind is int else "a number"
    to = "" if most == math.inf else f" to {most:,.10g}"
    raise ConfigurationError(
        f"{name} is {value!r}; it must be {what} from {least:,.10g}{to}.",
        mend="Leave it out for the default.",
    )


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
    MLX refuses ``threads`` and ``exact_attention``: it chooses its threads, and computes in the
    weights' type. What embeds refuses all that only generating takes.
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
