"""A daemon whose model reads images: OpenAI's image parts are seen, and bad ones are refused."""

from __future__ import annotations

import base64

import httpx2
import pytest

pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def files(made_gguf, made_mmproj, tmp_path_factory):
    return made_mmproj.pair(made_gguf, tmp_path_factory.mktemp("vision"))


@pytest.fixture
def daemon(command, files):
    """A daemon in a process of its own, its model in a worker, and a client for it."""
    (command.home / "config" / "config.toml").write_text("isolate = true\n")
    model, projector = files
    with command.serving("--model", str(model), "--mmproj", str(projector)) as (_, ready):
        transport = httpx2.HTTPTransport(uds=ready["socket"])
        with httpx2.Client(transport=transport, base_url="http://localhost", timeout=60) as http:
            yield http


def part(data, **more):
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, **more}}


def ask(http, *parts):
    content = [{"type": "text", "text": "What is "}, *parts, {"type": "text", "text": "this?"}]
    body = {
        "model": "auto",
        "max_tokens": 4,
        "logprobs": True,
        "messages": [{"role": "user", "content": content}],
    }
    return http.post("/v1/chat/completions", json=body)


def test_images_are_seen_and_counted(daemon, made_mmproj):
    answers = [ask(daemon), *(ask(daemon, part(made_mmproj.noise(n))) for n in (1, 1, 2))]
    assert [answer.status_code for answer in answers] == [200] * 4
    none, one, again, other = [answer.json() for answer in answers]
    first = [
        a["choices"][0]["logprobs"]["content"][0]["logprob"] for a in (none, one, again, other)
    ]
    # A prompt that is computed in other parts is rounded otherwise, by half precision.
    assert abs(first[1] - first[2]) < 5e-3
    assert abs(first[1] - first[3]) > 1e-2
    assert abs(first[1] - first[0]) > 1e-2
    assert one["usage"]["prompt_tokens"] >= none["usage"]["prompt_tokens"] + 16


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/a.png",
        "http://[fe80::1]/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:text/html,hello",
    ],
)
def test_nothing_is_fetched_or_read_and_what_was_asked_for_is_named(daemon, url):
    answer = ask(daemon, {"type": "image_url", "image_url": {"url": url}})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[0].content")
    assert "nothing is fetched" in error["message"]
    assert url[:40] in error["message"]


def test_a_bad_image_is_refused_and_the_next_is_seen(daemon, made_mmproj):
    good = made_mmproj.noise(1)
    huge = made_mmproj.png_header(1 << 16, 1 << 16)
    for bad, words in ((good[:300], "cut off"), (huge, "65536 x 65536")):
        answer = ask(daemon, part(bad))
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "messages")
        assert words in error["message"]
    assert ask(daemon, part(good)).status_code == 200


def test_a_detail_that_cannot_be_chosen_is_refused_by_name(daemon, made_mmproj):
    assert ask(daemon, part(made_mmproj.noise(1), detail="auto")).status_code == 200
    answer = ask(daemon, part(made_mmproj.noise(1), detail="low"))
    assert answer.status_code == 400
    assert "detail" in answer.json()["error"]["message"]
