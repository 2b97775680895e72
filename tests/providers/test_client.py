"""The whole way to a third party: only it is left, a person is asked, and it answers once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overspill import AsyncOverspill, Grant
from overspill.config import Settings, ThirdPartySettings, load_settings
from overspill.errors import ConfigurationError, ConsentRequired, OverspillError
from overspill.opening import open_third_party
from overspill.providers.openai_api import ProviderOptions
from overspill.testing import FakeEngine
from overspill.types.card import ModelCard
from overspill.types.chat import Privacy
from overspill.types.route import Plan, Route

pytestmark = pytest.mark.anyio
LONG = "word " * 40 + "jane@mail.example.org"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    policy = tmp_path / "routing.toml"
    policy.write_text('version = "1"\nredact = ["email"]\n')
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    return replace(settings, privacy=Privacy.ANY, device_key="file", routing_policy=policy)


def client(settings: Settings, provider: Any, ask: Any) -> AsyncOverspill:
    card = ModelCard("big", 8192, "openai", price_prompt_per_mtok=3.0)
    options = ProviderOptions("maker", provider.url, card, "k")
    return AsyncOverspill(
        "t",
        settings=settings,
        device=FakeEngine(context=30),  # too little for what is asked here
        third_party=open_third_party(settings, options),
        on_consent=ask,
    )


async def test_it_answers_once_for_each_consent(settings: Settings, provider: Any) -> None:
    plans: list[Plan] = []

    def on_consent(plan: Plan) -> Grant:
        plans.append(plan)
        assert provider.connections == len(plans) - 1  # nothing leaves before a person says so
        return Grant("maker", plan.request_id, int(time.time()) + 60)

    provider.say("I wrote to [EMAIL_1].")
    async with client(settings, provider, on_consent) as ai:
        for asked in (1, 2):
            reply = await ai.chat(LONG)
            assert (reply.text, len(plans)) == ("I wrote to jane@mail.example.org.", asked)
            assert (reply.route.route, reply.route.assurance) == (Route.THIRD_PARTY, "NONE")
            assert reply.route.bytes_sent > len(LONG) / 2
    assert "jane" not in str(provider.received)
    assert (plans[0].model, plans[0].would_leave) == (
        "big",
        "the conversation and its tools, readable by maker, which proves nothing",
    )
    assert plans[0].bytes_leaving >= len(LONG)
    assert plans[0].estimated_cost > 0


@pytest.mark.parametrize("grant", [None, "other"])
async def test_without_a_grant_for_it_nothing_leaves(
    settings: Settings, provider: Any, grant: str | None
) -> None:
    """Without a grant for this one request nothing goes to a third party."""

    def on_consent(plan: Plan) -> Grant | None:
        return Grant(grant, plan.request_id, int(time.time()) + 60) if grant else None

    async with client(settings, provider, on_consent) as ai:
        with pytest.raises(ConsentRequired):
            await ai.chat(LONG)
    assert provider.connections == 0


async def test_the_device_answers_what_it_can_and_nobody_is_asked(
    settings: Settings, provider: Any
) -> None:
    async with client(settings, provider, lambda plan: pytest.fail("was asked")) as ai:
        assert (await ai.chat("short")).route.route is Route.DEVICE
    assert provider.connections == 0


@pytest.mark.parametrize(
    ("text", "floor"), [(LONG, Privacy.ATTESTED), (f"{LONG} 4111 1111 1111 1111", Privacy.ANY)]
)
async def test_a_floor_is_not_a_matter_of_consent(
    settings: Settings, provider: Any, text: str, floor: Privacy
) -> None:
    async with client(settings, provider, lambda plan: pytest.fail("was asked")) as ai:
        with pytest.raises(OverspillError) as caught:
            await ai.chat(text, privacy=floor)
    assert not isinstance(caught.value, ConsentRequired)
    assert provider.connections == 0


def naming(settings: Settings, provider: Any, key: str | None, mode: int = 0o600) -> Settings:
    file = settings.places.state / "maker.key"
    file.parent.mkdir(parents=True, exist_ok=True)
    if key is not None:
        file.write_text(key)
        file.chmod(mode)
    named = ThirdPartySettings("maker", provider.url, "big", 8192, file, 3.0)
    return replace(settings, third_party=named)


async def test_settings_may_name_the_provider_and_a_person_is_asked_all_the_same(
    settings: Settings, provider: Any
) -> None:
    asked: list[Plan] = []

    def on_consent(plan: Plan) -> Grant | None:
        asked.append(plan)
        return Grant("maker", plan.request_id, int(time.time()) + 60) if len(asked) > 1 else None

    provider.say("fine")
    named = naming(settings, provider, "sk-1\n")
    device = FakeEngine(context=30)
    async with AsyncOverspill("t", settings=named, device=device, on_consent=on_consent) as ai:
        with pytest.raises(ConsentRequired):
            await ai.chat(LONG)
        assert provider.connections == 0  # a key that is there is no consent
        reply = await ai.chat(LONG)
    assert (reply.text, reply.route.route) == ("fine", Route.THIRD_PARTY)
    assert asked[1].estimated_cost > 0


@pytest.mark.parametrize(
    ("key", "mode", "says"),
    [
        (None, 0, "no API key"),
        ("", 0o600, "no API key"),
        ("a b", 0o600, "no API key"),
        ("k\nk", 0o600, "no API key"),
        ("sk-1", 0o644, "open to others"),
    ],
)
async def test_a_key_that_is_none_or_that_others_read_is_refused_at_once(
    settings: Settings, provider: Any, key: str | None, mode: int, says: str
) -> None:
    named = naming(settings, provider, key, mode)
    with pytest.raises(ConfigurationError, match=says):
        async with AsyncOverspill("t", settings=named, device=FakeEngine()):
            pytest.fail("opened")
    assert provider.connections == 0


async def test_a_call_may_ask_for_placeholders_that_no_policy_names(
    settings: Settings, provider: Any, tmp_path: Path
) -> None:
    (tmp_path / "routing.toml").write_text('version = "1"\n[detectors]\nemail = "any"\n')
    provider.say("I wrote to [EMAIL_1].")

    def consent(plan: Plan) -> Grant:
        return Grant("maker", plan.request_id, int(time.time()) + 60)

    async with client(settings, provider, consent) as ai:
        reply = await ai.chat(LONG, redact=True)
    assert reply.text == "I wrote to jane@mail.example.org."
    assert "[EMAIL_1]" in str(provider.received)
    assert "jane@mail" not in str(provider.received)
