"""Who comes in: host, origin, token, scope, on both transports."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from overspill_edge.tokens import Scope

pytestmark = pytest.mark.anyio

BODY = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def mode(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def open_to_everybody(socket: Path) -> None:
    socket.chmod(0o666)
    for folder in (socket.parent, socket.parent.parent):
        folder.chmod(0o755)


async def test_the_socket_is_0600_in_a_folder_of_0700(start_daemon):
    async with start_daemon() as running:
        path = Path(running.ready.socket)
        assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert mode(path) is None


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "0.0.0.0", ""]
)
async def test_a_foreign_host_is_refused_on_every_bind(start_daemon, tcp, host):
    async with start_daemon() as running:
        headers = {**bearer(running.token()), "Host": host}
        async with running.http(tcp=tcp) as http:
            answer = await http.post(CHAT, json=BODY, headers=headers)
        assert running.backend.steps == 0
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:1"])
async def test_names_of_this_machine_are_served_on_any_port(start_daemon, host):
    async with start_daemon() as running, running.http() as http:
        assert (await http.get("/v1/models", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://localhost:3000", ""])
async def test_an_unlisted_origin_is_refused_even_with_a_token(start_daemon, tcp, origin):
    async with start_daemon(origins=("https://app.example",)) as running:
        headers = {**bearer(running.token()), "Origin": origin}
        async with running.http(tcp=tcp) as http:
            answer = await http.post(CHAT, json=BODY, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_what_a_browser_calls_another_site_is_refused(start_daemon, site):
    async with start_daemon() as running, running.http() as http:
        answer = await http.get("/v1/models", headers={"Sec-Fetch-Site": site})
    assert answer.json()["error"]["code"] == "cross_site"


async def test_a_listed_origin_is_answered_by_name_and_never_by_a_wildcard(start_daemon):
    origin = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    started = start_daemon(origins=("https://app.example",))
    async with started as running, running.http(tcp=True) as http:
        preflight = await http.options(
            CHAT, headers={**origin, "Access-Control-Request-Method": "POST"}
        )
        token = bearer(running.token())
        answer = await http.post(CHAT, json=BODY, headers={**origin, **token})
        wrong = await http.post(CHAT, json={}, headers={**origin, **token})
        without = await http.post(CHAT, json=BODY, headers=origin)
    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    for response in (preflight, answer, wrong):
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in response.headers
        assert "Origin" in response.headers["vary"]
    assert (answer.status_code, wrong.status_code, without.status_code) == (200, 400, 401)


async def test_tcp_without_a_valid_token_is_401(start_daemon):
    async with start_daemon() as running, running.http(tcp=True) as http:
        token = running.token()
        wrong = (
            {},
            bearer("none"),
            bearer(token + "x"),
            bearer(token[:-1]),
            bearer("ovs_000000000000_x"),
            {"Authorization": f"Basic {token}"},
            {"Authorization": token},
        )
        answers = [await http.post(CHAT, json=BODY, headers=headers) for headers in wrong]
        assert (await http.post(CHAT, json=BODY, headers=bearer(token))).status_code == 200
    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_a_token_of_ours_must_be_valid_on_the_unix_socket_too(start_daemon):
    async with start_daemon() as running, running.http() as http:
        assert (await http.get("/v1/models", headers=bearer("sk-any"))).status_code == 200
        refused = await http.get("/v1/models", headers=bearer("ovs_000000000000_x"))
    assert refused.status_code == 401


@pytest.mark.parametrize(
    ("scopes", "path", "status"),
    [
        ((Scope.MODELS,), CHAT, 403),
        ((Scope.ADMIN,), CHAT, 403),
        ((Scope.INFER,), CHAT, 200),
        ((Scope.ADMIN,), "/v1/models", 403),
        ((Scope.MODELS,), "/v1/models", 200),
        ((Scope.INFER,), "/v1/models", 200),
        ((Scope.MODELS,), "/overspill/v1/plan", 403),
        ((Scope.ADMIN,), "/overspill/v1/status", 200),
    ],
)
@pytest.mark.parametrize("tcp", [False, True])
async def test_a_token_does_what_its_scopes_say(start_daemon, scopes, path, status, tcp):
    async with start_daemon() as running, running.http(tcp=tcp) as http:
        method = "GET" if path in ("/v1/models", "/overspill/v1/status") else "POST"
        answer = await http.request(
            method,
            path,
            json=BODY if method == "POST" else None,
            headers=bearer(running.token(scopes)),
        )
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "insufficient_scope"


@pytest.mark.parametrize("name", ["token", "access_token", "API_KEY", "key", "anything"])
@pytest.mark.parametrize("tcp", [False, True])
async def test_a_token_in_the_url_is_refused_even_beside_a_good_header(start_daemon, tcp, name):
    async with start_daemon() as running, running.http(tcp=tcp) as http:
        token = running.token()
        path = f"/v1/models?{name}={token}"
        answer = await http.get(path, headers=bearer(token))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "token_in_query"
    assert token not in answer.text


async def test_tokens_are_seen_and_refused_at_once(start_daemon, eventually):
    async with start_daemon() as running, running.http(tcp=True) as http:
        token, record = running.tokens.issue("notes", (Scope.INFER,))
        short, _ = running.tokens.issue("soon", (Scope.INFER,), 1)
        assert (await http.get("/v1/models", headers=bearer(token))).status_code == 200
        running.tokens.revoke(record.id)
        assert (await http.get("/v1/models", headers=bearer(token))).status_code == 401
        # The daemon's store and this one are two readers of one file and one clock.

        async def ended() -> bool:
            return (await http.get("/v1/models", headers=bearer(short))).status_code == 401

        await eventually(ended)


async def test_an_unreadable_token_file_shuts_the_door_and_names_no_path(start_daemon):
    async with start_daemon() as running, running.http(tcp=True) as http:
        token = running.token()
        running.tokens.path.write_text("{")
        answer = await http.get("/v1/models", headers=bearer(token))
    assert answer.status_code == 500
    assert str(running.tokens.path) not in answer.text


@pytest.mark.skipif(sys.platform != "linux", reason="names itself as Linux lets it")
async def test_an_app_is_what_it_was_when_its_connection_first_asked(start_daemon):
    probe = (
        "import http.client, pathlib, socket, sys\n"
        "def ask(c):\n"
        "    c.request('POST', '/v1/chat/completions', sys.argv[2],\n"
        "              {'Host': 'localhost', 'Content-Type': 'application/json'})\n"
        "    assert c.getresponse().read()\n"
        "def connect():\n"
        "    c = http.client.HTTPConnection('localhost')\n"
        "    c.sock = socket.socket(socket.AF_UNIX); c.sock.connect(sys.argv[1]); return c\n"
        "name = pathlib.Path('/proc/self/comm')\n"
        "name.write_text('first'); kept = connect(); ask(kept)\n"
        "name.write_text('second'); ask(kept); ask(connect())\n"
    )
    body = '{"model": "echo", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}'
    async with start_daemon() as running:
        command = [sys.executable, "-c", probe, running.ready.socket, body]
        await anyio.run_process(command)
        apps = [event.app for event in running.daemon._journal.last]
    assert apps == ["first", "first", "second"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to be another user")
async def test_another_user_is_dropped_unread_even_where_the_socket_lets_them(start_daemon):
    probe = (
        "import os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])\n"
        "try:\n"
        "    s.sendall(b'GET /v1/models HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n')\n"
        "    print(len(s.recv(100)))\n"
        "except (ConnectionError, BrokenPipeError): print(0)\n"
    )
    async with start_daemon() as running:
        path = Path(running.ready.socket)
        open_to_everybody(path)
        process = await anyio.run_process(
            [sys.executable, "-c", probe, str(path)], stderr=subprocess.STDOUT
        )
    assert process.stdout.decode().strip() == "0"
