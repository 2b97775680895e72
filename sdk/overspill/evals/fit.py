"""Fits the routing scorer on results of two models: the heads, the domains, the vocabulary.

1. The domain posterior: ridge regressions of each group's indicator on the n-grams, and each
   group's mean quality for both models, shrunk towards the overall mean.
2. Both heads: ridge regressions, on n-grams and structure, of what the posterior leaves over. The
   posterior of a prompt in this step comes from a fit without that prompt (the closed form of
   leave-one-out), or the heads would learn to trust a posterior that knows the answer.
Both are solved in the dual form: prompts are fewer than features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overspill.evals.metrics import Floats
from overspill.routing.complexity import Scorer
from overspill.routing.domains import DomainPosterior, pack
from overspill.routing.features import Features, extract
from overspill.routing.normalise import normalise
from overspill.types.chat import Message, Request

Ints = NDArray[np.intp]
Matrix = NDArray[np.float32]
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class FitOptions:
    """The ridge is the ratio of noise to signal for n-grams of unit length; a structure feature
    counts ``structure_share`` of that, spread over all of them. ``domain_prompts`` is how many
    prompts a group needs for its own mean to weigh as much as everybody's.
    """

    buckets: int = 8192
    ridge: float = 20.0
    structure_share: float = 0.15
    min_spread: float = 0.05
    domain_ridge: float = 1.0
    domain_sharpness: float = 6.0
    domain_prompts: float = 8.0
    max_domains: int = 64
    max_labels: int = 6000
    vocabulary_bits: int = 2**16
    familiar_quantile: float = 0.25


@dataclass(frozen=True, slots=True)
class Design:
    """Features of n prompts: ``ngrams`` as one array of buckets each (their weights are equal and
    of unit length), ``structure`` of shape (n, len(names)), ``words`` as CRC-32 of each prompt.
    """

    names: tuple[str, ...]
    structure: Floats
    ngrams: tuple[Ints, ...]
    words: tuple[NDArray[np.uint32], ...]

    @classmethod
    def of(cls, features: Sequence[Features]) -> Design:
        """The design of some prompts' features."""
        names = tuple(sorted({name for one in features for name in one.structure} - {"bias"}))
        column = {name: i for i, name in enumerate(names)}
        structure = np.zeros((len(features), len(names)))
        for row, one in enumerate(features):
            for name, value in one.structure.items():
                if name != "bias":
                    structure[row, column[name]] = value
        return cls(
            names,
            structure,
            tuple(np.fromiter(one.ngrams, dtype=np.intp) for one in features),
            tuple(np.fromiter(one.words, dtype=np.uint32) for one in features),
        )

    def take(self, rows: Ints) -> Design:
        """Some of the rows."""
        return Design(
            self.names,
            self.structure[rows],
            tuple(self.ngrams[i] for i in rows),
            tuple(self.words[i] for i in rows),
        )

    def dense(self, buckets: int) -> Matrix:
        """The n-grams as rows of unit length, shape (n, buckets)."""
        matrix = np.zeros((len(self.ngrams), buckets), dtype=np.float32)
        for row, found in zip(matrix, self.ngrams, strict=True):
            row[found] = 1 / np.sqrt(max(len(found), 1))
        return matrix


def features_of(prompts: Sequence[str], buckets: int) -> list[Features]:
    """What routing sees of each prompt, asked as a conversation's only turn."""
    found = []
    for prompt in prompts:
        request = Request((Message("user", prompt),))
        found.append(extract(normalise(request), request, buckets))
    return found


def fit(
    design: Design,
    labels: Floats,
    groups: Sequence[str] | None,
    options: FitOptions,
    *,
    pair: tuple[str, str] = ("small", "large"),
    seed: int = 0,
) -> Scorer:
    """The scorer of some prompts with labels of shape (n, 2), small and large.

    More than ``options.max_labels`` prompts are sampled down to that many.
    """
    if len(labels) > options.max_labels:
        kept = np.sort(np.random.default_rng(seed).permutation(len(labels))[: options.max_labels])
        design, labels = design.take(kept), labels[kept]
        groups = None if groups is None else [groups[i] for i in kept]
    ngrams = design.dense(options.buckets)
    gram = ngrams @ ngrams.T
    prior = labels.mean(axis=0)
    domains, explained = _domains(ngrams, gram, labels - prior, groups, options)
    standard, mean, spread = _standardised(design.structure, options)
    dual = _solve(gram + (standard @ standard.T).astype(np.float32), options.ridge)
    alpha = dual @ (labels - prior - explained)
    structure = (standard.T @ alpha) / spread[:, None]
    heads = {name: _pair(weight) for name, weight in zip(design.names, structure, strict=True)}
    heads["bias"] = _pair(-mean @ structure)
    weights = ngrams.T @ alpha
    vocabulary, familiar = _vocabulary(design, options)
    return Scorer(
        fitted_for=pair,
        prior=_pair(prior),
        structure=heads,
        ngrams={int(b): _pair(weights[b]) for b in np.flatnonzero(np.any(weights, axis=1))},
        buckets=options.buckets,
        seen=b"",
        domains=domains,
        vocabulary=vocabulary,
        familiar=familiar,
    )


def _pair(values: Floats) -> tuple[float, float]:
    return round(float(values[0]), _DIGITS), round(float(values[1]), _DIGITS)


def _solve(gram: Matrix, ridge: float) -> Floats:
    """The inverse of gram + ridge, in double precision."""
    regular = gram.astype(np.float64)
    regular[np.diag_indices_from(regular)] += ridge
    return np.asarray(np.linalg.inv(regular))


def _standardised(structure: Floats, options: FitOptions) -> tuple[Floats, Floats, Floats]:
    """Columns with mean 0, scaled to ``structure_share`` of the n-grams' weight in sum."""
    mean = structure.mean(axis=0)
    spread = np.maximum(structure.std(axis=0), options.min_spread)
    spread = spread * np.sqrt(max(len(mean), 1) / options.structure_share)
    return (structure - mean) / spread, mean, spread


def _domains(
    ngrams: Matrix,
    gram: Matrix,
    excess: Floats,
    groups: Sequence[str] | None,
    options: FitOptions,
) -> tuple[DomainPosterior | None, Floats]:
    """The posterior, and what it explains of each row's labels when that row is left out."""
    counts = Counter(groups or ())
    names = [name for name, _ in counts.most_common(options.max_domains)]
    if len(names) < 2 or groups is None:
        return None, np.zeros_like(excess)
    member = np.array([[group == name for name in names] for group in groups], dtype=np.float64)
    sizes = member.sum(axis=0)
    deviations = (member.T @ excess) / (sizes + options.domain_prompts)[:, None]
    bias = member.mean(axis=0)
    dual = _solve(gram, options.domain_ridge)
    alpha = dual @ (member - bias)
    left_out = member - alpha / np.diag(dual)[:, None]
    explained = _softmax(options.domain_sharpness * left_out) @ deviations
    weights = ngrams.T @ alpha
    step = float(np.abs(weights).max()) / 127 or 1.0
    table = np.rint(weights / step + 128).astype(np.uint8)
    posterior = DomainPosterior(
        deviations=tuple(_pair(d) for d in deviations),
        bias=tuple(round(float(b), _DIGITS) for b in bias),
        step=step,
        sharpness=options.domain_sharpness,
        packed=pack(table.tobytes(), len(names)),
    )
    return posterior, explained


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _vocabulary(design: Design, options: FitOptions) -> tuple[bytes, float]:
    """Bits for the words that were met, and how familiar a prompt of the fit is by the others."""
    size = options.vocabulary_bits
    places = [np.unique(words % size) for words in design.words]
    met = np.bincount(np.concatenate(places), minlength=size) if places else np.zeros(size)
    shares = [float((met[found] > 1).mean()) for found in places if len(found)]
    familiar = float(np.quantile(shares, options.familiar_quantile)) if shares else 1.0
    bits = np.packbits(met > 0, bitorder="little").tobytes()
    return bits, max(round(familiar, _DIGITS), 0.1)
