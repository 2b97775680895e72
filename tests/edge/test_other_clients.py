"""Other people's clients and a validator, against a daemon in a process of its own over TCP.

With echo, whose answers are known, and with brook, a model that generates.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import anthropic
import openai
import pytest
from pydantic import BaseModel, ConfigDict

HERE = Path(__file__).parent
HELLO = [{"role": "user", "content": "hello"}]
PARAMETERS = {
    "type": "object",
    "properties": {"place": {"enum": ["Oslo", "Rome"]}},
    "required": ["place"],
    "additionalProperties": False,
}


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    yes: bool


@dataclass(frozen=True)
class Target:
    """A daemon and how to reach it."""

    base: str
    token: str
    model: str

    @property
    def says(self) -> str | None:
        """What it answers to hello; None where nobody knows."""
        return "echo: hello" if self.model == "echo" else None

    def openai(self):
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key=self.token, max_retries=0)

    def anthropic(self):
        return anthropic.Anthropic(base_url=self.base, api_key=self.token, max_retries=0)


@pytest.fixture(scope="module", params=["echo", "brook"])
def target(request, command_in):
    home = Path(tempfile.mkdtemp(prefix="ovs"))
    command = command_in(home)
    with command.serving("--model", request.param, "--tcp", "127.0.0.1:0") as (_, ready):
        made = command.run("token", "new", "--app", "clients", "--scope", "infer", "--json")
        token = json.loads(made.stdout)["token"]
        yield Target(f"http://{ready['tcp']}", token, request.param)
    shutil.rmtree(home)


def check(target, text):
    assert text if target.says is None else text == target.says


def test_openai_chats(target):
    with target.openai() as ai:
        whole = ai.chat.completions.create(model=target.model, messages=HELLO, max_tokens=16)
        check(target, whole.choices[0].message.content)
        with ai.chat.completions.stream(
            model=target.model, messages=HELLO, max_tokens=16
        ) as stream:
            said = stream.get_final_completion().choices[0].message.content
        assert said == whole.choices[0].message.content
        parsed = ai.chat.completions.parse(
            model=target.model, messages=HELLO, response_format=Answer
        )
        assert isinstance(parsed.choices[0].message.parsed, Answer)
        assert target.model in [model.id for model in ai.models.list()]


def test_openai_responds(target):
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    with target.openai() as ai:
        whole = ai.responses.create(model=target.model, input="hello", max_output_tokens=16)
        check(target, whole.output_text)
        with ai.responses.stream(model=target.model, input="hello", max_output_tokens=16) as stream:
            deltas = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            assert deltas == stream.get_final_response().output_text == whole.output_text
        parsed = ai.responses.parse(model=target.model, input="hello", text_format=Answer)
        assert isinstance(parsed.output_parsed, Answer)
        called = ai.responses.create(
            model=target.model, input="hello", tools=[tool], tool_choice="required"
        )
        (call,) = [item for item in called.output if item.type == "function_call"]
        assert json.loads(call.arguments)["place"] in ("Oslo", "Rome")
        history = [{"role": "user", "content": "hello"}, *called.output]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        after = ai.responses.create(
            model=target.model, input=[*history, result], tools=[tool], max_output_tokens=16
        )
        assert after.output
        with pytest.raises(openai.BadRequestError) as caught:
            ai.responses.create(model=target.model, input="x", previous_response_id=whole.id)
        assert caught.value.param == "previous_response_id"


def test_openai_completes(target):
    with target.openai() as ai:
        whole = ai.completions.create(model=target.model, prompt="Once upon", max_tokens=12)
        stream = ai.completions.create(
            model=target.model, prompt="Once upon", max_tokens=12, stream=True
        )
        assert "".join(c.choices[0].text for c in stream) == whole.choices[0].text


def test_anthropic_messages(target):
    tool = {"name": "weather", "input_schema": PARAMETERS}
    ask = {"model": target.model, "max_tokens": 16, "messages": HELLO}
    with target.anthropic() as ai:
        whole = ai.messages.create(**ask)
        check(target, whole.content[0].text)
        with ai.messages.stream(**ask) as stream:
            said = "".join(stream.text_stream)
            assert stream.get_final_message().content[0].text == said
        assert said == whole.content[0].text
        ask["max_tokens"] = 100
        with ai.messages.stream(**ask, tools=[tool], tool_choice={"type": "any"}) as stream:
            called = stream.get_final_message()
        assert called.stop_reason == "tool_use"
        (call,) = [block for block in called.content if block.type == "tool_use"]
        assert call.input["place"] in ("Oslo", "Rome")
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
        turns = [
            *HELLO,
            {"role": "assistant", "content": called.content},
            {"role": "user", "content": [result]},
        ]
        ai.messages.create(**{**ask, "messages": turns}, tools=[tool])
        assert ai.messages.count_tokens(model=target.model, messages=HELLO).input_tokens > 0
        assert target.model in [model.id for model in ai.models.list()]
        with pytest.raises(anthropic.NotFoundError):
            ai.messages.create(**{**ask, "model": "nobody"})


def run_llm(target, folder, *arguments):
    model = {
        "model_id": "ours",
        "model_name": target.model,
        "api_base": f"{target.base}/v1",
        "api_key_name": "ours",
        "supports_schema": True,
        "supports_tools": True,
    }
    (folder / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    (folder / "keys.json").write_text(json.dumps({"ours": target.token}))
    result = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "ours", *arguments],
        env={**os.environ, "LLM_USER_PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_simonws_llm(target, tmp_path):
    streamed = run_llm(target, tmp_path, "hello", "-o", "max_tokens", "16")
    whole = run_llm(target, tmp_path, "hello", "--no-stream", "-o", "max_tokens", "16")
    assert streamed == whole
    check(target, whole)
    held = run_llm(target, tmp_path, "hello", "--schema", "yes bool")
    assert type(json.loads(held)["yes"]) is bool
    if target.model == "echo":
        told = run_llm(target, tmp_path, "call llm_version {}", "-T", "llm_version")
        assert told.startswith("echo: 0.")


@pytest.fixture(scope="module")
def node_clients():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "overspill" / "node"
    if shutil.which("node") is None or not (folder / "node_modules" / "openai").is_dir():
        pytest.skip(f"clients for Node are not installed in {folder}")
    return folder


def test_clients_for_node(target, node_clients):
    result = subprocess.run(
        ["node", "--input-type=module", "-", target.base, target.token, target.model],
        input=(HERE / "clients.mjs").read_text(),
        cwd=node_clients,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    check(target, found["chat"])
    assert found["chat"] == found["streamed"]
    assert found["route"] == "device"
    assert found["call"]["place"] in ("Oslo", "Rome")
    assert json.loads(found["response"])["place"] in ("Oslo", "Rome")
    assert found["deltas"] == found["response"]
    check(target, found["said"])
    assert found["said"] == found["message"]
    assert found["count"] > 0
    assert found["error"] == [404, "model_not_found"]


FORMATS = {
    "openai-chat": ([], "chat-image-input", {"chat-reasoning-summary"}),
    "open-responses": ([], "image-input", {"reasoning-summary"}),
    "anthropic": (
        ["--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01"],
        "anth-image-input",
        {"anth-thinking-display"},
    ),
}


@pytest.mark.parametrize("form", FORMATS)
def test_llm_comply(target, form):
    """All its cases but the image's, which no model without a vision part can answer, and those
    that it skips itself, being about models of certain makers."""
    options, image, skipped = FORMATS[form]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "llm_comply.cli", "--json", "--format", form, *options),
            *("-u", f"{target.base}/v1", "-k", target.token, "-m", target.model),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    outcomes = {case["id"]: case for case in json.loads(result.stdout)["results"]}
    by_status = {}
    for name, case in outcomes.items():
        by_status.setdefault(case["status"], set()).add(name)
    assert by_status.pop("skipped") == skipped
    failed = by_status.pop("failed")
    assert "HTTP 400 (expected [200])" in outcomes[image]["errors"]
    # brook is small and does not always come to an end by itself; the shape is right all the same.
    endless = failed - {image}
    assert not endless or target.model == "brook"
    for name in endless:
        (error,) = outcomes[name]["errors"]
        assert error.endswith(("got 'incomplete'", "got 'length'"))
    assert by_status.keys() == {"passed"}
    assert len(by_status["passed"]) >= 7 - len(endless)
