"""Images at the daemon: read, never fetched, and refused by the name of who cannot see them."""

from __future__ import annotations

import base64

import pytest

pytestmark = pytest.mark.anyio

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()


@pytest.mark.parametrize(
    ("part", "param", "words"),
    [
        ({"type": "image_url", "image_url": {"url": PNG}}, "messages", "echo cannot"),
        (
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            "messages[0].content",
            "nothing is fetched",
        ),
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            "messages[0].content",
            "no known type",
        ),
    ],
)
async def test_a_picture_is_refused_before_any_token(start_daemon, part, param, words):
    content = [{"type": "text", "text": "What is this?"}, part]
    async with start_daemon() as running, running.http() as http:
        answer = await http.post(
            "/v1/chat/completions",
            json={"model": "auto", "messages": [{"role": "user", "content": content}]},
        )
        assert running.backend.steps == 0
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_option")
    assert error["param"] == param
    assert words in error["message"]
