"""What a growing answer says about itself: numbers for the monitor's heads, and plain faults.

The numbers are of the model's own log-probabilities. Means and quantiles, never sums: a sum grows
with the answer's length and says little else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from overspill.types.chat import TokenSignal

NGRAM_TOKENS = 4
PROMPT_LIFT = "prompt_lift"
"""What stage 3 saw in the prompt: the gain of leaving beyond the prior's, at every check."""
LOOP_TOKENS = 24
"""So long a tail that says one thing three times or more has no end of its own."""
LOOP_TIMES = 3

_APOSTROPHES = str.maketrans("\u2019\u02bc", "''")
_REFUSAL = re.compile(
    r"(?:(?:i'm|i am|we're|we are) (?:very |so |really )?sorry|sorry|i apologi[sz]e|unfortunately)"
    r"\W+(?:but )?(?:i|we)(?: am|'m| are)? ?(?:can't|cannot|can not|unable|not able|won't|do not"
    r"|don't)"
    r"|(?:i|we) (?:can't|cannot|can not|won't) (?:help|assist|answer|provide|do that|comply|fulfil"
    r"|support|discuss|create|generate|complete)"
    r"|(?:i'm|i am) (?:unable|not able) to"
    r"|as an? (?:ai|large language model|language model)\b"
    r"|i (?:do not|don't) know\b"
    r"|(?:es )?tut mir leid\W+(?:aber )?(?:ich kann|das kann ich)"
    r"|ich kann (?:\w+ ){0,3}(?:nicht|leider)"
    r"|(?:je suis )?désolée?\W+(?:mais )?je ne"
    r"|je ne (?:peux|suis) pas"
    r"|lo siento\W+(?:pero )?no (?:puedo|sé)"
    r"|no puedo (?:ayudar|responder|proporcionar)"
    r"|mi dispiace\W+(?:ma )?non"
    r"|(?:desculpe|lamento)\W+(?:mas )?(?:eu )?não"
    r"|(?:很)?抱歉|对不起\W*(?:但)?我(?:无法|不能)|申し訳(?:あり|ござ)",
    re.IGNORECASE,
)
# How those begin: text that begins otherwise need not be held back for them.
_HEADS = (
    "i'm ", "i am ", "we're ", "we are ", "i can", "we can", "i won't", "we won't", "i don't",
    "i do not", "i apolog", "sorry", "unfortunately", "as a ", "as an ", "es tut mir", "tut mir",
    "ich kann", "je suis", "désol", "je ne", "lo siento", "no puedo", "mi dispiace", "desculpe",
    "lamento", "抱歉", "很抱歉", "对不起", "申し訳",
)  # fmt: skip
_UNDECIDED_CHARS = 48


def features(signals: Sequence[TokenSignal], at: int | None = None) -> dict[str, float]:
    """The numbers after ``at`` tokens (None: at the end), of that many first ``signals``.

    At 0 nothing but what the prompt's prefill gave: the first token's distribution, and
    ``state_0``, ``state_1``, ... where the watch named token ids. Empty without signals.
    """
    if not signals:
        return {}
    first = signals[0]
    found = {"first_entropy": first.entropy, "first_margin": first.margin}
    found.update((f"state_{n}", value) for n, value in enumerate(first.state))
    if at == 0:
        return found
    known = signals if at is None else signals[:at]
    logprobs = sorted(signal.logprob for signal in known)
    margins = sorted(signal.margin for signal in known)
    entropies = [signal.entropy for signal in known]
    found |= {
        "mean_logprob": _mean(logprobs),
        "least_logprob": logprobs[0],
        "low_logprob": _quantile(logprobs, 0.1),
        "median_logprob": _quantile(logprobs, 0.5),
        "mean_margin": _mean(margins),
        "least_margin": margins[0],
        "low_margin": _quantile(margins, 0.1),
        "mean_entropy": _mean(entropies),
        "most_entropy": max(entropies),
        "entropy_slope": _slope(entropies),
        "repetition": repetition([signal.token_id for signal in known]),
        "length": len(known) / 128,
    }
    return found


def repetition(tokens: Sequence[int]) -> float:
    """The share of n-grams that stood there before; 0 for a short answer."""
    count = len(tokens) - NGRAM_TOKENS + 1
    if count < 2:
        return 0.0
    distinct = {tuple(tokens[i : i + NGRAM_TOKENS]) for i in range(count)}
    return 1.0 - len(distinct) / count


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether the answer's tail, at least 24 tokens, is one block again and again."""
    for period in range(1, len(tokens) // LOOP_TIMES + 1):
        length = max(LOOP_TOKENS, LOOP_TIMES * period)
        if length > len(tokens):
            break
        tail = tokens[-length:]
        if all(tail[i] == tail[i - period] for i in range(period, length)):
            return True
    return False


def is_refusal(text: str) -> bool:
    """Whether an answer begins as refusals do; in a few languages, and for certain in none."""
    return _REFUSAL.match(_opening(text)) is not None


def may_become_refusal(text: str) -> bool:
    """Whether the beginning of an answer leaves open that it is one."""
    opening = _opening(text)
    if len(opening) >= _UNDECIDED_CHARS:
        return False
    return any(head.startswith(opening) or opening.startswith(head) for head in _HEADS)


def dot(
    weights: Mapping[str, tuple[float, float]], values: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Each feature's summand of the device's and of the cloud's head, and their ``bias``.

    A feature that is missing counts as 0, which is what the fit gave such rows.
    """
    return {
        name: (device, cloud)
        if name == "bias"
        else (device * values.get(name, 0.0), cloud * values.get(name, 0.0))
        for name, (device, cloud) in weights.items()
    }


def _opening(text: str) -> str:
    return text.lstrip(" \t\r\n\"'*#>-").translate(_APOSTROPHES).lower()[: 4 * _UNDECIDED_CHARS]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two neighbours, linearly."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _slope(values: Sequence[float]) -> float:
    """Least squares, per token; 0 for one value."""
    count = len(values)
    if count < 2:
        return 0.0
    middle, mean = (count - 1) / 2, _mean(values)
    spread = count * (count * count - 1) / 12
    return sum((i - middle) * (value - mean) for i, value in enumerate(values)) / spread
