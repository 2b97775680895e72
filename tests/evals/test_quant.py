"""`overspill eval quant`: each file beside the one with the most bits, on real models."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from overspill.cli.main import main
from overspill.engines.registry import BROOK


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Any]:
    """brook at Q8_0 beside its F32 safetensors turned into GGUF, over a few held-back prompts."""
    pytest.importorskip("gguf", reason="pip install 'overspill[dev]'")
    pytest.importorskip("safetensors", reason="pip install 'overspill[dev]'")
    from examples.family.export import write_gguf

    folder = tmp_path_factory.mktemp("quant")
    full, out = folder / "brook-f32.gguf", folder / "report.json"
    write_gguf(repository / "examples/family/models/brook-f32", full, "F32")
    prompts = folder / "prompts.jsonl"
    lines = (repository / "examples/family/eval_prompts.jsonl").read_text().splitlines()
    prompts.write_text("\n".join(lines[::40]) + "\n")
    options = ["--prompts", str(prompts), "--json", str(out)]
    assert main(["eval", "quant", "--model", str(BROOK), str(full), *options]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_file_with_the_most_bits_is_what_others_are_compared_with(
    report: dict[str, Any],
) -> None:
    q8, f32 = report["models"]
    assert (q8["quantization"], f32["quantization"]) == ("Q8_0", "F32")
    assert report["reference"] == f32["file"]
    assert f32["kl"] is None
    assert "compared with" in f32["kl_reason"]
    assert q8["size_bytes"] < f32["size_bytes"]


def test_eight_bits_are_close_and_not_the_same(report: dict[str, Any]) -> None:
    kl = report["models"][0]["kl"]
    assert 0 < kl["mean"] < 0.02
    assert kl["mean"] <= kl["p99"]
    assert kl["same_token"] > 0.95
    assert kl["tokens"] > 100


def test_accuracy_is_told_by_skill_and_every_figure_is_there(report: dict[str, Any]) -> None:
    for model in report["models"]:
        assert {"all", "arithmetic", "tools"} <= model["accuracy"].keys()
        assert 0 < model["accuracy"]["all"] < 1
        assert model["tokens_per_s"] > 0
    names = {figure["name"] for figure in report["figures"]}
    assert {"quant.q8_0.kl_mean", "quant.f32.size", "quant.q8_0.accuracy"} <= names
    assert all(f["value"] is not None or f["reason"] for f in report["figures"])


def test_two_models_are_not_compared(
    made_gguf: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.gguf"
    made_gguf.write(other, made_gguf.Shape())
    assert main(["eval", "quant", "--model", str(BROOK), str(other), "--limit", "2"]) == 2
    assert "two models" in capsys.readouterr().err


def test_what_a_model_cannot_be_asked_is_left_out_and_told(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others' story model has no chat template: it goes on from one turn, and knows no tools."""
    full, small = (
        shared_data / "models" / f"stories260K-tok512-{kind}.gguf" for kind in ("f32", "q8_0")
    )
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "quant.json"
    turns = [{"role": role, "content": "Once"} for role in ("user", "assistant", "user")]
    lines = [{"prompt": "Once upon a time", "id": "one"}, {"messages": turns, "id": "three"}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["eval", "quant", "--model", str(full), str(small), "--prompts", str(prompts)]
    assert main([*command, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["prompts"] == 1
    assert [(one["id"], one["code"]) for one in report["left_out"]] == [
        ("three", "unsupported_option")
    ]
    assert report["models"][1]["kl"]["mean"] >= 0
    assert "1 prompts were left out" in capsys.readouterr().out
    prompts.write_text(json.dumps(lines[1]) + "\n")
    assert main(command) == 2
    assert "chat template" in capsys.readouterr().err


@pytest.mark.parametrize("files", [("brook", "brook"), ("brook", "none.gguf")])
def test_a_file_is_there_and_named_once(files: tuple[str, ...]) -> None:
    assert main(["eval", "quant", "--model", *files, "--limit", "1"]) in (2, 3)
