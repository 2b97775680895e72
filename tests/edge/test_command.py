"""`overspill serve` and `overspill token` as processes: first line, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx2
import openai
import psutil
import pytest

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")

HELLO = [{"role": "user", "content": "hello"}]


def over(path: str) -> openai.OpenAI:
    http = httpx2.Client(transport=httpx2.HTTPTransport(uds=path))
    return openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=http)


def test_serve_answers_on_both_transports_and_sigterm_exits_0(command):
    with command.serving("--tcp", "127.0.0.1:0") as (process, ready):
        assert ready["pid"] == process.pid
        assert stat.S_IMODE(os.stat(ready["socket"]).st_mode) == 0o600
        issued = command.run("token", "new", "--app", "notes", "--scope", "infer", "--json")
        token = json.loads(issued.stdout)["token"]
        tcp = openai.OpenAI(base_url=f"http://{ready['tcp']}/v1", api_key=token, max_retries=0)
        for client in (over(ready["socket"]), tcp):
            answer = client.chat.completions.create(model="echo", messages=HELLO)
            assert answer.choices[0].message.content == "echo: hello"
        revoked = command.run("token", "revoke", json.loads(issued.stdout)["id"])
        assert revoked.returncode == 0
        with pytest.raises(openai.AuthenticationError):
            tcp.models.list()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err
    assert "hello" not in err
    assert not os.path.exists(ready["socket"])


def test_sigterm_under_a_live_stream_lets_it_end(command):
    with command.serving() as (process, ready):
        stream = over(ready["socket"]).chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "z" * 500}], stream=True
        )
        chunks = iter(stream)
        next(chunks)
        process.send_signal(signal.SIGTERM)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        process.communicate(timeout=30)
    assert text == "echo: " + "z" * 500
    assert process.returncode == 0


def test_ctrl_c_exits_130_in_one_line(command):
    with command.serving() as (process, _):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_second_daemon_and_a_taken_port_are_7_in_one_line(command):
    with command.serving("--tcp", "127.0.0.1:0") as (_, ready):
        second = command.run("serve")
        taken = command.run(
            "serve", "--socket", str(command.home / "b.sock"), "--tcp", ready["tcp"]
        )
    for result in (second, taken):
        assert result.returncode == 7
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stdout == ""


def test_a_killed_daemon_is_followed_by_another_on_the_same_socket(command):
    with command.serving() as (process, ready):
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert os.path.exists(ready["socket"])
        with command.serving() as (_, again):
            assert again["socket"] == ready["socket"]
            models = [model.id for model in over(again["socket"]).models.list()]
    assert "echo" in models


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--tcp", "0.0.0.0:8080"), 2, "token and TLS"),
        (("--tcp", "nonsense"), 2, "HOST:PORT"),
        (("--model", "/nowhere/model.gguf"), 3, "/nowhere/model.gguf"),
        (("--wat",), 2, "--wat"),
        (("--privacy", "none"), 2, "privacy"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(command, arguments, code, named):
    result = command.run("serve", *arguments)
    assert result.returncode == code
    assert named in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    as_json = command.run("serve", "--json", *arguments)
    assert as_json.returncode == code
    assert set(json.loads(as_json.stdout)["error"]) >= {"code", "message", "mend"}


def test_tokens_are_made_listed_and_revoked_without_a_daemon(command):
    made = command.run(
        "token", "new", "--app", "notes", "--scope", "infer,models", "--ttl", "30d", "--json"
    )
    document = json.loads(made.stdout)
    assert list(document) == ["id", "token", "app", "scopes", "expires"]
    assert document["app"] == "notes"
    assert document["scopes"] == ["infer", "models"]
    left = datetime.fromisoformat(document["expires"]) - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)
    plain = command.run("token", "new", "--app", "mail", "--scope", "admin")
    assert plain.stdout.startswith("ovs_")
    listed = json.loads(command.run("token", "list", "--json").stdout)["tokens"]
    assert [token["app"] for token in listed] == ["notes", "mail"]
    assert listed[1]["expires"] is None
    assert document["token"] not in command.run("token", "list").stdout
    assert command.run("token", "revoke", document["id"]).returncode == 0
    again = command.run("token", "revoke", document["id"])
    assert again.returncode == 2
    assert len(again.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--app", "notes", "--scope", "everything"),
        ("--app", "not es", "--scope", "infer"),
        ("--app", "notes", "--scope", "infer", "--ttl", "soon"),
        ("--app", "notes"),
    ],
)
def test_a_wrong_token_command_is_2_in_one_line(command, arguments):
    result = command.run("token", "new", *arguments)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_verbs_load_no_server_until_they_run():
    script = (
        "import sys, typer\n"
        "from overspill_edge.cli import register\n"
        "register(typer.Typer())\n"
        "print([m for m in ('uvicorn', 'starlette', 'pydantic') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == "[]", out.stderr


def test_ctrl_c_in_a_terminal_reaches_the_engines_process_too_and_leaves_nothing(command):
    # A terminal signals the whole process group: the daemon and the worker of its engine.
    (command.home / "config" / "config.toml").write_text("isolate = true\n")
    with command.serving() as (process, ready):
        answer = over(ready["socket"]).chat.completions.create(model="echo", messages=HELLO)
        assert answer.choices[0].message.content == "echo: hello"
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_serve_offers_the_adapters_that_it_was_given(command):
    with command.serving("--adapter", "poet=poet.gguf", "--draft-model", "echo") as (_, ready):
        answer = over(ready["socket"]).chat.completions.create(
            model="echo", messages=HELLO, extra_body={"overspill": {"adapter": "poet"}}
        )
    assert answer.choices[0].message.content == "echo[poet]: hello"


def test_an_adapter_without_a_file_is_a_mistake_of_usage(command):
    done = command.run("serve", "--adapter", "poet")
    assert done.returncode == 2
    assert "NAME=FILE" in done.stderr
