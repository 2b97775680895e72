"""`overspill eval quant`: what quantization costs one model, so that a user can choose.

1. Each file answers the same prompts greedily: accuracy by skill, and tokens per second.
2. Each is then led along the reference's answers, token by token: the Kullback-Leibler divergence
   of its distributions from the reference's says how far it is from it, whatever it would answer.
The reference is the file with the most bits. It is loaded beside each other one. A prompt that one
of them cannot be asked (a turn too many for a model without a chat template, say) is left out for
all, and the report says so.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from overspill.engines.backend import Backend, BatchRow
from overspill.engines.chat_format import ChatTemplates
from overspill.engines.options import EngineOptions
from overspill.engines.registry import RUNTIMES, name_of, open_engine, runtime_of
from overspill.errors import ContextOverflow, OverspillError, UnsupportedOption, UsageError
from overspill.evals.grade import gradable
from overspill.evals.players import EnginePlayer, Played, SignalOptions
from overspill.evals.prompt_set import Prompt
from overspill.types.card import ModelCard
from overspill.types.chat import Privacy

Floats = NDArray[np.float64]
_BITS = {"F32": 32, "BF16": 16, "F16": 16}
_QUANTILE = 0.99


@dataclass(frozen=True, slots=True)
class QuantOptions:
    """``graded`` says whether right answers mean anything for these models. KL is measured along
    at most ``kl_tokens`` tokens of each of ``kl_prompts`` answers."""

    streams: int = 4
    max_tokens: int = 128
    kl_prompts: int = 100
    kl_tokens: int = 64
    graded: bool = True


@dataclass(frozen=True, slots=True)
class Answers:
    """What one file answered by the prompts' ids, how long all of it took, and what it refused."""

    spec: str
    card: ModelCard
    played: Mapping[str, Played]
    seconds: float
    refused: Mapping[str, OverspillError]


def compare(
    specs: Sequence[str], prompts: Sequence[Prompt], options: QuantOptions
) -> dict[str, Any]:
    """The report. Raises ``UsageError`` where two files are not one model's, what keeps a file
    from being loaded, and why it can be asked nothing where it refuses every prompt."""
    answers = [anyio.run(_answers, spec, prompts, options) for spec in specs]
    refused = {name: error for one in answers for name, error in one.refused.items()}
    asked = [prompt for prompt in prompts if prompt.id not in refused]
    if not asked:
        raise next(iter(refused.values()), UsageError("There are no prompts.", mend="Give some."))
    reference = max(answers, key=lambda one: (_bits(one.card), one.card.size_bytes))
    models = [_row(one, reference, asked, options) for one in answers]
    return {
        "reference": reference.spec,
        "prompts": len(asked),
        "left_out": [{"id": name, **error.as_dict()} for name, error in refused.items()],
        "models": models,
        "figures": [figure for model in models for figure in _figures(model)],
    }


async def _answers(spec: str, prompts: Sequence[Prompt], options: QuantOptions) -> Answers:
    engine_options = EngineOptions(max_sequences=options.streams)
    played: dict[str, Played] = {}
    refused: dict[str, OverspillError] = {}
    failures: list[OverspillError] = []
    async with open_engine(spec, options=engine_options) as engine:
        player = EnginePlayer(engine, SignalOptions(options.kl_tokens))
        left, started = iter(prompts), time.perf_counter()

        async def ask(prompt: Prompt) -> None:
            request = prompt.request(privacy=Privacy.DEVICE, max_tokens=options.max_tokens)
            try:
                played[prompt.id] = await player.answer(request)
            except (UnsupportedOption, ContextOverflow) as error:
                refused[prompt.id] = error

        async def stream() -> None:
            try:
                for prompt in left:
                    await ask(prompt)
            except OverspillError as error:
                # Kept for after the group, which would wrap it.
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(options.streams):
                group.start_soon(stream)
        if failures:
            raise failures[0]
        return Answers(spec, engine.card, played, time.perf_counter() - started, refused)


def _bits(card: ModelCard) -> int:
    return _BITS.get(_label(card.quantization), 0)


def _label(quantization: str) -> str:
    """``F32`` for llama.cpp's ``all F32``."""
    return (quantization.split() or ["unknown"])[-1].upper()


def _row(
    one: Answers, reference: Answers, prompts: Sequence[Prompt], options: QuantOptions
) -> dict[str, Any]:
    tokens = sum(played.usage.completion_tokens for played in one.played.values())
    row: dict[str, Any] = {
        "file": one.spec,
        "name": one.card.name,
        "quantization": _label(one.card.quantization),
        "size_bytes": one.card.size_bytes,
        "tokens_per_s": round(tokens / one.seconds, 1) if one.seconds else None,
        "accuracy": _accuracy(one, prompts) if options.graded else None,
        "kl": None,
    }
    if not options.graded:
        row["accuracy_reason"] = "no prompt set was given"
    if one is reference:
        row["kl_reason"] = "it is what the others are compared with"
    else:
        row["kl"] = _divergence(one, reference, prompts, options)
    return row


def _accuracy(one: Answers, prompts: Sequence[Prompt]) -> dict[str, float]:
    """The share of right answers, of all and by skill."""
    found: dict[str, list[bool]] = defaultdict(list)
    for prompt in prompts:
        played = one.played[prompt.id]
        right = prompt.is_right(gradable(played.text, played.tool_calls))
        if right is not None:
            found["all"].append(right)
            group = next(iter(prompt.about.values()), None)
            if group is not None:
                found[group].append(right)
    return {name: round(sum(values) / len(values), 4) for name, values in found.items()}


def _divergence(
    one: Answers, reference: Answers, prompts: Sequence[Prompt], options: QuantOptions
) -> dict[str, float]:
    """KL(reference || this) in nats over the reference's answers, and how often both prefer the
    same token."""
    divergences, same = [], []
    with _backend(reference.spec) as base, _backend(one.spec) as other:
        if base.vocabulary.size != other.vocabulary.size:
            raise UsageError(
                f"{one.spec} and {reference.spec} have other vocabularies: they are two models.",
                mend="Give files of one model.",
            )
        templates = ChatTemplates(base, model=reference.card.name)
        for prompt in prompts[: options.kl_prompts]:
            signals = reference.played[prompt.id].signals
            answer = [int(token) for token in signals["token_ids"]]
            asked = _asked(base, templates, prompt)
            wanted, given = (_log_probs(backend, asked, answer) for backend in (base, other))
            divergences.append((np.exp(wanted) * (wanted - given)).sum(axis=1))
            same.append(wanted.argmax(axis=1) == given.argmax(axis=1))
    every = np.maximum(np.concatenate(divergences), 0.0)
    return {
        "tokens": len(every),
        "mean": round(float(every.mean()), 6),
        "p99": round(float(np.quantile(every, _QUANTILE)), 6),
        "same_token": round(float(np.concatenate(same).mean()), 4),
    }


@contextmanager
def _backend(spec: str) -> Iterator[Backend]:
    runtime, path = runtime_of(spec)
    opener, _, _ = RUNTIMES[runtime]
    backend = opener(Path(path), name_of(spec), EngineOptions(max_sequences=1))
    try:
        yield backend
    finally:
        backend.close()


def _asked(backend: Backend, templates: ChatTemplates, prompt: Prompt) -> list[int]:
    """The prompt's tokens, as the engine would ask it."""
    request = prompt.request(privacy=Privacy.DEVICE, max_tokens=1)
    template = templates.choose(request.messages, request.tools)
    tokens = backend.tokenize(template.render(request.messages, request.tools))
    bos = backend.vocabulary.bos_id
    if bos is not None and tokens[:1] != [bos]:
        tokens.insert(0, bos)
    return tokens


def _log_probs(backend: Backend, asked: list[int], answer: list[int]) -> Floats:
    """The distribution before each of the answer's tokens, shape (tokens, vocabulary)."""
    backend.forget(0, 0)
    tokens, first = asked + answer[:-1], len(asked) - 1
    rows = []
    for start in range(0, len(tokens), backend.batch_tokens):
        part = tokens[start : start + backend.batch_tokens]
        outputs = min(len(part), start + len(part) - first)
        if outputs <= 0:
            backend.run([BatchRow(0, start, part, wants_logits=False)])
        else:
            row = BatchRow(0, start, part, wants_logits=True, outputs=outputs)
            rows.append(np.array(backend.run([row]), dtype=np.float64))
    logits = np.concatenate(rows)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _figures(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stable names by the file's quantization; nothing is asked of any model here."""
    label = f"quant.{model['quantization'].lower()}"
    kl, accuracy = model["kl"] or {}, model["accuracy"] or {}
    values = (
        ("kl_mean", kl.get("mean"), "nats", model.get("kl_reason", "")),
        ("kl_p99", kl.get("p99"), "nats", model.get("kl_reason", "")),
        ("accuracy", accuracy.get("all"), "share", model.get("accuracy_reason", "nothing graded")),
        ("size", model["size_bytes"], "bytes", ""),
        ("speed", model["tokens_per_s"], "tokens/s", "nothing was generated"),
    )
    return [
        {"name": f"{label}.{name}", "value": value, "unit": unit, "asked": None, "ok": None}
        | ({} if value is not None else {"reason": reason})
        for name, value, unit, reason in values
    ]
