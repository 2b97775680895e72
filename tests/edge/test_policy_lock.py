"""The daemon under the administrator's file: in each dialect, live, and shown."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from overspill.config import AdminPlace

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX"),
]

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


async def test_the_daemon_is_under_it_with_the_next_request(start_daemon, settings, home):
    file = home / "policy.toml"
    ours = replace(settings, admin_policy=AdminPlace(file, os.getuid()))
    async with start_daemon(settings=ours) as running, running.http() as http:

        async def status() -> int:
            return (await http.post("/v1/chat/completions", json=CHAT)).status_code

        async def shown() -> dict:
            return (await http.get("/overspill/v1/policy")).json()

        assert await status() == 200
        assert (await shown())["administrator"] is None
        file.write_text('privacy = "device"\nmodels = ["other"]\n')
        refused = await http.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "refused")
        told = await shown()
        assert told["floor"] == "device"
        assert told["administrator"]["models"] == ["other"]
        anthropic = {**CHAT, "max_tokens": 5}
        assert (await http.post("/v1/messages", json=anthropic)).status_code == 403
        assert (await http.post("/v1/embeddings", json={"model": "auto", "input": "x"})).is_error
        file.chmod(0o666)
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code >= 400
        file.unlink()
        assert await status() == 200
