"""Costs are told by measured use, and are the node's own ledger's, failures included."""

import json
import random

import pytest

from overspill import AsyncOverspill, verify_receipt
from overspill.cli.main import main
from overspill.errors import InvalidRequest, OverspillError
from overspill.state.spending import KEPT_BACK, SpendingStore, Spent
from overspill.testing import FakeEngine
from overspill.types.route import Route
from overspill_cloud.store import Store

PRICES = (0.4, 1.6)
REQUESTS = 150


def spent(cost=0.0, model="m", confirmed=True):
    return Spent(100, "t", "cloud", model, "stop", confirmed, 300, 100, cost)


def test_sums_are_by_route_and_model_and_per_million_tokens(tmp_path):
    store = SpendingStore(tmp_path / "spending.sqlite")
    for one in (spent(0.001), spent(0.003), spent(0.0, "free", confirmed=False)):
        store.add(one)
    dear, free = store.sums()
    assert (dear.tries, dear.prompt_tokens, dear.completion_tokens) == (2, 600, 200)
    assert dear.cost_per_mtok == pytest.approx(5.0)
    assert (free.model, free.unconfirmed, free.cost_per_mtok) == ("free", 1, 0.0)
    assert store.sums(since_unix_s=101) == []
    assert (tmp_path / "spending.sqlite").stat().st_mode & 0o077 == 0


def test_what_costs_nothing_is_written_in_batches_and_what_costs_at_once(tmp_path):
    path = tmp_path / "spending.sqlite"
    store = SpendingStore(path)
    store.add(spent())
    assert not path.exists()
    store.add(spent(0.1))
    assert SpendingStore(path).sums()[0].tries == 2
    for _ in range(KEPT_BACK):
        store.add(spent())
    assert SpendingStore(path).sums()[0].tries == 2 + KEPT_BACK


@pytest.mark.anyio
async def test_costs_are_those_of_the_nodes_own_ledger(cloud_at, capsys, monkeypatch):
    draw = random.Random(5)
    replies, left = [], 0
    async with cloud_at(prices=PRICES) as cloud:
        settings = cloud.settings
        async with AsyncOverspill("t", settings=settings, device=FakeEngine()) as ai:
            await ai.enroll(cloud.code())
            (card,) = [card for card in await ai.models() if card.name == "river"]
            assert (card.price_prompt_per_mtok, card.price_completion_per_mtok) == PRICES
            for number in range(REQUESTS):
                text = "words " * draw.randint(1, 30) + str(number)
                kind = draw.choice(("cloud", "cloud", "device", "short", "left", "wrong"))
                if kind == "left":
                    async for chunk in ai.stream(text, model="river"):
                        if chunk.text:
                            break
                    left += 1
                    continue
                options = {"model": "fake" if kind == "device" else "river"}
                if kind == "short":
                    options["max_tokens"] = draw.randint(1, 8)
                if kind == "wrong":
                    options["adapter"] = "none-of-these"
                try:
                    replies.append(await ai.chat(text, **options))
                except (InvalidRequest, OverspillError):
                    assert kind == "wrong"
    store = Store(cloud.state)
    lines = store.usage()
    store.close()

    bills = {one.model: one for one in _sums(settings)}
    ours = bills["river"]
    confirmed = [reply for reply in replies if reply.route.route is Route.CLOUD]
    # What ended is the same to the token: in replies, receipts, the ledger and the costs.
    by_id = {line["request_id"]: line for line in lines}
    claims = [verify_receipt(reply.receipt) for reply in confirmed]
    told = [(claim.prompt_tokens, claim.completion_tokens) for claim in claims]
    ended = [by_id.pop(claim.request_id) for claim in claims]
    assert told == [(line["prompt_tokens"], line["completion_tokens"]) for line in ended]
    assert len(confirmed) == ours.tries - ours.unconfirmed
    assert ours.prompt_tokens == sum(prompt for prompt, _ in told)
    # Of what was left, the costs have what was seen: the node may have been ahead of that.
    rest = sum(line["completion_tokens"] for line in by_id.values())
    seen = ours.completion_tokens - sum(answer for _, answer in told)
    assert 0 < seen <= rest
    price = (ours.prompt_tokens * PRICES[0] + ours.completion_tokens * PRICES[1]) / 1e6
    assert ours.cost == pytest.approx(price)
    assert bills["fake"].cost == 0.0
    assert left
    assert ours.unconfirmed >= left

    monkeypatch.setenv("OVERSPILL_HOME", str(settings.places.state.parent))
    assert main(["costs", "--json"]) == 0
    shown = {one["model"]: one for one in json.loads(capsys.readouterr().out)}
    assert shown["river"]["cost_per_mtok"] == pytest.approx(
        1e6 * ours.cost / (ours.prompt_tokens + ours.completion_tokens)
    )


def _sums(settings):
    return SpendingStore(settings.places.state / "spending.sqlite").sums()
