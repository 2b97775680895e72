"""Nothing goes to a third party without a signed grant for this very interaction, used once."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ConfigurationError, ConsentRequired
from overspill.identity.keys import SoftwareKey
from overspill.providers.granted import GrantedEngine
from overspill.providers.grants import MAX_LIFETIME_S, GrantBook, interaction
from overspill.providers.openai_api import OpenAIEngine, ProviderOptions
from overspill.redacting import RedactingEngine
from overspill.routing.policy import RoutingPolicy
from overspill.types.card import ModelCard
from overspill.types.chat import Grammar, Image, Message, Request, Tool, ToolCall
from overspill.types.route import Grant

NOW = 1_800_000_000
ASK = Request((Message("user", "ask a@b.example"),), id="ab" * 16)
Change = Callable[[Request], Request]


@pytest.fixture
def key() -> SoftwareKey:
    return SoftwareKey.generate(NOW + 10_000)


@pytest.fixture
def book(tmp_path: Path, key: SoftwareKey) -> GrantBook:
    return GrantBook(tmp_path / "state" / "grants.sqlite", key)


def granted(book: GrantBook, request: Request = ASK, provider: str = "maker") -> Request:
    grant = book.sign(Grant(provider, request.id, NOW + 60), request, NOW)
    return replace(request, grant=grant)


def third_party(provider: Any, book: GrantBook, now: int = NOW) -> GrantedEngine:
    card = ModelCard("big", 8192, "openai")
    api = OpenAIEngine(ProviderOptions("maker", provider.url, card, "k"))
    policy = RoutingPolicy(redact=("email",))
    return GrantedEngine(RedactingEngine(api, policy), "maker", book, clock=lambda: now)


async def send(engine: GrantedEngine, request: Request) -> str:
    return "".join([chunk.text async for chunk in engine.generate(request)])


@pytest.mark.anyio
async def test_a_grant_is_good_for_once(provider: Any, book: GrantBook) -> None:
    provider.say("I told [EMAIL", "_1].")
    engine, request = third_party(provider, book), granted(book)
    assert await send(engine, request) == "I told a@b.example."
    assert "a@b.example" not in str(provider.received)
    with pytest.raises(ConsentRequired) as caught:
        await send(engine, request)
    assert caught.value.reason == "grant_spent"
    assert provider.connections == 1


@pytest.mark.anyio
async def test_a_key_alone_permits_nothing(provider: Any, book: GrantBook) -> None:
    engine = third_party(provider, book)
    async with engine:
        assert await engine.count_prompt_tokens(ASK) is None
        assert (await engine.health()).ok
        unsigned = replace(ASK, grant=Grant("maker", ASK.id, NOW + 60))
        for request in (ASK, unsigned):
            with pytest.raises(ConsentRequired) as caught:
                await send(engine, request)
            assert caught.value.reason == "no_grant"
    assert provider.connections == 0


@pytest.mark.anyio
async def test_a_grant_that_was_spent_stays_spent_in_another_process(
    provider: Any, book: GrantBook, tmp_path: Path, key: SoftwareKey
) -> None:
    request = granted(book)
    await send(third_party(provider, book), request)
    again = GrantBook(tmp_path / "state" / "grants.sqlite", key)
    with pytest.raises(ConsentRequired, match="used already"):
        await send(third_party(provider, again), request)
    assert provider.connections == 1


@pytest.mark.anyio
async def test_a_failure_spends_it_too(provider: Any, book: GrantBook) -> None:
    provider.status = 500
    engine, request = third_party(provider, book), granted(book)
    for reason in ("", "grant_spent"):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the second one is what counts
            await send(engine, request)
        assert getattr(caught.value, "reason", "") == reason
    assert provider.connections == 1


def other_words(request: Request) -> Request:
    return replace(request, messages=(Message("user", "ask c@d.example"),))


CHANGES: list[Change] = [
    other_words,
    lambda r: replace(r, messages=(*r.messages, Message("assistant", "x"), Message("user", "y"))),
    lambda r: replace(r, messages=(replace(r.messages[0], name="n"),)),
    lambda r: replace(r, messages=(replace(r.messages[0], images=(Image(b"i", "image/png"),)),)),
    lambda r: replace(
        r, messages=(*r.messages, Message("assistant", "", (ToolCall("c", "t", "{}"),)))
    ),
    lambda r: replace(r, tools=(Tool("t", "d"),)),
    lambda r: replace(r, json_schema={"type": "object"}),
    lambda r: replace(r, grammar=Grammar("regex", "a")),
    lambda r: replace(r, stop=("x",)),
    lambda r: replace(r, prefix="x"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_grant_is_for_these_words(book: GrantBook, change: Change) -> None:
    request = change(granted(book))
    with pytest.raises(ConsentRequired) as caught:
        book.spend(request, "maker", NOW)
    assert caught.value.reason == "grant_request"
    assert "a@b.example" not in str(caught.value)


def test_a_grant_is_for_one_request_one_provider_and_now(book: GrantBook) -> None:
    request = granted(book)
    other = replace(request, id="cd" * 16)
    mine = granted(book, replace(other, grant=None)).grant
    assert mine is not None
    forged = replace(request, grant=replace(mine, request_id=request.id))
    for tried, provider, now, reason in (
        (other, "maker", NOW, "grant_request"),
        (forged, "maker", NOW, "grant_request"),
        (request, "other", NOW, "grant_provider"),
        (request, "maker", NOW + 60, "grant_expired"),
    ):
        with pytest.raises(ConsentRequired) as caught:
            book.spend(tried, provider, now)
        assert caught.value.reason == reason
    book.spend(request, "maker", NOW)  # none of those has used it up


def test_terms_that_were_changed_afterwards_do_not_count(book: GrantBook) -> None:
    request = granted(book)
    assert request.grant is not None
    longer = replace(request, grant=replace(request.grant, expires_unix=NOW + 300))
    with pytest.raises(ConsentRequired) as caught:
        book.spend(longer, "maker", NOW + 100)
    assert caught.value.reason == "grant_expired"


def test_another_devices_signature_is_none(book: GrantBook, tmp_path: Path) -> None:
    stranger = GrantBook(tmp_path / "s.sqlite", SoftwareKey.generate(NOW + 10_000))
    with pytest.raises(ConsentRequired) as caught:
        book.spend(granted(stranger), "maker", NOW)
    assert caught.value.reason == "signature"


@given(at=st.integers(0, 200), bit=st.integers(0, 7))
def test_a_grant_with_one_bit_changed_is_none(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    book = GrantBook(tmp_path_factory.mktemp("g") / "g.sqlite", SoftwareKey.generate(NOW + 9))
    request = granted(book)
    assert request.grant is not None
    data = bytearray(request.grant.signature)
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(ConsentRequired):
        book.spend(
            replace(request, grant=replace(request.grant, signature=bytes(data))), "maker", NOW
        )


@pytest.mark.parametrize(
    ("grant", "reason"),
    [
        (Grant("maker", "cd" * 16, NOW + 60), "grant_request"),
        (Grant("maker", ASK.id, NOW), "grant_expired"),
        (Grant("maker", ASK.id, NOW + MAX_LIFETIME_S + 1), "grant_lifetime"),
    ],
)
def test_what_is_no_consent_to_this_request_now_is_not_signed(
    book: GrantBook, grant: Grant, reason: str
) -> None:
    with pytest.raises(ConsentRequired) as caught:
        book.sign(grant, ASK, NOW)
    assert caught.value.reason == reason


@pytest.mark.anyio
async def test_where_the_book_cannot_be_written_nothing_is_sent(
    provider: Any, tmp_path: Path, key: SoftwareKey
) -> None:
    (tmp_path / "grants.sqlite").mkdir()
    book = GrantBook(tmp_path / "grants.sqlite", key)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await send(third_party(provider, book), granted(book))
    assert provider.connections == 0


def test_the_book_holds_no_word_of_a_request(book: GrantBook, tmp_path: Path) -> None:
    book.spend(granted(book), "maker", NOW)
    path = tmp_path / "state" / "grants.sqlite"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    data = path.read_bytes()
    assert b"b.example" not in data
    assert ASK.id.encode() not in data


def test_what_a_model_does_not_see_may_change(book: GrantBook) -> None:
    request = replace(ASK, max_tokens=9, draft="x", deadline_s=3.0)
    assert interaction(request) == interaction(ASK)
