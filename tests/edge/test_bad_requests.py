"""What bad input gets: a status, the parameter's name, no content and nothing of the inside."""

from __future__ import annotations

import json
import math

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overspill.errors import InvalidRequest
from overspill_edge.body import read_document
from overspill_edge.openai_dialect import ChatCompletionRequest, parse_chat
from overspill_edge.work import HttpLimits

CHAT = "/v1/chat/completions"
HELLO = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "f"}}


def body(**options):
    return {"model": "echo", "messages": [HELLO], **options}


REFUSED = [
    ({"messages": [HELLO]}, "model"),
    ({"model": "echo"}, "messages"),
    (body(messages=[]), "messages"),
    (body(messages="hello"), "messages"),
    (body(model=7), "model"),
    (body(messages=[{"role": "wizard", "content": "x"}]), "messages[0].role"),
    (body(messages=[HELLO, {"role": "user"}]), "messages[1].content"),
    (body(messages=[{"role": "user", "content": None}]), "messages[0].content"),
    (body(messages=[{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
    (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        "messages[0].content",
    ),
    (body(messages=[{"role": "function", "name": "f", "content": "x"}]), "messages[0].role"),
    (body(n=2), "n"),
    (body(n=1.0), "n"),
    (body(store=True), "store"),
    (body(audio={"voice": "x"}), "audio"),
    (body(modalities=["text", "audio"]), "modalities"),
    (body(functions=[]), "functions"),
    (body(prediction={"type": "text", "content": "x"}), "prediction.type"),
    (
        body(prediction={"type": "content", "content": [{"type": "image_url"}]}),
        "prediction.content",
    ),
    (body(prediction="x"), "prediction"),
    (body(overspill={"adapter": ""}), "overspill.adapter"),
    (body(reasoning_effort="high"), "reasoning_effort"),
    (body(web_search_options={}), "web_search_options"),
    (body(parallel_tool_calls="no"), "parallel_tool_calls"),
    (body(overspill={"grammar": {"syntax": "bnf", "text": "x"}}), "overspill.grammar.syntax"),
    (body(service_tier="flex"), "service_tier"),
    (body(temprature=1), "temprature"),
    (body(temperature=2.1), "temperature"),
    (body(temperature="1"), "temperature"),
    (body(top_p=0), "top_p"),
    (body(max_tokens=0), "max_tokens"),
    (body(max_tokens=True), "max_tokens"),
    (body(max_tokens=1, max_completion_tokens=2), "max_tokens"),
    (body(seed=2**63), "seed"),
    (body(stop=["a"] * 5), "stop"),
    (body(stop=""), "stop"),
    (body(stop=["a", ""]), "stop[1]"),
    (body(logit_bias={"a": 1}), "logit_bias.a"),
    (body(logit_bias={"1": 101}), "logit_bias.1"),
    (body(top_logprobs=2), "top_logprobs"),
    (body(logprobs=True, top_logprobs=21), "top_logprobs"),
    (body(response_format={"type": "xml"}), "response_format.type"),
    (body(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (body(stream_options={"include_usage": True}), "stream_options"),
    (body(stream=True, stream_options={"include": True}), "stream_options.include"),
    (body(tools=[TOOL, TOOL]), "tools"),
    (body(tools=[{"type": "custom", "custom": {}}]), "tools[0].type"),
    (body(tool_choice="required"), "tools"),
    (body(tools=[TOOL], tool_choice="sometimes"), "tool_choice"),
    (
        body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}),
        "tool_choice",
    ),
    (body(overspill={"privacy": "public"}), "overspill.privacy"),
    (body(overspill={"deadline_s": 0}), "overspill.deadline_s"),
    (body(overspill={"secret": 1}), "overspill.secret"),
    (body(overspill={"top_k": 2**40}), "overspill.top_k"),
]


@pytest.mark.parametrize(("document", "param"), REFUSED, ids=lambda v: v if type(v) is str else "")
def test_a_wrong_parameter_is_refused_by_name(document, param):
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(json.dumps(document).encode())
    assert caught.value.param == param
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "n": 1},
        {"service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "y"},
        {"parallel_tool_calls": True, "modalities": ["text"]},
        {"n": None, "tools": None, "stop": None, "response_format": None, "audio": None},
        {"max_tokens": 3, "max_completion_tokens": 3},
    ],
)
def test_harmless_parameters_are_passed_over(options):
    assert parse_chat(json.dumps(body(**options)).encode()).model == "echo"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"model": "echo", "messages": [], "metadata": {"a": 1e999}}',
        b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
        b'{"model": "echo", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
    ids=range(11),
)
def test_what_is_not_a_json_object_is_refused(raw):
    with pytest.raises(InvalidRequest):
        parse_chat(raw)


@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"-?[1-9][0-9]{0,320}(\.[0-9]{1,4})?([eE][+-]?[0-9]{1,5})?", fullmatch=True))
def test_no_number_that_is_read_is_infinite(number):
    try:
        read = read_document(b'{"a": [' + number.encode() + b"]}")["a"][0]
    except InvalidRequest:
        assert math.isinf(float(number))
    else:
        assert isinstance(read, int) or math.isfinite(read)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_names = st.sampled_from(
    [*sorted(ChatCompletionRequest.model_fields), "n", "metadata", "audio", "x"]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_names, _json))
def test_any_json_is_a_request_or_a_refusal_that_names_a_parameter(options):
    try:
        named = parse_chat(json.dumps({**body(), **options}).encode()).model
    except InvalidRequest as error:
        named = error.param
    assert named


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(raw):
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(raw)
    assert "\n" not in str(caught.value)


SECRET = "the-users-own-words"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/other", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/echo", 405, "method_not_allowed"),
        ("GET", "/v1/models/../../etc/passwd", 404, None),
    ],
)
async def test_another_path_or_method_is_told_in_the_same_shape(
    start_daemon, method, path, status, code
):
    async with start_daemon() as running, running.http() as http:
        answer = await http.request(method, path)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert code is None or error["code"] == code
    assert {"message", "type", "param", "code"} <= error.keys()
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.anyio
async def test_a_body_that_is_not_marked_as_json_is_415(start_daemon):
    async with start_daemon() as running, running.http() as http:
        raw = json.dumps(body())
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            answer = await http.post(CHAT, content=raw, headers={"Content-Type": kind})
            assert answer.status_code == 415
        assert (await http.post(CHAT, content=raw)).status_code == 415
        assert running.backend.steps == 0


@pytest.mark.anyio
@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_hundred_megabytes_are_413_and_the_daemon_goes_on(start_daemon, tcp, chunked):
    block = b" " * 1_000_000

    async def blocks():
        for _ in range(100):
            yield block

    async with start_daemon() as running, running.http(tcp=tcp) as http:
        headers = {"Authorization": f"Bearer {running.token()}", "Content-Type": "application/json"}
        content = blocks() if chunked else block * 100
        answer = await http.post(CHAT, content=content, headers=headers, timeout=60)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
        after = await http.post(CHAT, json=body(), headers=headers)
        assert after.status_code == 200


@pytest.mark.anyio
async def test_a_body_that_never_comes_is_408(start_daemon):
    async def stalled():
        yield b"{"
        await anyio.sleep(2)

    started = start_daemon(limits=HttpLimits(body_timeout_s=0.1))
    async with started as running, running.http() as http:
        answer = await http.post(
            CHAT, content=stalled(), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 408


@pytest.mark.anyio
async def test_nothing_of_what_is_said_is_logged_or_told_back(start_daemon, caplog):
    """The daemon logs nothing of what is said."""
    caplog.set_level("DEBUG")
    async with start_daemon() as running, running.http() as http:
        good = body(messages=[{"role": "user", "content": SECRET}])
        assert (await http.post(CHAT, json=good)).status_code == 200
        assert (await http.post(CHAT, json={**good, "stream": True})).status_code == 200
        bad = (
            {**good, "temperature": SECRET},
            {**good, "messages": [{"role": "user", "content": {"deep": SECRET}}]},
            {**good, "stop": {"x": SECRET}},
        )
        for document in bad:
            answer = await http.post(CHAT, json=document)
            assert answer.status_code == 400
            assert SECRET not in answer.text
        await http.get(f"/v1/{SECRET}?q={SECRET}")
    ours = [r for r in caplog.records if r.name.startswith(("overspill", "uvicorn", "asyncio"))]
    assert ours
    assert not [r for r in ours if SECRET in r.getMessage() or SECRET in str(r.exc_text)]


RAW = json.dumps(body(max_tokens=2)).encode()
HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode(),
    f"Content-Length: {len(RAW)}\r\n\r\n".encode() + RAW,
)


async def all_of(stream, until=b""):
    """What the daemon says until it says ``until``, or ends."""
    said = b""
    with anyio.fail_after(20):
        while until not in said or not until:
            try:
                said += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                break
    return said


async def pour(stream, block):
    """Send until nobody takes it any more."""
    try:
        for _ in range(1000):
            await stream.send(block)
    except anyio.BrokenResourceError:
        return True
    return False


@pytest.mark.anyio
@pytest.mark.parametrize(
    "begun",
    [
        b"GET /" + b"x" * 1000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ",
        HEAD[0] + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Trailer: ",
        HEAD[0] + b"Transfer-Encoding: chunked\r\n\r\n1;extension=",
    ],
    ids=["target", "header", "trailer", "chunk extension"],
)
async def test_a_head_or_trailer_without_an_end_is_cut_off(start_daemon, begun):
    async with start_daemon() as running:
        async with await anyio.connect_unix(running.ready.socket) as stream:
            await stream.send(begun)
            with anyio.fail_after(20):
                assert await pour(stream, b"y" * 65_536)
        async with running.http() as http:
            assert (await http.post(CHAT, json=body(max_tokens=2))).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        HEAD[0] + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        HEAD[0] + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        HEAD[0] + b"Content-Length: -1\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=range(7),
)
async def test_what_is_no_http_is_400_and_the_connection_ends(start_daemon, raw, caplog):
    async with start_daemon() as running, await anyio.connect_unix(running.ready.socket) as stream:
        await stream.send(raw)
        said = await all_of(stream)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in caplog.text


@pytest.mark.anyio
async def test_a_trailer_is_no_header(start_daemon):
    async with start_daemon() as running, await anyio.connect_unix(running.ready.socket) as stream:
        chunk = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(RAW), RAW)
        await stream.send(HEAD[0] + chunk + b"Origin: https://evil.example\r\n\r\n")
        assert (await all_of(stream, b"}]")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.anyio
async def test_who_would_rather_speak_http2_is_answered_all_the_same(start_daemon):
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    async with start_daemon() as running, await anyio.connect_unix(running.ready.socket) as stream:
        for head in (HEAD[0] + wish, HEAD[0]):
            await stream.send(head + HEAD[1])
            said = await all_of(stream, b'"usage"')
            assert said.startswith(b"HTTP/1.1 200 ")
            while not said.endswith(b"}"):
                said += await stream.receive()


@pytest.mark.anyio
async def test_requests_that_come_together_are_answered_in_turn(start_daemon):
    async with start_daemon() as running, await anyio.connect_unix(running.ready.socket) as stream:
        await stream.send((HEAD[0] + HEAD[1]) * 2 + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        said = await all_of(stream, b"host_not_allowed")
    assert said.count(b"HTTP/1.1 200 ") == 2
    assert said.count(b"HTTP/1.1 403 ") == 1
