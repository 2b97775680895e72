"""Keys and evidence: renewed, overlapping, never older than a day, never stored."""

from __future__ import annotations

import os

import pytest

from overspill.errors import BusyError, InvalidRequest, ReceiptInvalid
from overspill.transport.memory import MemoryTransport
from overspill.trust.nkc import NodeKeyConfig
from overspill_cloud.keys import (
    CLIENT_ACCEPTS_S,
    KEY_LIFETIME_S,
    RENEW_S,
    ChallengeBudget,
)

pytestmark = pytest.mark.anyio


def _config(epoch):
    return NodeKeyConfig.decode(epoch.bundle.node_key_config)


async def test_a_renewed_configuration_overlaps_with_the_old_one(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        engine = await here.enrolled()
        await cloud.collect(engine, cloud.ask())
        old = here.keys.current()
        here.clock.offset_s += RENEW_S
        await here.keys.renew()
        assert here.keys.current().nkc_sha256 != old.nkc_sha256
        assert (await engine.attest()).nkc_sha256 == old.nkc_sha256
        await cloud.collect(engine, cloud.ask())  # sealed to the old configuration
        here.clock.offset_s += CLIENT_ACCEPTS_S
        await here.keys.renew()
        assert here.keys.lookup(old.nkc_sha256) is None
        await cloud.collect(engine, cloud.ask())  # the client moved on by itself
        assert (await engine.attest()).nkc_sha256 == here.keys.current().nkc_sha256


async def test_cards_of_a_configuration_renewed_in_between_are_verified_anew(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        engine = here.client()
        before = await engine.attest()
        here.clock.offset_s += RENEW_S
        await here.keys.renew()
        assert [card.name for card in await engine.cards()] == ["echo"]
        assert (await engine.attest()).nkc_sha256 != before.nkc_sha256


async def test_cards_that_the_node_did_not_sign_are_refused(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:

        class Forger(MemoryTransport):
            async def get_cards(self):
                cards, signature = await super().get_cards()
                return cards.replace(b"echo", b"gpt9"), signature

        with pytest.raises(ReceiptInvalid):
            await here.client(Forger(here.node)).cards()


async def test_a_key_lives_for_a_day_and_its_configurations_within_it(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        began, first = here.clock(), here.keys.current()
        seen = {}
        while here.clock() < began + KEY_LIFETIME_S + 4 * RENEW_S:
            epoch = here.keys.current()
            seen.setdefault(_config(epoch).hpke_public_key, []).append(epoch)
            config = _config(epoch)
            assert config.not_after - config.not_before <= KEY_LIFETIME_S
            assert config.not_after >= here.clock() + CLIENT_ACCEPTS_S
            here.clock.offset_s += RENEW_S
            await here.keys.renew()
        assert len(seen) == 2
        for epochs in seen.values():
            made = epochs[0].key_made_unix
            assert all(e.not_after <= made + KEY_LIFETIME_S for e in epochs)
            assert all(e.receipt_key is epochs[0].receipt_key for e in epochs)
        assert here.keys.lookup(first.nkc_sha256) is None


async def test_keys_are_in_no_file_of_the_state_folder(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        await cloud.collect(await here.enrolled(), cloud.ask())
        public = _config(here.keys.current()).hpke_public_key
        private = here.keys.current().pair._private_key
        assert private is not None
        for path in tmp_path.rglob("*"):
            assert public not in path.read_bytes()


@pytest.mark.parametrize("nonce", [b"", b"short", bytes(32), bytes(33)])
async def test_a_challenge_is_32_random_bytes(cloud, tmp_path, nonce):
    async with cloud.world(tmp_path) as here:
        with pytest.raises(InvalidRequest):
            await here.node.challenge(nonce)


async def test_challenges_answer_with_the_current_configuration(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        one = await here.node.challenge(os.urandom(32))
        other = await here.node.challenge(os.urandom(32))
        assert one.node_key_config == other.node_key_config
        assert one.evidence != other.evidence


@pytest.mark.parametrize(
    ("quote_s", "per_s"), [(0.0, 50), (0.001, 50), (0.01, 25), (0.025, 10), (0.05, 5), (3.0, 5)]
)
def test_the_challenge_budget_fills_as_quickly_as_quotes_are_made(quote_s, per_s):
    """By a TPM that takes long, as slowly as ever; all clients of a lost node need not wait where
    a quote is a signature."""
    now = [0.0]
    budget = ChallengeBudget(lambda: now[0], burst=1)
    budget.quoted(quote_s)
    budget.take()
    now[0] += 0.9 / per_s
    with pytest.raises(BusyError) as caught:
        budget.take()
    assert caught.value.reason == "CHALLENGES"
    now[0] += 0.2 / per_s
    budget.take()


def test_one_slow_quote_does_not_slow_the_budget_for_long():
    now = [0.0]
    budget = ChallengeBudget(lambda: now[0], burst=1)
    for quote_s in (0.001, 2.0, *[0.001] * 30):
        budget.quoted(quote_s)
    budget.take()
    now[0] += 1.1 / 50
    budget.take()


async def test_a_node_learns_what_its_quotes_take(cloud, tmp_path):
    """As many clients as the burst come, and again soon after: none is sent away."""
    async with cloud.world(tmp_path) as here:
        for _ in range(20):
            await here.node.challenge(os.urandom(32))
        here.clock.offset_s += 2.0
        for _ in range(20):
            await here.node.challenge(os.urandom(32))


def test_the_challenge_budget_refills(cloud):
    now = [0.0]
    budget = ChallengeBudget(lambda: now[0], per_s=2.0, burst=3)
    for _ in range(3):
        budget.take()
    with pytest.raises(BusyError) as caught:
        budget.take()
    assert caught.value.retry_after_s
    now[0] += 0.5
    budget.take()
    with pytest.raises(BusyError):
        budget.take()
    now[0] += 1000
    for _ in range(3):
        budget.take()
    with pytest.raises(BusyError):
        budget.take()
    now[0] -= 5000  # a clock that is set back gives nothing away, and takes nothing
    with pytest.raises(BusyError):
        budget.take()
