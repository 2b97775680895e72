"""A doctor refuses what a start would refuse, in the same words, and changes nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from overspill import event_loop
from overspill.cli.demo_release import release_demo
from overspill.engines.options import EngineOptions
from overspill.engines.registry import BROOK
from overspill.errors import OverspillError
from overspill_cloud.app import NodeOptions, serve
from overspill_cloud.cli import app
from overspill_cloud.cli_serve import served_models
from overspill_cloud.machine import Machine
from overspill_cloud.ops.checks import Check, Wanted, look

ECHO = ("echo=echo",)
NOTHING_TO_REFUSE = {
    "max_streams", "quota_tokens", "quota_hours", "drain_s",
    "echo_delay_s", "stop_with_stdin",
}  # fmt: skip


def options(folder: Path, **fields: Any) -> NodeOptions:
    chosen = {"listen": f"unix:{folder}/n.sock", "state": folder / "state", **fields}
    return NodeOptions(models=(), **chosen)


def failed(checks: list[Check]) -> dict[str, str]:
    assert all(check.mend for check in checks if check.ok is False)
    return {check.detail: check.name for check in checks if check.ok is False}


def refusal_of_a_start(wanted: Wanted) -> str:
    """What `serve` says with the same options."""

    async def start() -> None:
        models = served_models(
            wanted.models, wanted.weights, wanted.adapters, wanted.projectors, wanted.prices
        )
        async with serve(replace(wanted.options, models=models), log_to=io.StringIO()):
            raise AssertionError("it serves")

    with pytest.raises(OverspillError) as refused:
        event_loop.run(start())
    return refused.value.message


def no_gguf(folder: Path) -> str:
    (folder / "m.gguf").write_bytes(b"no model, but something else")
    return f"m={folder / 'm.gguf'}"


def cut_off(folder: Path) -> str:
    (folder / "m.gguf").write_bytes(BROOK.read_bytes()[:-1000])
    return f"m={folder / 'm.gguf'}"


def no_pem(folder: Path) -> Path:
    (folder / "pem").write_bytes(b"no certificate")
    return folder / "pem"


CASES: dict[str, tuple[str, Callable[[Path], Wanted]]] = {
    "beyond loopback without TLS": (
        "listen", lambda folder: Wanted(options(folder, listen="0.0.0.0:0"), ECHO)),
    "a certificate without its key": (
        "tls", lambda folder: Wanted(options(folder, tls_certificate=no_pem(folder)), ECHO)),
    "a key without its certificate": (
        "tls", lambda folder: Wanted(options(folder, tls_key=no_pem(folder)), ECHO)),
    "a pair that is none": (
        "tls",
        lambda folder: Wanted(
            options(folder, tls_certificate=no_pem(folder), tls_key=no_pem(folder)), ECHO)),
    "metrics for everybody": (
        "metrics", lambda folder: Wanted(options(folder, metrics="0.0.0.0:9464"), ECHO)),
    "metrics nowhere": (
        "metrics",
        lambda folder: Wanted(options(folder, metrics="192.0.2.1:1", open_ports=(1,)), ECHO)),
    "an attester that is none": (
        "attester", lambda folder: Wanted(options(folder, attester="oracle"), ECHO)),
    "an operator's key that is not there": (
        "attester", lambda folder: Wanted(options(folder, attester="pinned"), ECHO)),
    "no machine for it": (
        "attester", lambda folder: Wanted(options(folder, attester="sev-snp"), ECHO)),
    "a release that is not there": (
        "release", lambda folder: Wanted(options(folder, release=folder / "r.json"), ECHO)),
    "one name twice": ("model", lambda folder: Wanted(options(folder), (*ECHO, *ECHO))),
    "an adapter of nobody": (
        "model", lambda folder: Wanted(options(folder), ECHO, adapters=("m/a=/x",))),
    "a price of nothing": (
        "model", lambda folder: Wanted(options(folder), ECHO, prices=("echo=1",))),
    "two lists of replicas": (
        "replicas",
        lambda folder: Wanted(
            options(folder, replicas=folder / "a", replicas_dns="a.example:1"), ECHO)),
    "replicas without a port": (
        "replicas", lambda folder: Wanted(options(folder, replicas_dns="a.example"), ECHO)),
    "no GGUF": ("model", lambda folder: Wanted(options(folder), (no_gguf(folder),))),
    "a GGUF cut off": ("model", lambda folder: Wanted(options(folder), (cut_off(folder),))),
    "a model as projector": (
        "model",
        lambda folder: Wanted(options(folder), (f"m={BROOK}",), projectors=(f"m={BROOK}",))),
    "a context that it was not trained for": (
        "model",
        lambda folder: Wanted(
            options(folder, engine=EngineOptions(context_tokens=1 << 20)), (f"m={BROOK}",))),
    "an upstream that is down": (
        "model", lambda folder: Wanted(options(folder), ("u=upstream:http://127.0.0.1:9#x",))),
    "an upstream of a wrong kind": (
        "model",
        lambda folder: Wanted(
            options(folder), ("u=upstream:http://127.0.0.1:9#x",), adapters=("u/a=/x",))),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_refuses_what_a_start_does_in_the_same_words(case: str, tmp_path: Path) -> None:
    name, wanted = CASES[case]
    found = failed(look(wanted(tmp_path)))
    assert found.get(refusal_of_a_start(wanted(tmp_path))) == name, found


def test_an_adapter_that_is_none_is_seen_before_a_model_is_loaded(tmp_path: Path) -> None:
    wanted = Wanted(options(tmp_path), (f"m={BROOK}",), adapters=(f"m/a={BROOK}",))
    (said,) = failed(look(wanted))
    assert "is no adapter" in said


def test_a_runtime_that_is_not_installed_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overspill.engines.registry.find_spec", lambda module: None)
    (said,) = failed(look(Wanted(options(tmp_path), (f"m={BROOK}",))))
    assert "llama" in said


def test_a_model_that_is_whole_tells_the_context_that_it_gets(tmp_path: Path) -> None:
    checks = look(Wanted(options(tmp_path), (f"m={BROOK}",)))
    assert not failed(checks)
    (model,) = (check.detail for check in checks if check.name == "model")
    assert "fits with a context of" in model


def test_a_model_larger_than_the_memory_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overspill.engines.gguf_fit.available_memory", lambda: 1 << 20)
    (said,) = failed(look(Wanted(options(tmp_path), (f"m={BROOK}",))))
    assert "m" in said
    assert "MiB" in said or "GiB" in said


def test_on_hardware_the_machine_has_to_be_closed_and_every_weight_named(tmp_path: Path) -> None:
    open_machine = Machine(tmp_path / "root")
    closed: list[str] = []

    class Opened:
        def close(self) -> None:
            closed.append("closed")

    def opened(kind: str, state: Path) -> Any:
        return Opened()

    wanted = Wanted(options(tmp_path, attester="sev-snp"), ("u=upstream:http://127.0.0.1:9#x",))
    names = {check.name: check for check in look(wanted, machine=open_machine, attesters=opened)}
    assert names["attester"].ok
    assert closed == ["closed"]
    assert names["closed"].ok is False
    assert "swap" in names["closed"].detail
    assert names["weights"].ok is False
    assert "--weights u=PATH" in names["weights"].mend
    for kind in ("dev", "pinned"):
        there = look(Wanted(options(tmp_path, attester=kind), ECHO), machine=open_machine)
        assert not {"closed", "weights"} & {check.name for check in there}


@pytest.mark.parametrize("changed", [False, True])
def test_a_release_has_to_list_what_the_node_would_measure(tmp_path: Path, changed: bool) -> None:
    model = tmp_path / "river.gguf"
    model.write_bytes(BROOK.read_bytes())
    (tmp_path / "release").mkdir()
    release = release_demo(tmp_path / "release", "river", model, "dev").file
    if changed:
        model.write_bytes(model.read_bytes() + bytes(32))
    wanted = Wanted(options(tmp_path, release=release), (f"river={model}",))
    assert set(failed(look(wanted)).values()) == ({"release"} if changed else set())


def test_a_software_tpm_that_is_not_installed_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tpm2_pytss", reason="pip install 'overspill[dev]'")
    from overspill_cloud.attester import swtpm

    monkeypatch.setattr(swtpm.shutil, "which", lambda name: None)
    (said,) = failed(look(Wanted(options(tmp_path, attester="tpm"), ECHO)))
    assert said == "swtpm is not installed."


def test_nothing_is_made(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for kind in ("auto", "dev", "tpm"):
        look(Wanted(options(tmp_path, attester=kind, metrics="127.0.0.1:0"), ECHO))
    assert sorted(tmp_path.rglob("*")) == before


def test_every_option_that_can_be_refused_is_a_doctors_too() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]  # a group
    named = {
        verb: {parameter.name: set(parameter.opts) for parameter in commands[verb].params}
        for verb in ("serve", "doctor")
    }
    missing = named["serve"].keys() - named["doctor"].keys()
    assert missing == NOTHING_TO_REFUSE
    for name, texts in named["doctor"].items():
        assert texts == named["serve"][name]


def test_its_exit_code_says_that_something_fails(tmp_path: Path) -> None:
    words = ["doctor", "--model", "echo=echo", "--state", str(tmp_path / "s"), "--json"]
    ended = CliRunner().invoke(app, [*words, "--listen", "0.0.0.0:0"], standalone_mode=False)
    assert ended.return_value == 1
    assert json.loads(ended.stdout)["ok"] is False
    ended = CliRunner().invoke(app, [*words, "--listen", "127.0.0.1:0"], standalone_mode=False)
    assert ended.return_value == 0
