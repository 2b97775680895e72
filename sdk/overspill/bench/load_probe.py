"""A process that loads a model, fills a context, and says what memory that took.

``python -m overspill.bench.load_probe FILE CONTEXT_TOKENS SEQUENCES`` prints one JSON object:
``estimate`` is what the engine said before it loaded, ``taken`` what the process grew by: its RSS,
on macOS its footprint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from overspill.engines.backend import BatchRow
from overspill.engines.llama_backends import start_backends
from overspill.engines.llama_cpp import LlamaCppBackend, LlamaCppOptions
from overspill.engines.process_footprint import process_footprint

_TOKEN = 300
"""An ordinary token of every made vocabulary."""


def measure(path: Path, context_tokens: int, sequences: int) -> dict[str, int]:
    """Load, run a step that all sequences take part in alike, fill one of them, and compare."""
    start_backends()
    before = process_footprint()
    backend = LlamaCppBackend(
        path,
        name=path.stem,
        options=LlamaCppOptions(context_tokens=context_tokens, max_sequences=sequences),
    )
    step = backend.batch_tokens
    share = min(step // sequences, context_tokens)
    # Alike: sequences of very different pasts would be computed apart.
    backend.run([BatchRow(n, 0, [_TOKEN] * share, wants_logits=True) for n in range(sequences)])
    at = share
    while at < context_tokens:
        size = (context_tokens - at) % step or step
        backend.run([BatchRow(0, at, [_TOKEN] * size, wants_logits=True)])
        at += size
    taken = process_footprint() - before
    told = {"estimate": backend.card.memory_bytes, "taken": taken}
    backend.close()
    return told


def main() -> None:
    """Command line."""
    path, context_tokens, sequences = sys.argv[1:]
    sys.stdout.write(json.dumps(measure(Path(path), int(context_tokens), int(sequences))) + "\n")


if __name__ == "__main__":
    main()
