"""Device keys are replaced without a failed call, and a thief does not keep what he rotated to."""

from __future__ import annotations

import asyncio
import json

import anyio
import pytest

from overspill.cli.main import whole_app
from overspill.errors import DeviceRejected
from overspill.exchange import ExchangeLimits, Incoming, seal_request
from overspill.identity.keys import ES256, SoftwareKey
from overspill.sealing.rotation import sign_rotation
from overspill.terminal import run_app
from overspill.wire import plaintext
from overspill_cloud.enrolment import OVERLAP_S

pytestmark = pytest.mark.anyio
FAR = 1 << 31


def new_key(algorithm: str = "ed25519") -> SoftwareKey:
    return SoftwareKey.generate(FAR, algorithm)


async def refused(attempt) -> str:
    with pytest.raises(DeviceRejected) as caught:
        await attempt
    return caught.value.reason


@pytest.mark.parametrize("algorithm", ["ed25519", ES256])
async def test_a_device_goes_on_under_its_new_key(cloud, tmp_path, algorithm):
    async with cloud.world(tmp_path) as here:
        old, new = cloud.device_key(), new_key(algorithm)
        engine = await here.enrolled(key=old)
        until = await engine.rotate(new, not_after_unix=FAR)
        assert until <= here.clock() + 366 * 86_400
        for client in (engine, here.client(key=new)):
            await cloud.collect(client, cloud.ask())


async def test_no_call_fails_while_keys_change(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        engine = await here.enrolled()
        ended = 0

        async def ask_on() -> None:
            nonlocal ended
            for _ in range(15):
                chunks = await cloud.collect(engine, cloud.ask("hello"))
                assert chunks[-1].finish is not None
                ended += 1

        asking = [asyncio.create_task(ask_on()) for _ in range(4)]
        for _ in range(5):
            await engine.rotate(new_key(), not_after_unix=FAR)
            await asyncio.sleep(0)
        await asyncio.gather(*asking)
        assert ended == 60


async def test_a_program_that_still_has_the_old_key_may_end_its_day(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        old = cloud.device_key()
        daemon = await here.enrolled(key=old)
        await here.client(key=old).rotate(new_key(), not_after_unix=FAR)
        await cloud.collect(daemon, cloud.ask())
        here.clock.offset_s = OVERLAP_S + 1
        await here.keys.renew()
        assert await refused(cloud.collect(daemon, cloud.ask())) == "expired"


async def test_the_same_rotation_again_changes_nothing(cloud, tmp_path):
    """Its answer was lost, or the device crashed before it kept the new key."""
    async with cloud.world(tmp_path) as here:
        old, new = cloud.device_key(), new_key()
        await here.enrolled(key=old)
        for _ in range(2):
            await here.client(key=old).rotate(new, not_after_unix=FAR)
        assert len(here.store.devices()) == 2


async def test_an_old_key_has_one_successor(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        old = cloud.device_key()
        await here.enrolled(key=old)
        await here.client(key=old).rotate(new_key(), not_after_unix=FAR)
        late = here.client(key=old)
        assert await refused(late.rotate(new_key(), not_after_unix=FAR)) == "rotated"
        await cloud.collect(late, cloud.ask())  # and it goes on under the key it has


async def test_a_revoked_device_takes_its_successors_along(cloud, tmp_path):
    """A thief who rotated a stolen key is out as soon as the stolen key is revoked."""
    async with cloud.world(tmp_path) as here:
        old = cloud.device_key()
        thief = await here.enrolled(key=old)
        for _ in range(3):
            await thief.rotate(new_key(), not_after_unix=FAR)
        assert here.store.revoke(old.thumbprint, int(here.clock()))
        assert await refused(cloud.collect(thief, cloud.ask())) == "revoked"
        assert await refused(thief.rotate(new_key(), not_after_unix=FAR)) == "revoked"


async def test_a_running_node_sees_a_revocation_at_the_next_request(start_node, cloud):
    """The operator's command is another process; nothing has to be restarted or waited for."""
    node = start_node("--attester", "dev")
    engine = await node.enrolled()
    await cloud.collect(engine, cloud.ask())
    state = ("--state", str(node.state))
    listed = await anyio.run_process(cloud.command("devices", "list", *state, "--json"))
    (device,) = json.loads(listed.stdout)["devices"]
    await anyio.run_process(cloud.command("devices", "revoke", device["device"], *state))
    assert await refused(cloud.collect(engine, cloud.ask())) == "revoked"
    await engine.aclose()


async def test_a_key_that_was_revoked_is_no_new_key(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        revoked, old = cloud.device_key(), cloud.device_key()
        await here.enrolled(key=revoked)
        here.store.revoke(revoked.thumbprint, int(here.clock()))
        await here.enrolled(key=old)
        assert await refused(here.client(key=old).rotate(revoked, not_after_unix=FAR)) == "revoked"


async def test_a_device_that_is_not_enrolled_rotates_nothing(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        assert await refused(here.client().rotate(new_key(), not_after_unix=FAR)) == "not_enrolled"


async def send(engine, new: SoftwareKey, rotation: bytes, not_after_unix: int = FAR) -> None:
    """An enrolment that brings just these bytes."""
    result = await engine.attest()
    asked = plaintext.Enrolment(new.public_der, "", not_after_unix, rotation=rotation)
    body = plaintext.enrolment_to_bytes(asked)
    now_ms = int(engine._clock() * 1000)
    outgoing = seal_request(result, new, body, now_ms)
    call = engine._replicas[0].transport.enroll(outgoing.head, outgoing.each_frame())
    incoming = Incoming(call, outgoing.keys, ExchangeLimits())
    try:
        await incoming.begin()
        frame = await incoming.frame()
    finally:
        await incoming.aclose()
    _, event = plaintext.event_from_bytes(frame.plaintext)
    if isinstance(event, DeviceRejected):
        raise event


@pytest.mark.parametrize(
    "case", ["another key", "the same key", "another end", "old", "unsigned", "garbage"]
)
async def test_a_rotation_that_says_something_else_is_refused(cloud, tmp_path, case):
    async with cloud.world(tmp_path) as here:
        old, new = cloud.device_key(), new_key()
        engine = await here.enrolled(key=old)
        now_ms = int(here.clock() * 1000)
        good = {"not_after_unix": FAR, "unix_ms": now_ms}
        made = {
            "another key": lambda: sign_rotation(old, new_key(), **good),
            "the same key": lambda: sign_rotation(old, old, **good),
            "another end": lambda: sign_rotation(old, new, **{**good, "not_after_unix": FAR - 1}),
            "old": lambda: sign_rotation(old, new, **{**good, "unix_ms": now_ms - 91_000}),
            "unsigned": lambda: sign_rotation(old, new, **good)[:-64] + bytes(64),
            "garbage": lambda: b"rotate me",
        }[case]()
        holder = old if case == "the same key" else new
        reason = await refused(send(engine, holder, made))
        assert reason == ("signature" if case == "unsigned" else "rotation")
        assert len(here.store.devices()) == 1


def test_the_command_replaces_the_key_on_this_device(start_node, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("OVERSPILL_HOME", str(home))
    (tmp_path / "state").mkdir()
    node = start_node("--attester", "dev")
    from overspill.trust.template import dev_policy

    policy = tmp_path / "trust.toml"
    policy.write_text(
        dev_policy(bytes.fromhex(node.started["dev_root"]), {"echo": bytes.fromhex(NOTHING)})
    )
    options = ["--cloud", node.listen, "--trust-policy", str(policy), "--json"]
    assert run_app(whole_app(), "overspill", ["cloud", "enroll", node.code(), *options]) == 0
    (key_file,) = home.rglob("device-key")
    before = key_file.read_text()
    capsys.readouterr()
    assert run_app(whole_app(), "overspill", ["cloud", "rotate", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rotated"]
    assert key_file.read_text() != before
    assert SoftwareKey.from_text(key_file.read_text(), "here").thumbprint.hex() == told["device"]
    assert not key_file.with_name("device-key.next").exists()
    assert run_app(whole_app(), "overspill", ["cloud", "rotate", *options]) == 0


NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
