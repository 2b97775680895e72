"""The status page's server: who gets in, what it hands over, and what a browser is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from overspill_edge.ui import CODE_LIFE_S, Session
from overspill_edge.ui_server import serve_page

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets"),
]


@asynccontextmanager
async def page_for(daemon_socket: str | Path):
    """(base address, code) of a page that is served while the block runs."""
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_page(Path(daemon_socket), told.set_result, stop))
    try:
        base, _, code = (await told).partition("/#")
        yield base, code
    finally:
        stop.set()
        await serving


async def signed_in(http, base, code):
    answer = await http.post(f"{base}/session", json={"code": code}, headers={"Origin": base})
    assert answer.status_code == 204
    return answer


async def test_the_code_is_good_once_and_its_cookie_opens_the_overview(start_daemon):
    async with start_daemon() as running, page_for(running.ready.socket) as (base, code):
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"{base}/overview")).status_code == 401
            answer = await signed_in(http, base, code)
            cookie = answer.headers["set-cookie"].lower()
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            seen = (await http.get(f"{base}/overview")).json()
            assert seen["policy"]["floor"] == "attested"
            again = await http.post(
                f"{base}/session", json={"code": code}, headers={"Origin": base}
            )
            assert again.status_code == 403
        async with httpx2.AsyncClient() as other:
            assert (await other.get(f"{base}/overview")).status_code == 401


async def test_the_overview_tells_what_ran_and_nothing_that_was_said(start_daemon, eventually):
    async with (
        start_daemon() as running,
        page_for(running.ready.socket) as (base, code),
        running.http() as daemon,
        httpx2.AsyncClient() as http,
    ):
        await signed_in(http, base, code)

        async def first_piece() -> bool:
            seen = (await http.get(f"{base}/overview")).json()
            return any(one["pieces"] for one in seen["running"])

        running.backend.hold(after_steps=4)
        body = {"model": "auto", "messages": [{"role": "user", "content": "my secret"}]}
        asked = asyncio.create_task(daemon.post("/v1/chat/completions", json=body))
        await eventually(first_piece)
        (now,) = (await http.get(f"{base}/overview")).json()["running"]
        assert (now["route"], now["model"]) == ("device", "echo")
        running.backend.release()
        await asked
        text = (await http.get(f"{base}/overview")).text
        seen = json.loads(text)
        assert seen["running"] == []
        assert (seen["last"][0]["route"], seen["last"][0]["reason"]) == ("device", "only_route")
        assert seen["totals"]["tokens_by_route"]["device"] > 0
        assert seen["memory"]["daemon_bytes"] > 0
        assert "secret" not in text


async def test_what_the_cloud_proved_is_told_with_its_time_and_nobody_is_asked(
    start_daemon, node_at
):
    async with (
        node_at() as (settings, code),
        start_daemon(settings=settings) as running,
        running.http() as daemon,
    ):
        seen = (await daemon.get("/overspill/v1/overview")).json()
        assert seen["cloud"]["proof"] is None
        await running.client.enroll(code)
        await running.client.cloud_state()
        seen = (await daemon.get("/overspill/v1/overview")).json()
        proof = seen["cloud"]["proof"]
        assert proof["dev"] is True
        assert proof["checked_unix"] <= proof["accepted_until"]
        assert all(step["ok"] is not False for step in proof["steps"])


async def test_looking_at_the_status_asks_nobody(start_daemon, node_at):
    async with (
        node_at() as (settings, code),
        start_daemon(settings=settings) as running,
        running.http() as daemon,
    ):
        await running.client.enroll(code)
        before = (await daemon.get("/overspill/v1/status")).json()["models"]
        known = running.client.known_cloud()
        assert (known.result, known.problem) == (None, None)
        await running.client.cloud_state()
        after = (await daemon.get("/overspill/v1/status")).json()["models"]
    assert [card["name"] for card in before] == ["echo"]
    assert [card["name"] for card in after] == ["echo", "river"]


async def test_the_overview_asks_for_admin(start_daemon):
    async with start_daemon() as running:
        token = running.token()
        async with running.http(tcp=True, Authorization=f"Bearer {token}") as http:
            told = await http.get("/overspill/v1/overview")
            assert (told.status_code, told.json()["error"]["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost:1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
async def test_other_names_and_other_sites_are_refused(home, headers):
    async with page_for(home / "none.sock") as (base, code), httpx2.AsyncClient() as http:
        await signed_in(http, base, code)
        assert (await http.get(f"{base}/", headers=headers)).status_code == 403
        assert (await http.get(f"{base}/overview", headers=headers)).status_code == 403


async def test_an_order_needs_the_pages_own_origin(home):
    async with page_for(home / "none.sock") as (base, code), httpx2.AsyncClient() as http:
        await signed_in(http, base, code)
        assert (await http.post(f"{base}/unload")).status_code == 403
        gone = await http.post(f"{base}/unload", headers={"Origin": base})
        assert gone.status_code == 502
        assert "overspill serve" in gone.json()["error"]


async def test_every_answer_is_hardened_and_nothing_comes_from_elsewhere(home):
    async with page_for(home / "none.sock") as (base, _), httpx2.AsyncClient() as http:
        for path in ("/", "/page.css", "/page.js", "/overview", "/nothing"):
            answer = await http.get(base + path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in answer.headers
            assert "http://" not in answer.text
            assert "https://" not in answer.text


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"code": 1}', b"x" * 100_000, b"\xff"])
async def test_no_code_no_cookie(home, body):
    async with page_for(home / "none.sock") as (base, code), httpx2.AsyncClient() as http:
        answer = await http.post(f"{base}/session", content=body, headers={"Origin": base})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
        await signed_in(http, base, code)


def test_a_code_grows_old():
    now = [0.0]
    session = Session(clock=lambda: now[0])
    now[0] = CODE_LIFE_S
    assert session.redeem(session.code) is None
    assert not session.knows(None)


def test_the_command_prints_the_address_and_ends_on_sigterm(command):
    with command.serving() as (_, ready):
        process = subprocess.Popen(
            [sys.executable, "-m", "overspill.cli.main", "ui", "--no-browser", "--json"],
            env=command.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("}"):
                break
        url = json.loads("".join(lines))["url"]
        with httpx2.Client() as http:
            base, _, code = url.partition("/#")
            http.post(f"{base}/session", json={"code": code}, headers={"Origin": base})
            assert http.get(f"{base}/overview").json()["pid"] == ready["pid"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")


def test_without_a_daemon_it_says_so(command):
    told = command.run("ui", "--no-browser")
    assert told.returncode == 6
    assert "overspill serve" in told.stderr
    assert os.listdir(command.home / "config") == ["config.toml"]
