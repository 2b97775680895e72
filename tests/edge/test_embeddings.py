"""`/v1/embeddings`: OpenAI's client and plain HTTP, against the daemon's own sockets."""

from __future__ import annotations

import base64
import struct

import numpy as np
import openai
import pytest

from overspill_edge.tokens import Scope

pytestmark = pytest.mark.anyio


@pytest.fixture
async def running(start_daemon):
    async with start_daemon() as daemon:
        yield daemon


async def _post(running, **body):
    async with running.http() as http:
        return await http.post("/v1/embeddings", json={"model": "auto", **body})


async def test_openais_client_gets_vectors(running):
    async with running.openai() as client:
        answer = await client.embeddings.create(model="echo", input=["one", "two", "one"])
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.model == "echo"
    assert answer.data[0].embedding == answer.data[2].embedding != answer.data[1].embedding
    assert np.linalg.norm(answer.data[0].embedding) == pytest.approx(1.0, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 9


async def test_both_encodings_say_the_same(running):
    plain = (await _post(running, input="hello")).json()
    coded = (await _post(running, input="hello", encoding_format="base64")).json()
    data = base64.b64decode(coded["data"][0]["embedding"])
    values = struct.unpack(f"<{len(data) // 4}f", data)
    assert values == pytest.approx(plain["data"][0]["embedding"])
    assert plain["object"] == "list"
    assert plain["data"][0]["object"] == "embedding"


async def test_nothing_leaves_and_that_is_told(running):
    answer = await _post(running, input="hello")
    assert answer.headers["x-overspill-route"] == "device"


async def test_ours_ride_in_an_object(running):
    raw = await _post(running, input="abc", overspill={"pooling": "last", "normalize": False})
    assert sum(raw.json()["data"][0]["embedding"]) == 1.0


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": "x", "dimensions": 32}, "dimensions", "unsupported_option"),
        ({"input": "x", "overspill": {"pooling": "none"}}, "overspill.pooling", None),
        ({"input": "x" * 5000}, "input", "context_length_exceeded"),
        ({"input": [[1, 2]]}, "input", None),
        ({"input": []}, "input", None),
        ({"input": ["ok", ""]}, "input", "invalid_request"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", None),
        ({"input": "x", "shiny": 1}, "shiny", "unsupported_option"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(running, body, param, code):
    answer = await _post(running, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert code in (None, error["code"])


async def test_another_model_is_not_there(running):
    async with running.openai() as client:
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="bge", input="x")


async def test_it_needs_the_scope_to_infer(running):
    token = running.token(scopes=(Scope.MODELS,))
    async with running.openai(token) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.embeddings.create(model="echo", input="x")
