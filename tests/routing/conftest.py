"""What the routing tests share: two cards, and a verifier's result at a given assurance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from overspill.routing.complexity import Scorer
from overspill.routing.decide import decide
from overspill.routing.policy import RoutingPolicy
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Privacy, Request
from overspill.types.evidence import Assurance, AttestationResult
from overspill.types.route import Route, RouteDecision

NOW = 1_800_000_000


@pytest.fixture(scope="session")
def now() -> int:
    return NOW


@pytest.fixture(scope="session")
def device_card() -> ModelCard:
    return ModelCard("brook", context=1024, runtime="llama.cpp", size_bytes=2_000_000)


@pytest.fixture(scope="session")
def cloud_card() -> ModelCard:
    return ModelCard(
        "river",
        context=4096,
        runtime="llama.cpp",
        tools=True,
        json_schema=True,
        languages=("en", "de"),
    )


@pytest.fixture(scope="session")
def cards(device_card: ModelCard, cloud_card: ModelCard) -> Mapping[Route, ModelCard]:
    return {Route.DEVICE: device_card, Route.CLOUD: cloud_card}


@pytest.fixture(scope="session")
def attested() -> Callable[[Assurance], AttestationResult]:
    """A verifier's result, accepted for an hour from now on."""

    def result(assurance: Assurance = Assurance.HARDWARE_TEE) -> AttestationResult:
        return AttestationResult(
            assurance=assurance,
            evidence_type="test",
            dev=assurance < Assurance.HARDWARE_TPM,
            node_key_config=b"nkc",
            nkc_sha256=bytes(32),
            kem_id=0x647A,
            kdf_id=1,
            aead_id=2,
            hpke_public_key=b"pk",
            receipt_public_key=b"rk",
            models_digest=bytes(32),
            config_digest=bytes(32),
            release_id=bytes(32),
            boot_id=bytes(16),
            not_before=NOW - 60,
            not_after=NOW + 3600,
            accepted_until=NOW + 3600,
            policy_sha256=bytes(32),
        )

    return result


@pytest.fixture(scope="session")
def situation(attested: Callable[..., AttestationResult]) -> Situation:
    """Everything works: online, attested, 40 tokens of prompt."""
    return Situation(prompt_tokens={Route.DEVICE: 40}, attestation=attested(), now_unix=NOW)


@pytest.fixture(scope="session")
def steep() -> Scorer:
    """Heads that know one thing: what has numbers gains 0.6 by leaving, all else loses 0.1."""
    return Scorer(
        fitted_for=("brook", "river"),
        prior=(0.8, 0.7),
        structure={"longest_number": (-2.4, 0.4), "numbers": (0.0, 0.0)},
        ngrams={},
        buckets=8,
        seen=b"\xff",
    )


@pytest.fixture(scope="session")
def ask() -> Callable[..., Request]:
    """``ask("text", privacy=...)``: a request of one user turn."""

    def make(text: str, **options: object) -> Request:
        options.setdefault("privacy", Privacy.ANY)
        return Request((Message("user", text),), **options)  # type: ignore[arg-type]  # kwargs

    return make


@pytest.fixture(scope="session")
def route_of(
    cards: Mapping[Route, ModelCard], situation: Situation, steep: Scorer
) -> Callable[..., RouteDecision]:
    """``decide`` with the fixtures above; keywords replace one of them."""

    def run(
        request: Request,
        situation: Situation = situation,
        policy: RoutingPolicy | None = None,
        cards: Mapping[Route, ModelCard] = cards,
        scorer: Scorer = steep,
    ) -> RouteDecision:
        return decide(request, situation, policy or RoutingPolicy(), cards, scorer=scorer)

    return run
