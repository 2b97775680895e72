"""Stage 3: features without text, exact contributions, and shrinking where little is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.calibration import IsotonicCurve
from overspill.routing.complexity import Scorer, shipped_scorer
from overspill.routing.decide import decide
from overspill.routing.features import Features, extract, guess_domain, hash_ngrams
from overspill.routing.normalise import normalise
from overspill.routing.policy import RoutingPolicy
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Privacy, Request, Tool
from overspill.types.route import Route, RouteDecision, RouteReason

BUCKETS = 64
prompts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def features_of(text: str, buckets: int = BUCKETS) -> Features:
    request = Request((Message("user", text),))
    return extract(normalise(request), request, buckets)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("What is 48 * 31?", "arithmetic"),
        ("Sort 3, 1, 2 in ascending order", "sorting"),
        ("How many words are in: to be or not", "counting"),
        ("Convert 12 km to metres.", "units"),
        ("What date is 30 days after March 5?", "dates"),
        ("Extract name and age as JSON: Ann is 30.", "extraction"),
        ("Classify the sentiment: I loved it", "classification"),
        ("Summarize this in one sentence: ...", "summary"),
        ("Write a story about a fox", "story"),
        ("What is the capital of France?", "facts"),
        ("hello", "chat"),
        ("```python\ndef f(): pass\n``` why is it slow?", "code"),
        ("commit it", "other"),
    ],
)
def test_the_domain_is_what_is_asked_for(text: str, domain: str) -> None:
    assert guess_domain(text, Request((Message("user", text),))) == domain


def test_tools_and_schemas_settle_the_domain() -> None:
    messages = (Message("user", "Sort these"),)
    assert guess_domain("Sort these", Request(messages, tools=(Tool("clock"),))) == "tools"
    assert guess_domain("Sort these", Request(messages, json_schema={})) == "extraction"


def test_numbers_are_hashed_by_length_and_words_in_any_case() -> None:
    assert hash_ngrams("Add 12 and 34", BUCKETS) == hash_ngrams("add 99 AND 10", BUCKETS)
    assert hash_ngrams("add 12", 8192) != hash_ngrams("add 123", 8192)


@given(prompts)
def test_ngrams_have_unit_length_and_lie_in_the_table(text: str) -> None:
    ngrams = features_of(text).ngrams
    assert all(0 <= bucket < BUCKETS for bucket in ngrams)
    assert not ngrams or sum(v * v for v in ngrams.values()) == pytest.approx(1)


@given(prompts)
def test_no_features_value_grows_without_bound(text: str) -> None:
    assert all(0 <= value <= 4 for value in features_of(text * 50).structure.values())


def test_more_digits_are_more_work() -> None:
    few = features_of("What is 12 * 34?").structure["operation.multiply.work"]
    many = features_of("What is 1234 * 3456?").structure["operation.multiply.work"]
    assert few < many


@given(prompts)
def test_contributions_sum_to_the_gain(text: str) -> None:
    scorer = shipped_scorer()
    cards = {
        route: ModelCard(name, 1024, "x")
        for route, name in zip((Route.DEVICE, Route.CLOUD), scorer.fitted_for, strict=True)
    }
    score = scorer.score(features_of(text, scorer.buckets), cards)
    assert sum(score.contributions.values()) == score.gain
    assert 0 <= score.p_device_right <= 1
    assert 0 <= score.p_cloud_right <= 1
    if 0 < score.p_device_right < 1 and 0 < score.p_cloud_right < 1:
        assert score.gain == pytest.approx(score.p_cloud_right - score.p_device_right)
    assert 0 <= score.confidence <= 1


def test_the_heads_differ_by_exactly_the_contributions(
    steep: Scorer, cards: Mapping[Route, ModelCard]
) -> None:
    score = steep.score(Features({"longest_number": 0.25}, {1: 1.0}, "other"), cards)
    assert score.p_device_right == pytest.approx(0.8 - 0.6)
    assert score.p_cloud_right == pytest.approx(0.7 + 0.1)
    assert score.contributions == pytest.approx(
        {"prior": -0.1, "longest_number": 0.7, "ngrams": 0.0}
    )


def test_a_prompt_unlike_the_fit_falls_back_to_the_prior(
    steep: Scorer, cards: Mapping[Route, ModelCard]
) -> None:
    blind = replace(steep, seen=b"\x00")
    score = blind.score(Features({"longest_number": 1.0}, {1: 1.0}, "other"), cards)
    assert score.confidence == 0
    assert (score.p_device_right, score.p_cloud_right) == blind.prior


def test_another_pair_of_models_is_judged_by_its_own_cards(
    steep: Scorer, device_card: ModelCard, cloud_card: ModelCard
) -> None:
    other = {
        Route.DEVICE: replace(device_card, name="x", skill_accuracy={"facts": 0.2, "all": 0.5}),
        Route.CLOUD: replace(cloud_card, name="y", skill_accuracy={"all": 0.9}),
    }
    score = steep.score(Features({}, {1: 1.0}, "facts"), other)
    assert not score.fitted
    assert score.confidence == 0.5
    assert (score.p_device_right, score.p_cloud_right) == (0.2, 0.9)


def test_a_strict_policy_keeps_nothing_on_an_unfitted_word(
    route_of: Callable[..., RouteDecision], cards: Mapping[Route, ModelCard]
) -> None:
    request = Request((Message("user", "hello"),), privacy=Privacy.ANY)
    other = {**cards, Route.DEVICE: replace(cards[Route.DEVICE], name="other")}
    assert route_of(request, cards=other).route is Route.DEVICE
    strict = route_of(request, cards=other, policy=RoutingPolicy(strict=True))
    assert (strict.route, strict.reason) == (Route.CLOUD, RouteReason.ESCALATE)
    assert route_of(request, policy=RoutingPolicy(strict=True)).route is Route.DEVICE


@pytest.mark.parametrize(("threshold", "route"), [(0.4, Route.CLOUD), (0.8, Route.DEVICE)])
def test_leaving_has_to_gain_more_than_the_threshold(
    route_of: Callable[..., RouteDecision], threshold: float, route: Route
) -> None:
    request = Request((Message("user", "12"),), privacy=Privacy.ANY)
    decision = route_of(request, policy=RoutingPolicy(threshold=threshold))
    assert decision.route is route
    assert sum(decision.contributions.values()) == pytest.approx(0.6)
    assert decision.threshold == threshold
    assert decision.alternatives == tuple({Route.DEVICE, Route.CLOUD} - {route})


def test_a_scorer_file_survives_reading(steep: Scorer) -> None:
    text = json.dumps(
        {
            "fitted_for": {"device": "brook", "cloud": "river"},
            "prior": {"device": 0.8, "cloud": 0.7},
            "structure": {"longest_number": [-2.4, 0.4], "numbers": [0.0, 0.0]},
            "ngrams": {},
            "buckets": 8,
            "seen": "/w==",
        }
    )
    assert Scorer.from_json(text) == steep


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (RoutingPolicy(scorer_sha256="ab"), "scorer_not_certified"),
        (RoutingPolicy(scorer_sha256="5c", expires_unix=9), "policy_expired"),
        (RoutingPolicy(scorer_sha256="5c"), "gain_within_threshold"),
        (RoutingPolicy(expires_unix=9), "gain_within_threshold"),
        (RoutingPolicy(certificate={"quantization": "Q4_0"}), "quantization_not_certified"),
        (RoutingPolicy(certificate={"quantization": "unknown"}), "gain_within_threshold"),
        (RoutingPolicy(certificate={"quantization": ""}), "gain_within_threshold"),
    ],
)
def test_a_certified_threshold_counts_with_its_scorer_and_in_its_time(
    route_of: Callable[..., RouteDecision], steep: Scorer, policy: RoutingPolicy, code: str
) -> None:
    request = Request((Message("user", "hello"),), privacy=Privacy.ANY)
    decision = route_of(request, policy=policy, scorer=replace(steep, sha256="5c"))
    assert decision.stages[-1].code == code
    assert (decision.route is Route.DEVICE) == (code == "gain_within_threshold")


def test_a_policys_own_scorer_decides_and_its_curves_are_what_is_told(
    cards: Mapping[Route, ModelCard], situation: Situation, steep: Scorer
) -> None:
    request = Request((Message("user", "12"),), privacy=Privacy.ANY)
    curve = IsotonicCurve(((0.0, 0.1), (1.0, 0.3)))
    policy = RoutingPolicy(scorer=steep, isotonic={"device": curve})
    decision = decide(request, situation, policy, cards)
    assert sum(decision.contributions.values()) == pytest.approx(0.6)
    assert decision.p_device_right == curve(steep_p := 0.8 - 2.4 * 0.25)
    assert decision.p_cloud_right != steep_p
