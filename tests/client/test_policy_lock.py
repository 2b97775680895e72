"""The administrator's file: above settings and requests, live, and refused where it is not safe."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from overspill import AsyncOverspill
from overspill.cli.main import main
from overspill.config import AdminPlace, load_settings
from overspill.errors import ConfigurationError, PolicyRefusal
from overspill.policy_lock import AdminPolicy, PolicyLock, parse_admin_policy, system_place
from overspill.types.chat import Privacy
from overspill.types.route import Grant, Route

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX"),
]


@pytest.fixture
def file(tmp_path):
    """The administrator's file, not there yet; the administrator is this user."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    return folder / "policy.toml"


def written(file, text):
    file.write_text(text)
    file.chmod(0o644)


@pytest.fixture
def administered(file, tmp_path):
    def of(settings):
        return replace(settings, admin_policy=AdminPlace(file, os.getuid()))

    return of


@pytest.fixture
def settings(administered, tmp_path):
    environ = {"OVERSPILL_HOME": str(tmp_path / "home"), "OVERSPILL_MODEL": "echo"}
    settings = replace(load_settings(environ=environ), isolate=False, privacy=Privacy.ANY)
    return administered(settings)


def on_cloud(file, administered, cloud):
    """Settings under which the cloud would answer, were it not for the administrator."""
    return administered(replace(cloud.settings, model="echo", isolate=False))


async def test_a_device_floor_wins_over_a_request_at_once_and_goes_with_the_file(
    cloud_at, file, administered
):
    async with cloud_at() as cloud:
        settings = on_cloud(file, administered, cloud)
        async with AsyncOverspill("t", settings=settings, daemon="never") as ai:
            await ai.enroll(cloud.code())
            asked = {"model": "river", "privacy": "any"}
            assert (await ai.chat("hi", **asked)).route.route is Route.CLOUD
            written(file, 'privacy = "device"\n')
            with pytest.raises(PolicyRefusal):
                await ai.chat("hi", **asked)
            assert (await ai.chat("hi", privacy="any")).route.route is Route.DEVICE
            written(file, 'privacy = "any"\n')
            assert (await ai.chat("hi", **asked)).route.route is Route.CLOUD
            file.unlink()
            assert (await ai.chat("hi", **asked)).route.route is Route.CLOUD


async def test_a_cloud_that_is_not_allowed_is_never_contacted(cloud_at, file, administered):
    async with cloud_at() as cloud:
        settings = on_cloud(file, administered, cloud)
        written(file, 'clouds = ["other.example:8443"]\n')
        async with AsyncOverspill("t", settings=settings, daemon="never") as ai:
            problem = (await ai.cloud_state()).problem
            assert isinstance(problem, PolicyRefusal)
            assert str(file) in problem.message
            with pytest.raises(PolicyRefusal):
                await ai.chat("hi", model="river")
            assert (await ai.chat("hi")).route.route is Route.DEVICE
            written(file, f'clouds = ["{settings.cloud.address}"]\n')
            assert (await ai.cloud_state()).problem is None


async def test_models_that_are_not_listed_do_not_answer_here_or_there(cloud_at, file, administered):
    async with cloud_at() as cloud:
        settings = on_cloud(file, administered, cloud)
        async with AsyncOverspill("t", settings=settings, daemon="never") as ai:
            await ai.enroll(cloud.code())
            written(file, 'models = ["echo"]\n')
            with pytest.raises(PolicyRefusal, match="'river'"):
                await ai.chat("hi", model="river")
            assert [card.name for card in await ai.models()] == ["echo"]
            assert (await ai.chat("hi")).model == "echo"
            written(file, 'models = ["river"]\n')
            assert [card.name for card in await ai.models()] == ["river"]
            assert (await ai.chat("hi")).model == "river"
            with pytest.raises(PolicyRefusal, match="'echo'"):
                await ai.chat("hi", model="echo")


async def test_without_a_cloud_a_forbidden_device_model_is_refused_by_name(settings, file):
    written(file, "models = []\n")
    async with AsyncOverspill("t", settings=settings, daemon="never") as ai:
        with pytest.raises(PolicyRefusal, match="'echo'"):
            await ai.chat("hi")
        with pytest.raises(PolicyRefusal):
            await ai.plan("hi")


async def test_third_parties_are_off_whatever_a_person_grants(settings, file):
    written(file, "third_parties = false\n")
    async with AsyncOverspill("t", settings=settings, daemon="never") as ai:
        request = ai.build("hi")
        granted = replace(request, grant=Grant("far", request.id, 1 << 40))
        with pytest.raises(PolicyRefusal, match="third parties off"):
            await ai.collect(granted)


async def test_the_environment_cannot_name_another_file(tmp_path):
    environ = {"OVERSPILL_HOME": str(tmp_path), "OVERSPILL_ADMIN_POLICY": "/nowhere"}
    assert load_settings(environ=environ).admin_policy is None
    assert system_place().owner_uid == 0
    config = tmp_path / "config.toml"
    config.write_text('admin_policy = "mine.toml"\n')
    with pytest.raises(ConfigurationError, match="admin_policy"):
        load_settings(config, environ=environ)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
async def test_a_file_that_others_may_write_lets_nothing_through(settings, file, mode):
    written(file, 'privacy = "any"\n')
    async with AsyncOverspill("t", settings=settings, daemon="never") as ai:
        await ai.chat("hi")
        file.chmod(mode)
        with pytest.raises(ConfigurationError, match=f"others may write .*{mode:o}"):
            await ai.chat("hi")


async def test_a_file_of_another_owner_lets_nothing_through(settings, file):
    written(file, 'privacy = "any"\n')
    other = replace(settings, admin_policy=AdminPlace(file, os.getuid() + 1))
    with pytest.raises(ConfigurationError, match=f"belongs to user {os.getuid()}"):
        async with AsyncOverspill("t", settings=other, daemon="never") as ai:
            await ai.chat("hi")


async def test_a_folder_in_which_others_could_replace_it_lets_nothing_through(settings, file):
    written(file, 'privacy = "any"\n')
    file.parent.chmod(0o777)
    with pytest.raises(ConfigurationError, match="others may write"):
        async with AsyncOverspill("t", settings=settings, daemon="never") as ai:
            await ai.chat("hi")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("privacy = ", "no policy"),
        ('privacy = "none"', "none of device"),
        ('privcy = "device"', "unknown key 'privcy'"),
        ('clouds = "node:1"', "clouds is no list"),
        ("models = [1]", "models is no list"),
        ('third_parties = "no"', "neither true nor false"),
        ("#" * 70_000, "over"),
        ("\xff", "no policy"),
    ],
)
def test_what_cannot_be_understood_lets_nothing_through(file, text, why):
    file.write_bytes(text.encode("latin-1"))
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match=why):
        PolicyLock(AdminPlace(file, os.getuid())).current()


def test_a_file_that_did_not_change_is_not_read_again(file):
    written(file, 'privacy = "device"\n')
    lock = PolicyLock(AdminPlace(file, os.getuid()))
    assert lock.current() is lock.current()
    assert PolicyLock(AdminPlace(file.parent / "none", 0)).current() is None


def test_several_addresses_have_to_be_allowed_each(file):
    policy = parse_admin_policy(b'clouds = ["a:1", "b:1"]', file)
    assert policy.allows_cloud(["a:1", "b:1"])
    assert not policy.allows_cloud(["a:1", "c:1"])
    assert AdminPolicy(file, "").allows_cloud(["c:1"])


def test_the_command_shows_what_is_in_force(monkeypatch, capsys, tmp_path, file):
    monkeypatch.setenv("OVERSPILL_HOME", str(tmp_path))
    assert main(["policy", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["floor"] == "attested"
    assert main(["policy"]) == 0
    assert "floor in force: attested" in capsys.readouterr().out
    routing = tmp_path / "routing.toml"
    routing.write_text('version = "mine"\n')
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config" / "config.toml").write_text(f'routing_policy = "{routing}"\n')
    assert main(["policy", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["routing_policy"], shown["version"]) == (str(routing), "mine")
