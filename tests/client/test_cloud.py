"""Device and cloud together: a real node over a real socket, and the device's engine faked."""

from dataclasses import replace

import anyio
import pytest

from overspill import AsyncOverspill, verify_receipt
from overspill.errors import (
    BusyError,
    ConnectFailed,
    DeviceRejected,
    EngineDied,
    EvidenceRejected,
    PolicyRefusal,
)
from overspill.state.receipts import ReceiptStore
from overspill.testing import FakeEngine
from overspill.types.chat import Privacy
from overspill.types.reply import AvailabilityState
from overspill.types.route import Route, RouteReason

pytestmark = pytest.mark.anyio
IBAN = "My account is DE89 3704 0044 0532 0130 00, is it valid?"


async def test_an_answer_from_the_cloud_comes_with_a_receipt_that_verifies_later(cloud_at):
    async with cloud_at() as cloud:
        async with AsyncOverspill("t", settings=cloud.settings, device=FakeEngine()) as ai:
            await ai.enroll(cloud.code())
            reply = await ai.chat("Hello there", model="river")
        assert reply.text == "echo: Hello there"
        assert (reply.model, reply.route.route) == ("river", Route.CLOUD)
        assert reply.route.reason is RouteReason.PINNED
        assert reply.route.assurance == "NONE"
        assert reply.route.bytes_sent > 1000
    # The node is gone; the receipt still verifies, from disk.
    stored = ReceiptStore(cloud.settings.places.state / "receipts.sqlite").list()
    assert [record.id for record in stored] == [reply.receipt.id]
    claims = verify_receipt(stored[0])
    assert claims.model == "river"
    assert claims.completion_tokens == reply.usage.completion_tokens


async def test_evidence_for_development_never_satisfies_the_floor_attested(cloud_at):
    """Development evidence never satisfies the floor `attested`."""
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=FakeEngine()) as ai,
    ):
        await ai.enroll(cloud.code())
        with pytest.raises(PolicyRefusal, match="assurance"):
            await ai.chat("Hello", model="river", privacy="attested")
        reply = await ai.chat("Hello", privacy=Privacy.ATTESTED)
    assert reply.route.route is Route.DEVICE


async def test_without_a_policy_file_the_node_is_refused_and_the_device_answers(cloud_at):
    """Without a trust policy file a node with development evidence is refused."""
    async with cloud_at() as cloud:
        bare = cloud.settings.with_cloud(cloud.settings.cloud.address)
        async with AsyncOverspill("t", settings=bare, device=FakeEngine()) as ai:
            assert (await ai.chat("Hello")).route.route is Route.DEVICE
            availability = await ai.availability()
            assert availability.cloud is AvailabilityState.UNAVAILABLE
            assert "rejected" in availability.cloud_reason
            with pytest.raises(EvidenceRejected):
                await ai.chat("Hello", model="river")


async def test_a_busy_device_spills_over(cloud_at):
    device = FakeEngine(error=BusyError("Full."))
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=device) as ai,
    ):
        await ai.enroll(cloud.code())
        reply = await ai.chat("hi")
    assert (reply.route.route, reply.route.reason) == (Route.CLOUD, RouteReason.SPILL)
    assert reply.route.changes == ("device -> cloud: busy",)


async def test_a_device_that_dies_before_its_first_word_falls_back_to_the_cloud(cloud_at):
    device = FakeEngine(error=EngineDied("Gone."))
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=device) as ai,
    ):
        await ai.enroll(cloud.code())
        reply = await ai.chat("hi")
    assert (reply.route.route, reply.route.reason) == (Route.CLOUD, RouteReason.FALL_BACK)


async def test_a_device_that_dies_after_its_first_word_does_not_switch_in_silence(cloud_at):
    device = FakeEngine("one two", error=EngineDied("Gone."), error_after=1)
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=device) as ai,
    ):
        await ai.enroll(cloud.code())
        with pytest.raises(EngineDied) as caught:
            await ai.chat("hi")
    assert caught.value.partial == "one"


async def test_a_device_that_is_not_enrolled_is_told_so_and_counts_what_left(cloud_at):
    device = FakeEngine(error=BusyError("Full."))
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=device) as ai,
    ):
        with pytest.raises(DeviceRejected):
            await ai.chat("hi", model="river")
        device.error = None
        reply = await ai.chat("hi")
    assert reply.route.route is Route.DEVICE


async def test_a_cloud_that_went_away_leaves_the_device_and_a_reason(cloud_at):
    async with cloud_at() as cloud:
        settings = cloud.settings
    async with AsyncOverspill("t", settings=settings, device=FakeEngine()) as ai:
        reply = await ai.chat("What is 12345 * 6789?")
        assert reply.route.route is Route.DEVICE
        reasons = {stage.code for stage in reply.route.decision.stages}
        assert "unavailable" in reasons
        with pytest.raises(ConnectFailed):
            await ai.chat("hi", model="river")


async def test_without_a_device_model_the_cloud_answers(cloud_at):
    from overspill.errors import ModelNotFound

    device = FakeEngine(start_error=ModelNotFound("No model."))
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=device) as ai,
    ):
        await ai.enroll(cloud.code())
        assert (await ai.chat("hi")).route.route is Route.CLOUD
        with pytest.raises(PolicyRefusal):
            await ai.chat("hi", privacy="device")


async def test_a_model_of_the_cloud_is_not_looked_for_under_the_floor_device(cloud_at):
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=FakeEngine()) as ai,
    ):
        with pytest.raises(PolicyRefusal, match="river"):
            await ai.chat("hi", model="river", privacy="device")


async def test_private_data_stays_and_taints_the_rest_of_the_conversation(cloud_at):
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=FakeEngine("Yes.")) as ai,
    ):
        await ai.enroll(cloud.code())
        first = await ai.chat(IBAN)
        turns = [
            {"role": "user", "content": IBAN},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "Thanks. What is 98765 * 43210?"},
        ]
        second = await ai.plan(turns)
        with pytest.raises(PolicyRefusal):
            await ai.chat(turns, model="river")
    assert first.route.reason is RouteReason.PRIVACY
    assert second.route is Route.DEVICE


async def test_a_device_that_cannot_count_leaves_the_cloud(cloud_at):
    class Lost(FakeEngine):
        async def count_prompt_tokens(self, request):
            raise EngineDied("The worker is gone.")

    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=Lost()) as ai,
    ):
        await ai.enroll(cloud.code())
        reply = await ai.chat("hi")
        assert (reply.route.route, reply.route.reason) == (Route.CLOUD, RouteReason.SPILL)
        with pytest.raises(EngineDied):
            await ai.chat("hi", privacy="device")


async def test_an_answer_is_kept_where_its_receipt_cannot_be(cloud_at):
    async with (
        cloud_at() as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=FakeEngine()) as ai,
    ):
        await ai.enroll(cloud.code())
        file = cloud.settings.places.state / "receipts.sqlite"
        file.write_bytes(b"this is no database" * 100)
        with pytest.warns(UserWarning, match="receipts"):
            reply = await ai.chat("hi", model="river")
    assert reply.text == "echo: hi"
    assert verify_receipt(reply.receipt).model == "river"


async def test_a_silent_cloud_costs_an_easy_prompt_a_moment_once(cloud_at, monkeypatch):
    from overspill import gathering

    monkeypatch.setattr(gathering, "PATIENCE_S", 0.3)
    async with anyio.create_task_group() as tasks:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        contacts = []

        async def stay_silent(stream):
            contacts.append(stream)
            await anyio.sleep_forever()

        tasks.start_soon(listener.serve, stay_silent)
        port = listener.listeners[0].extra(anyio.abc.SocketAttribute.local_port)
        async with cloud_at() as cloud:
            settings = cloud.settings.with_cloud(f"127.0.0.1:{port}")
            async with AsyncOverspill("t", settings=settings, device=FakeEngine()) as ai:
                for _ in range(3):
                    assert (await ai.chat("hi")).route.route is Route.DEVICE
                assert len(contacts) <= 1
        tasks.cancel_scope.cancel()


async def test_under_the_floor_device_the_cloud_is_not_even_contacted(tmp_path, cloud_at):
    """Under the floor `device` no cloud is contacted."""
    contacts = 0

    async def count(stream):
        nonlocal contacts
        contacts += 1
        await stream.aclose()

    async with anyio.create_task_group() as tasks:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        tasks.start_soon(listener.serve, count)
        port = listener.listeners[0].extra(anyio.abc.SocketAttribute.local_port)
        async with cloud_at() as cloud:
            settings = cloud.settings.with_cloud(f"127.0.0.1:{port}")
            async with AsyncOverspill("t", settings=settings, device=FakeEngine()) as ai:
                await ai.chat(IBAN)  # found to be private: raised to the floor "device"
                assert contacts == 0
            settings = replace(settings, privacy=Privacy.DEVICE)
            async with AsyncOverspill("t", settings=settings, device=FakeEngine()) as ai:
                await ai.chat("hello")
                await ai.plan("hello")
                await ai.models()
                await ai.availability()
                with ai.budget(seconds=9, cost=1):
                    await ai.chat("hello")
                assert contacts == 0
        tasks.cancel_scope.cancel()
