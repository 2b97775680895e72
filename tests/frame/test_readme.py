"""The READMEs: every link leads somewhere, every command and option exists, every block runs."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from overspill.cli.main import main
from overspill.config import ENVIRONMENT, load_settings
from overspill.terminal import run_app
from overspill_cloud.cli import app as cloud_app

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("README.md")
    if not {".venv", "build"} & set(path.relative_to(ROOT).parts) and ".venv-" not in str(path)
)
README = (ROOT / "README.md").read_text("utf-8")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def commands(text: str) -> list[list[str]]:
    """The overspill command lines in shell blocks, comments cut off."""
    lines = [line for body in blocks(text, "sh") for line in body.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and words[0] in ("overspill", "overspill-cloud")]


ALL_COMMANDS = [
    pytest.param(words, id=f"{name}: {' '.join(words)}"[:90])
    for name in READMES
    for words in commands((ROOT / name).read_text("utf-8"))
]


@pytest.mark.parametrize("name", READMES)
def test_every_link_leads_somewhere(name):
    folder = (ROOT / name).parent
    for target in LINK.findall((ROOT / name).read_text("utf-8")):
        if "://" not in target:
            assert (folder / target).exists(), target


def test_anchors_name_headings():
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_every_command_and_option_exists(words, capsys):
    run = {"overspill": main, "overspill-cloud": cloud_main}[words[0]]
    verbs = []
    for word in words[1:]:
        if word.startswith("-") or not re.fullmatch(r"[a-z][a-z-]*", word) or len(verbs) == 3:
            break
        verbs.append(word)
    # The last words may be arguments.
    counts = range(len(verbs), 0, -1)
    assert any(run([*verbs[:count], "--help"]) == 0 for count in counts), words
    shown = capsys.readouterr().out
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in shown, word


def cloud_main(arguments: list[str]) -> int:
    return run_app(cloud_app, "overspill-cloud", arguments)


def test_the_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OVERSPILL_HOME", str(tmp_path))
    for body in blocks(README, "python"):
        exec(compile(body, "README.md", "exec"), {})
    assert "brook" in capsys.readouterr().out


def test_the_settings_shown_are_settings(tmp_path):
    (shown,) = blocks(README, "toml")
    file = tmp_path / "config.toml"
    file.write_text(shown)
    settings = load_settings(file, environ={"OVERSPILL_HOME": str(tmp_path)})
    assert settings.cloud is not None
    assert settings.private_terms == ("Project Heron",)


def test_the_variables_named_are_those_that_are_read():
    assert set(re.findall(r"\bOVERSPILL_[A-Z]+\b", README)) == set(ENVIRONMENT)


def test_the_extras_named_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {e for group in re.findall(r"overspill\[([\w,]+)\]", README) for e in group.split(",")}
    assert named
    assert named <= project["optional-dependencies"].keys()


def test_the_models_are_as_good_as_the_readme_says():
    results = json.loads((ROOT / "examples" / "family" / "results.json").read_text())
    small, large = (results[f"{name}-q8_0"]["totals"]["overall"] for name in ("brook", "river"))
    assert f"brook is right on {small:.0f}% of the held-back prompts" in " ".join(README.split())
    assert f"river on {large:.0f}%" in " ".join(README.split())
