"""Fits the routing scorer on results of two models: the heads, the domains, the vocabulary.

1. The domain posterior: ridge regressions of each group's indicator on the n-grams, and each
   group's mean quality for both models, shrunk towards the overall mean.
2. Both heads: ridge regressions, on n-grams and structure, of what the posterior leaves over. The
   posterior of a prompt in this step comes from a fit without that prompt (the closed form of
   leave-one-out), or the heads would learn to trust a posterior that knows the answer.
Both are solved in the dual form: prompts are fewer than features.
For groups that the fit will not have met, what was learned of the others is mostly about the
others: there a line in the prompt's length comes first, the rest as far as it carried over.
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
    """A ridge is the ratio of noise to signal for n-grams of unit length; of ``ridges`` the one is
    taken that :func:`_best_ridge` finds. A structure feature counts ``structure_share`` of that,
    spread over all of them, and an n-gram its inverse document frequency to the power ``rarity``.
    ``domain_prompts`` is how many prompts a group needs for its own mean to weigh as much as
    everybody's.
    """

    buckets: int = 8192
    ridges: tuple[float, ...] = (20.0, 2.0, 5.0, 10.0, 40.0)
    rarity: float = 0.5
    structure_share: float = 0.1
    min_spread: float = 0.05
    domain_ridge: float = 1.0
    domain_sharpness: float = 6.0
    domain_prompts: float = 8.0
    max_domains: int = 64
    max_labels: int = 4000
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


def features_of(asked: Sequence[str | Request], buckets: int) -> list[Features]:
    """What routing sees of each request; a text is a conversation's only turn."""
    found = []
    for one in asked:
        request = Request((Message("user", one),)) if isinstance(one, str) else one
        found.append(extract(normalise(request), request, buckets))
    return found


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learned: ``targets`` of shape (n, 2), small and large, by ``design``.

    ``groups`` name each prompt's benchmark. ``slope``, shape (n,), is a signal that comes with
    each prompt: then a second scorer is fitted, whose prediction counts times the signal.
    """

    design: Design
    targets: Floats
    groups: Sequence[str] | None = None
    slope: Floats | None = None

    def sampled(self, most: int, seed: int) -> Task:
        """At most so many of the prompts."""
        if len(self.targets) <= most:
            return self
        kept = np.sort(np.random.default_rng(seed).permutation(len(self.targets))[:most])
        return Task(
            self.design.take(kept),
            self.targets[kept],
            None if self.groups is None else [self.groups[i] for i in kept],
            None if self.slope is None else self.slope[kept],
        )

    @property
    def basis(self) -> Floats:
        """1, and the slope where there is one; shape (n, 1 or 2)."""
        ones = np.ones(len(self.targets))
        return np.column_stack([ones] if self.slope is None else [ones, self.slope])


def fit(
    task: Task,
    options: FitOptions,
    *,
    pair: tuple[str, str] = ("small", "large"),
    seed: int = 0,
    unseen_groups: bool = False,
) -> tuple[Scorer, ...]:
    """The scorer of some prompts; with a slope, a second one for what counts times the slope.

    ``unseen_groups`` is for prompts of groups that the fit will not have met: then the prompt's
    length counts first, as :func:`_length_line` says, and the rest of what is learned as far as it
    carried over to each group here when that was left out: both may count nothing. More than
    ``options.max_labels`` prompts are sampled down to that many.
    """
    task = task.sampled(options.max_labels, seed)
    basis, prior = task.basis, task.targets.mean(axis=0)
    plain = task.design.dense(options.buckets)
    scale = _rarity(plain, options)
    ngrams = plain * scale
    gram = ngrams @ ngrams.T
    unseen_groups = unseen_groups and task.groups is not None
    line = _length_line(task, task.targets - prior) if unseen_groups else _NO_LINE
    excess = task.targets - prior - line(task.design)
    domains = _domains(gram, task, basis, excess, options)
    rest = excess - domains.explained
    standard, mean, spread = _standardised(task.design.structure, options)
    kernel = (gram + (standard @ standard.T).astype(np.float32)) * (basis @ basis.T)
    dual = _inverse(kernel, _best_ridge(kernel, rest, options.ridges, seed))
    alpha = dual @ rest
    carried = 1.0
    if unseen_groups and task.groups is not None:
        heads = _without_own_group(dual, rest, alpha, task.groups)
        carried = _carried_over(domains.unseen + heads, excess, task)
        alpha = carried * alpha
    vocabulary, familiar = _vocabulary(task.design, options)
    scorers = []
    for column in range(basis.shape[1]):
        weighted = alpha * basis[:, [column]]
        structure = (standard.T @ weighted) / spread[:, None]
        bias = -mean @ structure
        if column == 0:
            structure, bias = line.added_to(structure, bias, task.design.names)
        named = {n: _pair(weight) for n, weight in zip(task.design.names, structure, strict=True)}
        table = scale[:, None] * (ngrams.T @ weighted)
        scorers.append(
            Scorer(
                fitted_for=pair,
                prior=_pair(prior) if column == 0 else (0.0, 0.0),
                structure={**named, "bias": _pair(bias)},
                ngrams={int(b): _pair(table[b]) for b in np.flatnonzero(np.any(table, axis=1))},
                buckets=options.buckets,
                seen=b"",
                domains=_posterior(domains, ngrams * scale, carried, column),
                vocabulary=vocabulary,
                familiar=familiar,
            )
        )
    return tuple(scorers)


def _pair(values: Floats) -> tuple[float, float]:
    return round(float(values[0]), _DIGITS), round(float(values[1]), _DIGITS)


def _rarity(ngrams: Matrix, options: FitOptions) -> NDArray[np.float32]:
    """What each n-gram is multiplied with, shape (buckets,): a power of its inverse document
    frequency, scaled so that prompts keep unit length on average."""
    met = np.count_nonzero(ngrams, axis=0)
    weight = np.log((1 + len(ngrams)) / (1 + met)) + 1
    scale = weight**options.rarity
    length = np.sqrt((np.square(ngrams) @ np.square(scale)).mean()) or 1.0
    return np.asarray(scale / length, dtype=np.float32)


_TRIED_PROMPTS = 1000
_CERTAIN_NATS = 10.0
"""The logarithm of a Bayes factor; Kass and Raftery (1995) call more than 5 very strong."""


def _best_ridge(kernel: Floats, rest: Floats, ridges: Sequence[float], seed: int) -> float:
    """The first ridge, unless the gains of some prompts are far likelier under another.

    Each ridge is a Gaussian process whose noise and signal have that ratio, and the marginal
    likelihood, with the best scale for each, tells them apart. Where the gain is mostly noise any
    criterion's optimum is chance, so the first is left only for what is certain.
    """
    if len(ridges) == 1:
        return ridges[0]
    rows = np.random.default_rng(seed).permutation(len(rest))[:_TRIED_PROMPTS]
    values, vectors = np.linalg.eigh(kernel[np.ix_(rows, rows)].astype(np.float64))
    power = np.square(vectors.T @ (rest[rows, 1] - rest[rows, 0]))
    if not power.any():
        return ridges[0]

    def evidence(ridge: float) -> float:
        noise = np.maximum(values, 0.0) + ridge
        return -float(len(rows) * np.log((power / noise).sum()) + np.log(noise).sum()) / 2

    best = max(ridges, key=evidence)
    certain = evidence(best) - evidence(ridges[0]) > _CERTAIN_NATS
    return best if certain else ridges[0]


def _inverse(gram: Matrix | Floats, ridge: float) -> Floats:
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


@dataclass(frozen=True, slots=True)
class _Domains:
    """``explained``: what the posterior says of each row when that row is left out, ``unseen``:
    when its whole group is; shape (n, 2). ``deviations`` has one table for each basis function."""

    explained: Floats
    unseen: Floats
    alpha: Floats | None = None
    bias: Floats | None = None
    deviations: Sequence[Floats] = ()
    sharpness: float = 1.0


def _domains(
    gram: Matrix, task: Task, basis: Floats, excess: Floats, options: FitOptions
) -> _Domains:
    """The classifier of groups, and what each group adds to both models' results."""
    counts = Counter(task.groups or ())
    names = [name for name, _ in counts.most_common(options.max_domains)]
    if len(names) < 2 or task.groups is None:
        return _Domains(np.zeros_like(excess), np.zeros_like(excess))
    own = np.array([[group == name for name in names] for group in task.groups])
    member = own.astype(np.float64)
    bias = member.mean(axis=0)
    tables = _deviations(member, basis, excess, options.domain_prompts)
    dual = _inverse(gram, options.domain_ridge)
    alpha = dual @ (member - bias)
    left_out = member - alpha / np.diag(dual)[:, None]
    unseen = _without_own_group(dual, member - bias, alpha, task.groups) + bias
    unseen[own] = -np.inf

    def explain(scores: Floats) -> Floats:
        shares = _softmax(options.domain_sharpness * scores)
        parts = [basis[:, [i]] * (shares @ table) for i, table in enumerate(tables)]
        return np.asarray(np.sum(parts, axis=0))

    sharpness = options.domain_sharpness
    return _Domains(explain(left_out), explain(unseen), alpha, bias, tables, sharpness)


def _deviations(member: Floats, basis: Floats, excess: Floats, prompts: float) -> list[Floats]:
    """For each basis function a table (groups, 2): ridge regressions within each group."""
    width = basis.shape[1]
    tables = [np.zeros((member.shape[1], 2)) for _ in range(width)]
    for column in range(member.shape[1]):
        rows = member[:, column] > 0
        normal = basis[rows].T @ basis[rows] + prompts * np.eye(width)
        found = np.linalg.solve(normal, basis[rows].T @ excess[rows])
        for table, values in zip(tables, found, strict=True):
            table[column] = values
    return tables


def _without_own_group(
    dual: Floats, target: Floats, alpha: Floats, groups: Sequence[str]
) -> Floats:
    """Each row's prediction by a ridge regression without all of its group, in closed form."""
    predicted = np.zeros_like(target)
    names = np.array(groups)
    for name in set(groups):
        rows = np.flatnonzero(names == name)
        predicted[rows] = target[rows] - np.linalg.solve(dual[np.ix_(rows, rows)], alpha[rows])
    return predicted


@dataclass(frozen=True, slots=True)
class _Line:
    """Both models' quality by the length of a prompt: ``slope`` of shape (2,), times how much
    longer than ``mean`` the prompt is."""

    mean: float
    slope: Floats

    def __call__(self, design: Design) -> Floats:
        """What the line says of each prompt, shape (n, 2)."""
        if not self.slope.any():
            return np.zeros((len(design.structure), 2))
        return np.outer(_lengths(design) - self.mean, self.slope)

    def added_to(
        self, structure: Floats, bias: Floats, names: Sequence[str]
    ) -> tuple[Floats, Floats]:
        """The weights of the structure (n, 2) and the bias (2,), with the line's."""
        if not self.slope.any():
            return structure, bias
        summed = structure.copy()
        summed[names.index(_LENGTH)] += self.slope
        return summed, bias - self.mean * self.slope


_LENGTH = "shape.words"
_NO_LINE = _Line(0.0, np.zeros(2))


def _lengths(design: Design) -> Floats:
    return np.asarray(design.structure[:, design.names.index(_LENGTH)])


def _length_line(task: Task, excess: Floats) -> _Line:
    """The one direction that is taken from groups that were met to groups that were not.

    Words and subjects are a group's own; how long a prompt is has a meaning in all of them. Its
    slope is learned across groups and shrunk by how certain that many groups make it (James and
    Stein's factor, 0 where the slope is within its error). Beside a signal that orders already
    the length has to hold within groups too.
    """
    if _LENGTH not in task.design.names:
        return _NO_LINE
    lengths = _lengths(task.design)
    mean = float(lengths.mean())
    centred = lengths - mean
    power = float(centred @ centred)
    if power <= 0:
        return _NO_LINE
    slope = centred @ excess / power
    certain = min(
        one.value / one.error if one.error else np.inf
        for one in _gain_slopes(np.outer(centred, slope), excess, task)
    )
    return _Line(mean, (1 - certain**-2 if certain > 1 else 0.0) * slope)


def _carried_over(predicted: Floats, target: Floats, task: Task) -> float:
    """How far predictions of unseen groups are to be believed, 0 to 1: the slope of the gain on
    the predicted gain, less its standard error: what is not certain does not count."""
    slopes = [one.value - one.error for one in _gain_slopes(predicted, target, task)]
    return float(np.clip(min(slopes), 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class _Slope:
    value: float
    error: float


def _gain_slopes(predicted: Floats, target: Floats, task: Task) -> list[_Slope]:
    """The gain's slope on the predicted gain. With a signal beside the prompt also the slope
    within groups: there the signal orders already, and what differs between groups is no help."""
    names = np.array(task.groups)
    slopes = [_gain_slope(predicted, target, names)]
    if task.slope is not None:
        centred = [predicted.copy(), target.copy()]
        for name in set(task.groups or ()):
            for values in centred:
                values[names == name] -= values[names == name].mean(axis=0)
        slopes.append(_gain_slope(centred[0], centred[1], names))
    return slopes


def _gain_slope(predicted: Floats, target: Floats, names: NDArray[np.str_]) -> _Slope:
    """Of values of shape (n, 2). The error is that of whole groups (Liang and Zeger 1986): prompts
    of one group err together."""
    x, y = predicted[:, 1] - predicted[:, 0], target[:, 1] - target[:, 0]
    power = float(x @ x)
    if power <= 0:
        return _Slope(0.0, 0.0)
    slope = float(x @ y) / power
    moments = x * (y - slope * x)
    of_groups = [float(moments[names == name].sum()) for name in np.unique(names)]
    return _Slope(slope, float(np.sqrt(np.square(of_groups).sum())) / power)


def _posterior(
    domains: _Domains, ngrams: Matrix, carried: float, column: int
) -> DomainPosterior | None:
    if domains.alpha is None or domains.bias is None or not carried:
        return None
    weights = ngrams.T @ domains.alpha
    step = float(np.abs(weights).max()) / 127 or 1.0
    table = np.rint(weights / step + 128).astype(np.uint8)
    return DomainPosterior(
        deviations=tuple(_pair(carried * d) for d in domains.deviations[column]),
        bias=tuple(round(float(b), _DIGITS) for b in domains.bias),
        step=step,
        sharpness=domains.sharpness,
        packed=pack(table.tobytes(), len(domains.bias)),
    )


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
