"""A process that loads a model, fills a context, and says what memory that took.

``python -m overspill.bench.load_probe FILE CONTEXT_TOKENS SEQUENCES`` prints one JSON object:
``estimate`` is what the engine said before it loaded, ``taken`` what the process grew by.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from overspill.engines.backend import BatchRow
from overspill.engines.llama_backends import start_backends
from overspill.engines.llama_cpp import LlamaCppBackend, LlamaCppOptions
from overspill.errors import MissingExtra

_STATUS = Path("/proc/self/status")
_TOKEN = 300
"""An ordinary token of every made vocabulary."""


def resident_bytes() -> int:
    """This process's own pages and those of files that it has mapped."""
    if _STATUS.exists():
        lines = (line.partition(":") for line in _STATUS.read_text("ascii").splitlines())
        sizes = {key: value.split() for key, _, value in lines}
        return sum(int(sizes[key][0]) * 1024 for key in ("RssAnon", "RssFile"))
    try:
        import psutil
    except ImportError:
        raise MissingExtra("Measuring memory on this system", "bench") from None
    return int(psutil.Process().memory_info().rss)


def measure(path: Path, context_tokens: int, sequences: int) -> dict[str, int]:
    """Load, fill one sequence but for a last step that all take part in, and compare."""
    start_backends()
    before = resident_bytes()
    backend = LlamaCppBackend(
        path,
        name=path.stem,
        options=LlamaCppOptions(context_tokens=context_tokens, max_sequences=sequences),
    )
    step = backend.batch_tokens
    share = min(step // sequences, context_tokens)
    full = context_tokens - share
    for at in range(0, full, step):
        backend.run([BatchRow(0, at, [_TOKEN] * min(step, full - at), wants_logits=False)])
    rows = [BatchRow(0, full, [_TOKEN] * share, wants_logits=True)]
    rows += [BatchRow(n, 0, [_TOKEN] * share, wants_logits=True) for n in range(1, sequences)]
    backend.run(rows)
    taken = resident_bytes() - before
    told = {"estimate": backend.card.memory_bytes, "taken": taken}
    backend.close()
    return told


def main() -> None:
    """Command line."""
    path, context_tokens, sequences = sys.argv[1:]
    sys.stdout.write(json.dumps(measure(Path(path), int(context_tokens), int(sequences))) + "\n")


if __name__ == "__main__":
    main()
