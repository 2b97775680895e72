"""Model cards: signed by the attested key, and taken up anew with a node's models."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected
from overspill.remote import RemoteOptions
from overspill.testing import FakeEngine
from overspill.transport.memory import MemoryTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.wire import convert

pytestmark = pytest.mark.anyio
NOTHING = hashlib.sha256().digest()


@pytest.fixture
def state(tmp_path):
    return tmp_path


def policy_for(here, *names: str):
    (root,) = here.policy.dev_roots
    return parse_policy(dev_policy(root, dict.fromkeys(names, NOTHING)))


async def test_a_model_that_a_node_serves_since_is_taken_up_from_its_card(cloud, state):
    """The same client, over a restart of the node with one model more."""
    key = cloud.device_key()
    async with cloud.world(state) as before:
        road = MemoryTransport(before.node)
        await before.enrolled(key=key)
        engine = before.client(road, key=key, policy=policy_for(before, "echo", "new"))
        assert [card.name for card in await engine.cards()] == ["echo"]
        async with cloud.world(
            state, cloud.engine(), FakeEngine("I am new.", name="new", context=777)
        ) as after:
            road._node = after.node
            await cloud.collect(engine, cloud.ask())  # its key is gone: verified again
            cards = {card.name: card for card in await engine.cards()}
            assert set(cards) == {"echo", "new"}
            assert cards["new"].context == 777
            asked = cloud.ask(model="new")
            assert cloud.text_of(await cloud.collect(engine, asked)) == "I am new."
            engine._options = RemoteOptions(model="new")
            assert engine.card == cards["new"]


async def test_a_model_that_the_policy_does_not_list_is_not(cloud, state):
    async with cloud.world(state, cloud.engine(), FakeEngine(name="new")) as here:
        engine = here.client(policy=policy_for(here, "echo"))
        with pytest.raises(EvidenceRejected, match="model_not_listed"):
            await engine.cards()


async def test_a_card_that_promises_another_file_is_refused(cloud, state):
    """Signed by the node, but not true to its evidence."""
    async with cloud.world(state) as here:
        (model,) = here.models.values()

        class Liar(MemoryTransport):
            async def get_cards(self):
                card = replace(model.card, sha256="ab" * 32)
                data = convert.cards_to_bytes([card])
                epoch = here.keys.current()
                return data, epoch.receipt_key.sign_cards(epoch.nkc_sha256, data)

        with pytest.raises(EvidenceRejected, match="card_mismatch"):
            await here.client(Liar(here.node)).cards()
