"""A fitted scorer as the file that routing reads."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from overspill.routing.complexity import Scorer


def scorer_json(scorer: Scorer, about: Mapping[str, Any]) -> str:
    """What :meth:`Scorer.from_json` reads; ``about`` says how it came to be."""
    data: dict[str, Any] = {
        "about": dict(about),
        "fitted_for": dict(zip(("device", "cloud"), scorer.fitted_for, strict=True)),
        "prior": dict(zip(("device", "cloud"), scorer.prior, strict=True)),
        "structure": scorer.structure,
        "ngrams": {str(bucket): weights for bucket, weights in scorer.ngrams.items()},
        "buckets": scorer.buckets,
        "seen": base64.b64encode(scorer.seen).decode(),
    }
    if scorer.domains is not None:
        data["domains"] = scorer.domains.to_json()
    if scorer.vocabulary:
        data["vocabulary"] = base64.b64encode(scorer.vocabulary).decode()
        data["familiar"] = scorer.familiar
    return json.dumps(data, separators=(",", ":")) + "\n"
