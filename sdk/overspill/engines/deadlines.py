"""Deadlines: which requests cannot meet theirs, and what one that is late is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from overspill.engines.admission import least_prefill_tokens
from overspill.engines.generation import Generation
from overspill.errors import DeadlineExceeded


def first_limit_s(generation: Generation) -> float | None:
    """The time that the first token is allowed; None without a limit."""
    limits = (generation.request.first_token_s, generation.request.deadline_s)
    return min((limit for limit in limits if limit is not None), default=None)


def check_reachable(
    generation: Generation,
    ahead: Iterable[Generation],
    *,
    computed: int,
    chunk_tokens: int,
    tokens_per_s: float | None,
) -> None:
    """Raise :class:`DeadlineExceeded` when even computing the prompts ahead takes longer.

    ``computed`` tokens of its own prompt are there already. A lower bound: decoding, and waiting
    for a free slot, come on top. Without a measured rate nobody is refused.
    """
    limit_s = first_limit_s(generation)
    if limit_s is None or tokens_per_s is None:
        return
    tokens = least_prefill_tokens(
        len(generation.prompt) - computed,
        (len(g.prompt) - g.computed for g in ahead if g.leader is None),
        chunk_tokens,
    )
    needed_s = tokens / tokens_per_s
    if needed_s > limit_s:
        raise DeadlineExceeded(
            f"The first token would take at least {needed_s:.1f} s; {limit_s:g} s were allowed.",
            mend="Allow more time, or another route.",
            retry_after_s=needed_s,
        )


def too_late(generation: Generation) -> DeadlineExceeded:
    """The error of a request whose deadline has passed, naming the limit that did."""
    limit_s = generation.request.deadline_s if generation.tokens else first_limit_s(generation)
    return DeadlineExceeded(
        f"The answer was not there within {limit_s:g} s "
        f"({len(generation.tokens)} of at most {generation.max_tokens} tokens were).",
        mend="Allow more time, ask for fewer tokens, or allow another route.",
    )
