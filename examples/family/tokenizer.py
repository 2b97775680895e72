"""Train the family's tokenizer: byte-level BPE with single digits, from the generator's text.

``python -m examples.family.tokenizer`` writes ``tokenizer.json``. Any text round-trips, since
all 256 bytes are tokens; each word of the templates tends to be one token.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.family.generate import cells, stream
from examples.family.template import END_OF_TEXT, IM_END, IM_START, render_pieces

HERE = Path(__file__).resolve().parent
DEFAULT_PATH = HERE / "models" / "tokenizer.json"
VOCABULARY = 2048
SPECIAL = (END_OF_TEXT, IM_START, IM_END)
# One token each, though ordinary text: a call's tags cost nothing and cannot be cut in two.
TAGS = (
    "<tools>",
    "</tools>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)


def _texts(count: int) -> Iterator[str]:
    weights = dict.fromkeys(cells(), 1.0)
    for messages, tools in stream(seed=0, block=0, count=count, weights=weights):
        yield "".join(text for text, _ in render_pieces(messages, tools))


def train(count: int = 40_000) -> Tokenizer:
    """Train on ``count`` conversations of the training stream; the same each time."""
    tokenizer = Tokenizer(models.BPE())
    # In GGUF terms this is the pre-tokenizer "smollm".
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL]
        + [AddedToken(t, special=False, normalized=False) for t in TAGS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(count), trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return tokenizer


def main() -> None:
    """Write ``tokenizer.json``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_PATH)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    tokenizer.save(str(args.out))
    print(f"{tokenizer.get_vocab_size()} tokens in {args.out}")


if __name__ == "__main__":
    main()
