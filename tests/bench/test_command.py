"""`overspill bench engine` as a user runs it."""

import json
import sys

import pytest

from overspill.bench import suite
from overspill.bench.suite import Effort
from overspill.cli.main import main


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERSPILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(suite, "QUICK", Effort(rounds=1, warmups=0, settle_s=0, answer_tokens=4))
    return tmp_path / "home"


def test_a_report_lands_in_the_file_and_in_the_folder_with_a_plot(home, tmp_path, capsys):
    pytest.importorskip("gguf", reason="gguf is not installed (extra 'bench')")
    file, out = tmp_path / "deep" / "report.json", tmp_path / "build"
    code = main(
        ["bench", "--out", str(out), "engine", "--quick", "--only", "fit.tiny", "--json", str(file)]
    )
    assert code == 0
    report = json.loads(file.read_text("utf-8"))
    assert json.loads((out / "engine.json").read_text("utf-8")) == report
    assert (out / "engine.png").exists()
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert figures["engine.fit.tiny.error"]["value"] is not None
    assert figures["engine.stream1.q05.vs_llama_bench"]["reason"] == "not chosen for this run"
    shown = capsys.readouterr()
    assert "engine.fit.tiny.error" in shown.out
    assert "engine.stream1" not in shown.out
    assert "not chosen" in shown.out
    assert "not to be quoted" in shown.out
    assert "[1/1] fit.tiny" in shown.err
    assert list((home / "cache" / "bench").glob("tiny-*.gguf"))


def test_the_report_on_stdout_is_one_json_document(home, tmp_path, capsys):
    arguments = ["bench", "engine", "--quick", "--only", "lookup.river", "--json", "-"]
    assert main([*arguments, "--family", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(
        set(figure) >= {"name", "value", "unit", "asked", "ok"} for figure in report["figures"]
    )
    assert all(figure["reason"] for figure in report["figures"] if figure["value"] is None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nonsense"], "no benchmark 'nonsense'"),
        (["--llama-server", "/nowhere/llama-server"], "/nowhere/llama-server"),
    ],
)
def test_a_wrong_option_is_one_line_and_a_usage_error(home, capsys, arguments, said):
    assert main(["bench", "engine", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("kind", ["engine", "trust", "daemon"])
def test_without_any_engine_the_extra_is_named(home, monkeypatch, capsys, kind):
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert main(["bench", kind, "--quick"]) == 2
    error = capsys.readouterr().err
    assert "overspill[bench]" in error
    assert error.count("\n") == 1


def test_a_batch_is_measured_beside_its_engine(home, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="gguf is not installed (extra 'bench')")
    effort = Effort(rounds=1, settle_s=0, streams=2, answer_tokens=8)
    monkeypatch.setattr(suite, "QUICK", effort)
    file = tmp_path / "report.json"
    run = ["bench", "daemon", "--quick", "--only", "batch.tiny", "--json", str(file)]
    assert main(run) == 0
    report = json.loads(file.read_text("utf-8"))
    (figure,) = (f for f in report["figures"] if f["name"] == "batch.tiny.vs_engine")
    assert figure["value"] > 0, figure
    assert [side["side"] for side in report["runs"][0]["sides"]] == ["batch", "engine"]
