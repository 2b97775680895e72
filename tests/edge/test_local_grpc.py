"""The SDK through the daemon: the same features, the same errors, and a loss that is told."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import anyio
import openai
import pytest

from overspill import AsyncOverspill, Overspill
from overspill.config import load_settings
from overspill.errors import (
    BusyError,
    ConnectFailed,
    ContextOverflow,
    DaemonRefused,
    InvalidRequest,
    StreamBroken,
    UsageError,
    VersionMismatch,
)
from overspill.transport.handshake import Hello, Side, greet
from overspill.transport.local.daemon_client import DaemonClient
from overspill.types.chat import Message, Request
from overspill.types.route import Route
from overspill_edge.tokens import Scope, user_tokens

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}

pytestmark = pytest.mark.anyio


@pytest.fixture
def through(settings):
    """``through("notes")``: a client that has to use the daemon."""
    return lambda app="notes", **options: AsyncOverspill(
        app, settings=settings, daemon="require", **options
    )


async def test_an_answer_comes_whole_and_in_pieces_with_its_route(start_daemon, through):
    async with start_daemon(), through() as ai:
        assert ai.uses_daemon
        reply = await ai.chat("hello")
        pieces = [piece async for piece in ai.stream("hello")]
    assert reply.text == "".join(piece.text for piece in pieces) == "echo: hello"
    assert reply.route.route is Route.DEVICE
    assert reply.model == "echo"
    assert {piece.route.route for piece in pieces} == {Route.DEVICE}
    assert reply.usage.completion_tokens > 0
    assert reply.route.decision.stages


async def test_plan_models_availability_and_receipts_are_the_daemons(start_daemon, through):
    async with start_daemon() as running, through() as ai:
        plan, own = await ai.plan("hello"), await running.client.plan("hello")
        assert (plan.route, plan.model, plan.prompt_tokens) == (
            own.route,
            own.model,
            own.prompt_tokens,
        )
        assert plan.decision.stages == own.decision.stages
        assert await ai.models() == await running.client.models()
        assert (await ai.availability()).device.value == "available"
        assert await ai.receipts() == ()


async def test_errors_are_the_same_types_with_the_same_numbers(start_daemon, through):
    async with start_daemon(), through() as ai:
        with pytest.raises(ContextOverflow) as caught:
            await ai.chat("x" * 9000)
        assert caught.value.context == 8192
        with pytest.raises(InvalidRequest, match="temperature"):
            await ai.chat("x", temperature=9)


async def test_without_a_daemon_auto_takes_an_engine_of_its_own(settings):
    async with AsyncOverspill("notes", settings=settings) as ai:
        assert not ai.uses_daemon
        assert isinstance(ai.daemon_problem, ConnectFailed)
        assert (await ai.chat("hi")).text == "echo: hi"


async def test_without_a_daemon_require_says_so(through):
    with pytest.raises(ConnectFailed, match="No daemon"):
        async with through():
            pass


async def test_a_daemon_with_another_model_is_not_taken_for_this_one(start_daemon, settings):
    other = settings.with_model("brook")
    async with start_daemon(), AsyncOverspill("notes", settings=other) as ai:
        assert not ai.uses_daemon
        assert isinstance(ai.daemon_problem, DaemonRefused)


async def test_never_does_not_look(start_daemon, settings):
    async with start_daemon(), AsyncOverspill("t", settings=settings, daemon="never") as ai:
        assert not ai.uses_daemon
        assert ai.daemon_problem is None


@pytest.fixture
def settings_of_command(command):
    """The settings of a daemon that runs as a command of its own."""
    return load_settings(environ={"OVERSPILL_HOME": str(command.home), "OVERSPILL_MODEL": "echo"})


async def test_a_daemon_that_dies_before_the_first_piece_is_replaced_by_an_engine(
    command, settings_of_command
):
    with command.serving() as (process, _):
        async with AsyncOverspill("notes", settings=settings_of_command) as ai:
            assert ai.uses_daemon
            process.kill()
            process.wait()
            reply = await ai.chat("still there?")
            assert reply.text == "echo: still there?"
            assert not ai.uses_daemon
            assert isinstance(ai.daemon_problem, ConnectFailed)
            assert (await ai.plan("x")).route is Route.DEVICE


async def test_a_daemon_that_dies_in_mid_answer_is_a_typed_error_with_the_text_so_far(
    command, settings_of_command
):
    with command.serving() as (process, _):
        async with AsyncOverspill("notes", settings=settings_of_command) as ai:
            said = []

            async def read():
                async for piece in ai.stream("y" * 7000, max_tokens=1100):
                    if not said:
                        process.kill()
                    said.append(piece.text)

            with pytest.raises(StreamBroken) as caught:
                await read()
            assert caught.value.partial == "".join(said)
            assert caught.value.partial
            assert ("echo: " + "y" * 7000).startswith(caught.value.partial)
            assert (await ai.chat("hi")).text == "echo: hi"


async def test_a_daemon_that_restarted_is_greeted_again(command, settings_of_command):
    async with AsyncExitStack() as stack:
        with command.serving() as (first, _):
            ai = AsyncOverspill("notes", settings=settings_of_command, daemon="require")
            await stack.enter_async_context(ai)
            assert (await ai.chat("one")).text == "echo: one"
            first.terminate()
            first.wait()
        with command.serving():
            assert (await ai.chat("two")).text == "echo: two"
            assert ai.uses_daemon


async def test_a_required_daemon_that_is_gone_is_an_error(command, settings_of_command):
    with command.serving() as (process, _):
        async with AsyncOverspill("t", settings=settings_of_command, daemon="require") as ai:
            process.kill()
            process.wait()
            with pytest.raises(ConnectFailed):
                await ai.chat("hi")


async def test_two_apps_with_the_same_beginning_never_share_it(start_daemon, through):
    beginning = "Notes of the meeting. " * 40
    async with start_daemon(), through("notes") as notes, through("mail") as mail:
        first = await notes.chat(f"{beginning}The secret is plum.")
        again = await notes.chat(f"{beginning}The secret is plum.")
        other = await mail.chat(f"{beginning}The secret is pear.")
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens > 100
    assert other.usage.cached_tokens == 0
    assert "plum" not in other.text


async def test_an_app_cannot_call_itself_another_in_its_messages(start_daemon, through):
    async with start_daemon(), through("notes") as notes, through("mail") as mail:
        beginning = "Notes of the meeting. " * 40
        await notes.chat(beginning)
        request = replace(mail.build(beginning), app="notes")
        assert (await mail.collect(request)).usage.cached_tokens == 0


async def test_without_a_ticket_the_grpc_socket_is_shut(start_daemon, settings):
    async with start_daemon() as running:
        beside = Path(running.ready.socket).with_name("overspill-grpc.sock")
        assert stat.S_IMODE(beside.stat().st_mode) == 0o600
        client = DaemonClient(f"unix:{beside}", token="guessed")
        try:
            with pytest.raises(ConnectFailed, match="ticket"):
                await client.models()
            with pytest.raises(ConnectFailed, match="ticket"):
                _ = [piece async for piece in client.run(Request((Message("user", "x"),)))]
        finally:
            await client.aclose()


@pytest.mark.parametrize(
    ("side", "who"),
    [(Side("9.0", 9, 9), "daemon"), (Side("0.0.1", 0, 0), "SDK")],
)
async def test_the_handshake_says_which_side_to_upgrade(start_daemon, side, who):
    async with start_daemon() as running:
        hello = Hello("notes", side)
        with pytest.raises(VersionMismatch, match=f"the {who} is too old"):
            await anyio.to_thread.run_sync(
                lambda: greet(Path(running.ready.socket), hello, timeout_s=5)
            )


async def test_another_users_socket_is_told_nothing(tmp_path, monkeypatch):
    path = tmp_path / "overspill.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        if path.stat().st_uid == 0:
            os.chown(path, 1, 1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        with pytest.raises(DaemonRefused, match="another user"):
            greet(path, Hello("notes"), timeout_s=5)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("app", ["", "x" * 65, "two\nlines"])
async def test_an_apps_name_is_checked(start_daemon, app):
    async with start_daemon() as running:
        with pytest.raises(DaemonRefused, match="name"):
            await anyio.to_thread.run_sync(
                lambda: greet(Path(running.ready.socket), Hello(app), timeout_s=5)
            )


async def test_a_ticket_of_a_revoked_token_is_refused(start_daemon):
    async with start_daemon() as running:
        token, record = running.tokens.issue("notes", (Scope.INFER,))
        async with running.http(Authorization=f"Bearer {token}") as http:
            answer = await http.post("/overspill/v1/local", json={"app": "other", "side": {}})
        told = answer.json()
        assert told["app"] == "notes"
        client = DaemonClient(f"unix:{told['socket']}", token=told["ticket"])
        try:
            assert await client.models()
            with pytest.raises(DaemonRefused, match="scope 'models'"):
                await client.pull("brook", None)
            running.tokens.revoke(record.id)
            with pytest.raises(ConnectFailed, match="ticket"):
                await client.models()
        finally:
            await client.aclose()


async def test_tools_schema_images_and_privacy_go_through(start_daemon, through):
    async with start_daemon() as running, through() as ai:
        reply = await ai.chat("hi", output={"type": "object", "properties": {"n": {"const": 1}}})
        assert isinstance(reply.output, dict)
        called = await ai.chat(
            "hi", tools=[{"name": "f", "parameters": {"type": "object"}}], tool_choice="required"
        )
        assert called.tool_calls[0].name == "f"
        with pytest.raises(InvalidRequest, match="cannot read images"):
            await ai.chat([{"role": "user", "content": [PICTURE]}])
        assert (await ai.chat("hi", privacy="device")).route.bytes_sent == 0
        async with running.http() as http:
            assert (await http.get("/overspill/v1/status")).json()["active"] == 0


async def test_embeddings_go_through(start_daemon, through):
    async with start_daemon(), through() as ai:
        reply = await ai.embed(["one", "two"])
    assert len(reply.vectors) == 2


async def test_what_only_the_cloud_side_can_do_says_so(start_daemon, through):
    async with start_daemon(), through() as ai:
        with pytest.raises(UsageError, match="overspill cloud"):
            await ai.enroll("code")


async def test_a_stop_lets_a_running_answer_end_and_takes_no_new_one(
    start_daemon, through, eventually
):
    async with start_daemon() as running, through() as ai:
        running.backend.hold(after_steps=5)
        said = []

        async def ask():
            said.append((await ai.chat("y" * 50)).text)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await eventually(lambda: running.backend.steps >= 5)
            running.daemon.stop()
            with pytest.raises((BusyError, ConnectFailed)):
                await ai.chat("another")
            running.backend.release()
    assert said == ["echo: " + "y" * 50]


async def test_the_end_of_a_drain_tells_apps_so(start_daemon, through, eventually):
    async with start_daemon(drain_s=0) as running, through() as ai:
        running.backend.hold(after_steps=20)

        async def read():
            async for piece in ai.stream("x" * 3000):
                assert piece.text
                await eventually(lambda: running.backend.steps >= 20)
                running.daemon.stop()

        with pytest.raises(BusyError, match="shutting down") as caught:
            await read()
        assert caught.value.partial.startswith("echo: x")


async def test_other_clients_reach_the_same_models(start_daemon, through, settings):
    async with start_daemon(), through() as ai:
        access = await ai.openai()
        async with openai.AsyncOpenAI(**access.async_options()) as other:
            answer = await other.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "hi"}]
            )
    assert answer.choices[0].message.content == "echo: hi"


@pytest.mark.parametrize("tcp", [False, True])
async def test_without_a_daemon_an_app_serves_other_clients_itself(settings, tcp):
    async with AsyncOverspill("My notes", settings=settings, daemon="never") as ai:
        access = await ai.openai(tcp=tcp)
        assert await ai.openai(tcp=tcp) is access
        async with openai.AsyncOpenAI(**access.async_options()) as other:
            answer = await other.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "hi"}]
            )
        assert (await ai.chat("x")).text == "echo: x"
    assert answer.choices[0].message.content == "echo: hi"
    assert user_tokens(settings.places).records() == ()


def test_the_blocking_client_gives_access_too(settings):
    with (
        Overspill("t", settings=settings, daemon="never") as ai,
        openai.OpenAI(**ai.openai().options()) as other,
    ):
        answer = other.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "hi"}]
        )
    assert answer.choices[0].message.content == "echo: hi"
