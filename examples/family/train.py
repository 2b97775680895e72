"""Train brook or river: seeded, resumable, on a CPU or a GPU.

``python -m examples.family.train brook --tokens 24000000`` continues from the last checkpoint in
the user's cache folder, if there is one. Both models see the same stream of conversations, in the
same order. The learning rate warms up, stays, and falls to zero over the last part of the run, so
a run can be prolonged from any checkpoint made before that fall (``--resume-from``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.family.config import MODELS
from examples.family.generate import LEVELS, Weights, cells, stream
from examples.family.model import Llama
from examples.family.optimizer import Muon
from examples.family.prime import prime
from examples.family.template import END_OF_TEXT, render_pieces
from examples.family.tokenizer import DEFAULT_PATH

BLOCK = 2048  # conversations per block; a block is sorted by length, then cut into batches
# Small on purpose: here it is steps, more than tokens, that the models learn by.
BATCH_TOKENS = 1024
WARMUP_STEPS = 300
# Weights of the prompt's own tokens: learning to predict them helps the embeddings at first.
PROMPT_WEIGHT, PROMPT_TOKENS = 0.1, 800_000
SKILL_WEIGHTS = {
    "arithmetic": 1.4,
    "sorting": 1.3,
    "counting": 1.2,
    "units": 0.8,
    "dates": 1.1,
    "extraction": 1.4,
    "classification": 0.8,
    "summary": 0.8,
    "story": 0.4,
    "facts": 2.4,
    "followup": 1.4,
    "tools": 1.0,
    "chat": 0.35,
}
# (from this many tokens on: weights of easy, medium and hard, and of words to repeat)
CURRICULUM = (
    (0, (0.50, 0.33, 0.17), 1.0),
    (1_200_000, (0.38, 0.36, 0.26), 0.5),
    (2_400_000, (0.30, 0.36, 0.34), 0.2),
)
# Between these tokens every batch is followed by one of random tokens said twice.
DRILL, DRILL_TOKENS = (0, 800_000), 1024
# Parameters that are several matrices in one, see Muon.
STACKS = {"qkv": 3, "gate_up": 2}
Batch = tuple[Tensor, Tensor]


def cell_weights(tokens: int, levels: Sequence[float] | None = None) -> Weights:
    """Return how often each (skill, level) is drawn once ``tokens`` tokens were seen.

    ``levels`` are weights of easy, medium and hard to take instead of the curriculum's.
    """
    _, shares, repeat = next(row for row in reversed(CURRICULUM) if tokens >= row[0])
    by_level = dict(zip(LEVELS, levels or shares, strict=True))
    mix = {(skill, level): SKILL_WEIGHTS[skill] * by_level[level] for skill, level in cells()}
    mix["repeat", "easy"] = repeat
    return mix


def encode(
    tokenizer: Tokenizer, pieces: list[tuple[str, bool]], prompt_weight: float
) -> tuple[list[int], list[float]]:
    """Return token ids and the weight that each has as a target."""
    ids: list[int] = []
    weights: list[float] = []
    for text, learnt in pieces:
        part = tokenizer.encode(text, add_special_tokens=False).ids
        ids += part
        weights += [1.0 if learnt else prompt_weight] * len(part)
    return ids, weights


def block_batches(
    tokenizer: Tokenizer,
    seed: int,
    block: int,
    weights: Weights,
    context: int,
    prompt_weight: float,
) -> Iterator[Batch]:
    """Yield block number ``block`` as shuffled batches of (ids, target weights)."""
    pad = tokenizer.token_to_id(END_OF_TEXT)
    rows = []
    for messages, tools in stream(seed, block, BLOCK, weights):
        ids, learnt = encode(tokenizer, render_pieces(messages, tools), prompt_weight)
        rows.append((ids[: context + 1], learnt[: context + 1]))
    rows.sort(key=lambda row: len(row[0]))
    groups: list[list[tuple[list[int], list[float]]]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    Random(f"order-{seed}-{block}").shuffle(groups)
    for group in groups:
        length = max(len(ids) for ids, _ in group)
        ids_array = np.full((len(group), length), pad, dtype=np.int64)
        weight_array = np.zeros((len(group), length), dtype=np.float32)
        for i, (ids, weights) in enumerate(group):
            ids_array[i, : len(ids)] = ids
            weight_array[i, : len(ids)] = weights
        yield torch.from_numpy(ids_array), torch.from_numpy(weight_array[:, 1:].copy())


def drill_batch(name: str, low: int, high: int) -> Batch:
    """Return random tokens said twice, with loss on the second time: pure practice in copying.

    It refines the heads that ``prime`` puts in place, which conversations alone did not form
    within six million tokens.
    """
    rng = np.random.default_rng(list(name.encode()))
    length = int(rng.integers(4, 41))
    rows = DRILL_TOKENS // (2 * length + 1)
    words = rng.integers(low, high, size=(rows, length), dtype=np.int64)
    pad = np.zeros((rows, 1), dtype=np.int64)
    weights = np.zeros((rows, 2 * length), dtype=np.float32)
    weights[:, length:] = 1.0
    return torch.from_numpy(np.hstack((words, pad, words))), torch.from_numpy(weights)


def rate(step: int, tokens: int, total: int, decay: float) -> float:
    """Return the factor of the learning rate: warm-up, plateau, linear fall to zero."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    left = max(0.0, (total - tokens) / (decay * total))
    return min(warm, left, 1.0)


class Trainer:
    """One model with its optimizers and its place in the stream."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.folder = Path(args.folder) / args.model
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = Llama(MODELS[args.model])
        prime(self.model)
        self.model.to(args.device)
        named = list(self.model.named_parameters())
        matrices = {n: p for n, p in named if p.ndim == 2 and "blocks" in n}
        others = [p for n, p in named if n not in matrices]
        stacks = [STACKS.get(n.rsplit(".", 1)[-1], 1) for n in matrices]
        self.muon = Muon(list(matrices.values()), stacks, rate=args.muon_rate)
        self.adam = torch.optim.AdamW(
            others, lr=args.adam_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.state = {"step": 0, "tokens": 0, "block": 0, "batch": 0, "seconds": 0.0}
        self.state["block_tokens"] = 0  # tokens seen when the block began; they set its mixture

    def save(self, name: str = "last.pt") -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            "config": asdict(self.model.config),
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "state": self.state,
        }
        path = self.folder / name
        torch.save(content, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        content: dict[str, Any] = torch.load(path, map_location=self.args.device)
        self.model.load_state_dict(content["model"])
        if "muon" in content:  # a model that was grown has no optimizer's state yet
            self.muon.load_state_dict(content["muon"])
            self.adam.load_state_dict(content["adam"])
        self.state = content["state"]
        print(f"resumed at {self.state}", flush=True)

    def step(self, ids: Tensor, weights: Tensor) -> float:
        """One optimizer step on one batch; returns the loss in nats."""
        factor = rate(
            int(self.state["step"]), int(self.state["tokens"]), self.args.tokens, self.args.decay
        )
        loss = self.model.loss(ids.to(self.args.device), weights.to(self.args.device))
        loss.backward()
        for group in self.adam.param_groups:
            group["lr"] = self.args.adam_rate * factor
        self.muon.step(self.args.muon_rate * factor)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.muon.zero_grad()
        return float(loss.detach())

    def _log(self, losses: list[float], started: float) -> None:
        line = {
            **self.state,
            "loss": round(sum(losses) / len(losses), 4),
            "per_second": round(BATCH_TOKENS * len(losses) / (time.perf_counter() - started)),
        }
        print(json.dumps(line), flush=True)

    def batches(self, tokenizer: Tokenizer) -> Iterator[Batch]:
        """Yield batches from the place in the stream on, keeping that place up to date."""
        while self.state["tokens"] < self.args.tokens:
            skip = int(self.state["batch"])
            seen = int(self.state["block_tokens"])
            block = block_batches(
                tokenizer,
                self.args.seed,
                int(self.state["block"]),
                cell_weights(seen, self.args.levels),
                self.model.config.context,
                PROMPT_WEIGHT if seen < PROMPT_TOKENS else 0.0,
            )
            for index, batch in enumerate(block):
                if index < skip:
                    continue
                yield batch
                if DRILL[0] <= seen < DRILL[1]:
                    name = f"drill-{self.args.seed}-{self.state['block']}-{index}"
                    yield drill_batch(name, 16, self.model.config.vocabulary)
                self.state["batch"] = index + 1
                self.state["tokens"] += batch[0].numel()
                if self.state["tokens"] >= self.args.tokens:
                    return
            self.state["block"] += 1
            self.state["batch"] = 0
            self.state["block_tokens"] = self.state["tokens"]

    def run(self, tokenizer: Tokenizer) -> None:
        """Train until the token budget or the time limit is reached, then save."""
        begun = saved = logged = time.perf_counter()
        carried = float(self.state["seconds"])
        losses: list[float] = []
        for ids, weights in self.batches(tokenizer):
            now = time.perf_counter()
            if now - begun > self.args.limit_seconds:
                self.save()
                return
            if now - saved > self.args.save_seconds:
                self.save()
                saved = now
            losses.append(self.step(ids, weights))
            self.state["step"] += 1
            self.state["seconds"] = carried + time.perf_counter() - begun
            if len(losses) == self.args.log_every:
                self._log(losses, logged)
                losses, logged = [], time.perf_counter()
        self.save()
        self.save("final.pt")


def default_folder() -> Path:
    """Return where checkpoints live: the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        from platformdirs import user_cache_dir

        base = user_cache_dir("overspill")
        return Path(base) / "family"
    except ImportError:
        return Path(base) / "overspill" / "family"


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--tokens", type=int, default=4_500_000, help="length of the whole run")
    parser.add_argument("--decay", type=float, default=0.9, help="share of the run that decays")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--muon-rate", type=float, default=0.01)
    parser.add_argument("--adam-rate", type=float, default=0.002)
    parser.add_argument("--folder", default=str(default_folder()))
    parser.add_argument(
        "--levels", type=float, nargs=3, help="weights of easy, medium, hard; else the curriculum's"
    )
    parser.add_argument("--resume-from", type=Path, help="a checkpoint other than the last")
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints")
    parser.add_argument("--compile", action="store_true", help="fuse by torch.compile")
    parser.add_argument("--save-seconds", type=float, default=120.0)
    parser.add_argument("--limit-seconds", type=float, default=float("inf"))
    parser.add_argument("--log-every", type=int, default=50)
    return parser.parse_args()


def main() -> None:
    """Train one model."""
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    checkpoint = args.resume_from or trainer.folder / "last.pt"
    if checkpoint.exists() and not args.fresh:
        trainer.load(checkpoint)
    if args.compile:
        trainer.model.compile_hidden()
    trainer.run(Tokenizer.from_file(str(DEFAULT_PATH)))


if __name__ == "__main__":
    main()
