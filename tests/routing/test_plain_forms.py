"""What is skipped or added up in one go is what looking everywhere, one by one, would find."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing import credentials, detectors, shape
from overspill.routing.complexity import Scorer, shipped_scorer
from overspill.routing.credentials import entropy_bits, find_credentials
from overspill.routing.cues import OPERATIONS, TASKS, operations_in, task_of
from overspill.routing.detectors import (
    KINDS,
    Finding,
    Wanted,
    find,
    find_cards,
    find_emails,
    find_ibans,
    find_phone_numbers,
)
from overspill.routing.domains import DomainPosterior, pack
from overspill.routing.features import extract
from overspill.routing.language import _WORDS, UNKNOWN, language_of
from overspill.routing.lexis import lexis_of
from overspill.routing.listed import find_listed
from overspill.routing.normalise import normalise
from overspill.routing.spans import apart
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Request
from overspill.types.route import Route

# Each is something that a finding or a cue needs, alone or with its neighbours.
_FRAGMENTS = (
    "max.muster@example.org",
    "+49 151 23456789",
    "(555) 123-4567",
    "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
    "password: hunter2hunter2",
    "password: correcthorse",
    "Passwort ist abcdefgh1",
    "token=",
    "sk-abcdefghijklmnopqrstuvwx",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2Q",
    "https://user:secret@host",
    "-----BEGIN RSA PRIVATE KEY-----",
    "Ab3" * 12,
    "heron",
    "A. one B. two",
    "(a) x (b) y",
    "der die das und ist",
    "the of and to is",
    "translate into French",
    "sum up 12 + 34",
    "how many letters",
    "5 km in miles",
    "tl;dr",
    "o'clock",
    "what",
    "@",
    "1234",
    "api key = '1234567x'",
    "2-token=a1bcdefgh",
    "1990.",
    "x3 3x _y",
    "days after",
    "begin all",
    "spelled in all",
    "密码是abcd1234efgh",
    "пароль: abc12345",
    "token: abcd\u2028efg1hijk",
    "４１１１ １１１１ １１１１ １１１１",
    "naïve — été\u2003x",
)
_texts = st.lists(
    st.sampled_from(_FRAGMENTS) | st.text(string.printable, max_size=8), max_size=8
).flatmap(lambda parts: st.sampled_from((" ", "", "\n", "-")).map(lambda gap: gap.join(parts)))
_WANTED = Wanted(KINDS, ("heron",))


def plain_credentials(text: str) -> list[tuple[int, int]]:
    spans = [match.span() for match in credentials._PEM.finditer(text)]
    for word in re.finditer(r"\S{15,}", text):
        start, end = word.span()
        spans += [match.span() for match in credentials._FORMS.finditer(text, start, end)]
        found = credentials._RANDOM.finditer(text, start, end)
        spans += [match.span() for match in found if credentials._is_random(match[0])]
    named = credentials._NAMED.finditer(text)
    spans += [m.span(1) for m in named if entropy_bits(m[1]) >= credentials._NAMED_BITS]
    return apart(spans)


def plain_numbers(text: str) -> list[tuple[int, int]]:
    found = re.finditer(r"[0-9](?:[ ()./-]{0,3}[0-9]){7,}", text)
    return [(max(0, one.start() - 2), min(len(text), one.end() + 2)) for one in found]


def plain_find(text: str) -> list[Finding]:
    plain = "".join(ch if ch.isascii() else detectors._look_of(ch) for ch in text)
    numbers = plain_numbers(plain)
    spans = {
        "email": find_emails(plain),
        "phone": find_phone_numbers(plain, numbers),
        "card": find_cards(plain, numbers),
        "iban": find_ibans(plain),
        "api_key": plain_credentials(plain),
        "listed": find_listed(text, _WANTED.terms),
    }
    found = [Finding(kind, *span) for kind in KINDS for span in spans[kind]]
    accounts = [one for one in found if one.kind in ("card", "iban")]
    return [
        one
        for one in found
        if one.kind != "phone"
        or not any(other.start <= one.start and one.end <= other.end for other in accounts)
    ]


@given(_texts)
def test_no_detector_is_left_out_that_would_find_something(text: str) -> None:
    assert find(text, _WANTED) == plain_find(text)
    assert find_credentials(text) == plain_credentials(text)


@given(_texts)
def test_a_languages_words_are_counted_as_one_by_one(text: str) -> None:
    words = lexis_of(" ".join(text.split())).words[:200]
    votes = {name: sum(word in common.split() for word in words) for name, common in _WORDS.items()}
    (best, hits), (_, runner_up) = Counter(votes).most_common(2)
    leads = hits >= 2 and hits >= 2 * runner_up
    assert language_of(lexis_of(" ".join(text.split()))) == (best if leads else UNKNOWN)


@given(_texts)
def test_cues_are_asked_by_the_words_that_any_of_them_names(text: str) -> None:
    lexis = lexis_of(" ".join(text.split()))
    tasks = [name for name, cue in TASKS if cue.matches(lexis, lexis.runs)]
    assert task_of(lexis) == (tasks[0] if tasks else "other")
    operations = [name for name, cue in OPERATIONS if cue.matches(lexis, lexis.runs)]
    assert operations_in(lexis) == operations


@given(_texts)
def test_options_to_choose_from_are_those_that_the_expression_finds(text: str) -> None:
    spaced = " ".join(text.split())
    starts = [one.start() for one in re.finditer(r"(?:^|\s)\(?[A-Ha-h][.)](?=\s)", spaced)]
    assert shape._options(spaced) == {
        "shape.options": min(len(starts), 8) / 8,
        "shape.options_part": 1 - starts[0] / len(spaced) if starts else 0.0,
    }


def plain_contributions(scorer: Scorer, request: Request, confidence: float) -> dict[str, float]:
    features = extract(normalise(request), request, scorer.buckets)
    heads = {"device": 0, "cloud": 1}
    sums: dict[str, Mapping[str, float]] = {}
    for head, side in heads.items():
        own = {
            name: scorer.structure[name][side] * value
            for name, value in features.structure.items()
            if name in scorer.structure
        }
        own["ngrams"] = sum(
            scorer.ngrams.get(bucket, (0.0, 0.0))[side] * value
            for bucket, value in features.ngrams.items()
        )
        if scorer.domains is not None and features.ngrams:
            shares = scorer.domains.posterior(features.buckets, features.weight)
            pairs = zip(shares, scorer.domains.deviations, strict=True)
            own["domain_posterior"] = sum(share * pair[side] for share, pair in pairs)
        sums[head] = own
    return {
        name: confidence * (sums["cloud"][name] - sums["device"][name]) for name in sums["cloud"]
    }


@given(_texts.filter(str.strip), st.sampled_from((8192, 1000)), st.booleans())
def test_contributions_are_weight_times_value(text: str, buckets: int, domains: bool) -> None:
    shipped = shipped_scorer()
    scorer = Scorer(
        fitted_for=("brook", "river"),
        prior=shipped.prior,
        structure=shipped.structure,
        ngrams={bucket: pair for bucket, pair in shipped.ngrams.items() if bucket < buckets},
        buckets=buckets,
        seen=b"\xff" * (buckets // 8),
        domains=DomainPosterior(
            ((0.1, 0.3), (-0.2, 0.1)), (0.0, 0.1), 0.01, 2.0, pack(b"\x80\x90" * buckets, 2)
        )
        if domains
        else None,
    )
    cards = {
        Route.DEVICE: ModelCard("brook", 64, "t"),
        Route.CLOUD: ModelCard("river", 64, "t"),
    }
    request = Request((Message("user", text),))
    features = extract(normalise(request), request, buckets)
    score = scorer.score(features, cards)
    wanted = plain_contributions(scorer, request, score.confidence)
    got = dict(score.contributions)
    assert math.isclose(got.pop("prior"), shipped.prior[1] - shipped.prior[0])
    assert got.keys() == wanted.keys()
    assert all(math.isclose(got[name], wanted[name], abs_tol=1e-12) for name in got)


@given(st.sets(st.integers(0, 2047), max_size=600), st.integers(1, 40), st.binary(min_size=1))
def test_domains_are_added_up_as_one_by_one(found: set[int], domains: int, seed: bytes) -> None:
    weights = (seed * (2048 * domains // len(seed) + 1))[: 2048 * domains]
    pairs = tuple((n / domains, -n / domains) for n in range(domains))
    bias = tuple(n / 7 for n in range(domains))
    posterior = DomainPosterior(pairs, bias, 0.001, 3.0, pack(weights, domains))
    rows = [weights[bucket * domains : (bucket + 1) * domains] for bucket in found]
    scores = [
        3.0 * (0.001 * 0.5 * sum(row[n] - 128 for row in rows) + bias[n]) for n in range(domains)
    ]
    powers = [math.exp(score - max(scores)) for score in scores]
    shares = [power / sum(powers) for power in powers]
    assert posterior.posterior(found, 0.5) == pytest.approx(shares)
    device = sum(share * pair[0] for share, pair in zip(shares, pairs, strict=True))
    assert posterior.deviation(found, 0.5) == pytest.approx((device, -device))
