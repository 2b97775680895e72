"""The command line: what it answers, and one clear line with its exit code where it cannot."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
import typer

from overspill import __version__
from overspill.cli.main import app_for, whole_app
from overspill.engines.backend import Abilities


def test_the_version_and_the_help(overspill):
    assert overspill("--version").out == f"overspill {__version__}\n"
    help_text = overspill("--help").out
    for verb in (
        "run",
        "plan",
        "models",
        "demo",
        "doctor",
        "serve",
        "cloud",
        "receipts",
        "trust",
        "token",
    ):
        assert verb in help_text


def test_each_verb_comes_alone_as_it_comes_with_all():
    """A command line reads its own verb's modules only; both have the same words for it."""
    whole = typer.main.get_command(whole_app())
    for name, verb in whole.commands.items():
        alone = typer.main.get_command(app_for([name, "--help"]))
        assert alone.commands[name].help == verb.help
        assert [one.name for one in alone.commands[name].params] == [p.name for p in verb.params]
        assert sorted(getattr(alone.commands[name], "commands", ())) == sorted(
            getattr(verb, "commands", ())
        )
        assert len(alone.commands) < len(whole.commands)


@pytest.mark.parametrize(
    ("arguments", "at_most"), [(("--version",), 0), (("token", "list"), 60), (("logs", "-h"), 60)]
)
def test_a_command_line_reads_no_more_than_its_verb(home, arguments, at_most):
    """Counted in modules of overspill's: a client with its trust and wire has over two hundred."""
    code = (
        "import sys\nfrom overspill.cli.main import main\nmain(sys.argv[1:])\n"
        "ours = [name for name in sys.modules if name.startswith('overspill')]\n"
        "print(len(ours), 'grpc' in sys.modules, 'cryptography' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    ours, *others = done.stdout.split()[-3:]
    assert others == ["False", "False"]
    assert int(ours) <= 12 + at_most


def test_run_streams_the_answer_and_says_who_gave_it(overspill):
    result = overspill("run", "Hello there")
    assert result.code == 0
    assert result.out == "echo: Hello there\n"
    assert result.err.startswith("[device: echo, ")
    assert "0 bytes left this device" in result.err


def test_run_in_json(overspill):
    reply = overspill("run", "Hello", "--json").json
    assert reply["text"] == "echo: Hello"
    assert reply["route"]["route"] == "device"


def test_why_lists_the_stages_of_the_decision(overspill):
    assert "stage 2: floor" in overspill("run", "Hello", "--why").err


def test_plan_answers_without_generating(overspill):
    plan = overspill("plan", "Hello", "--json").json
    assert plan["decision"]["route"] == "device"
    assert plan["would_leave"] == "nothing"
    assert "route:   device" in overspill("plan", "Hello").out


def test_models_lists_what_can_answer(overspill):
    models = overspill("models", "--json").json
    assert [card["name"] for card in models["models"]] == ["echo"]
    assert models["availability"]["cloud"] == "unavailable"


def test_the_help_groups_the_verbs_and_says_in_whole_sentences_what_they_do(overspill):
    told = " ".join(overspill("--help").out.split())
    assert "Ask: run Answer one prompt; the last line says who answered and what left the" in told
    assert told.index("Ask:") < told.index("For other programs:") < told.index("Measure and tune:")
    assert "..." not in told.split("Ask:")[1]
    assert "More:" not in told  # every verb has its place


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["run"], "See: overspill run --help"),
        (["models", "pull"], "See: overspill models pull --help"),
        (["models", "pul", "x"], "Did you mean 'pull'? See: overspill models --help"),
        (["nope"], "See: overspill --help"),
    ],
)
def test_a_mistake_is_told_with_the_help_that_mends_it(overspill, arguments, mend):
    assert overspill(*arguments).err.strip().endswith(mend)


def test_a_file_that_is_not_there_is_named_once(overspill, tmp_path):
    said = overspill("trust", "check", str(tmp_path / "no.toml")).err
    assert said.count("no.toml") == 1
    assert "Errno" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["nope"], 2, "nope"),
        (["run"], 2, "prompt"),
        (["run", "hi", "--bogus"], 2, "--bogus"),
        (["run", " "], 2, "prompt"),
        (["run", "hi", "--privacy", "none"], 2, "--privacy"),
        (["run", "hi", "--temperature", "7"], 2, "temperature"),
        (["run", "hi", "--model", "missing.gguf"], 3, "missing.gguf"),
        (["plan", "hi", "--trust-policy", "t.toml"], 2, "--trust-policy"),
        (["run", "hi", "--cloud", "far.example:1", "--trust-policy", "no.toml"], 2, "no.toml"),
        (["run", "word " * 9000], 5, "context"),
        (["receipts", "show", "abc"], 2, "abc"),
        (["trust", "check", "no.toml"], 2, "no.toml"),
        (["cloud", "verify", "127.0.0.1:1"], 6, "127.0.0.1:1"),
        (["demo", "--cloud-model", "no.gguf"], 3, "no.gguf"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(overspill, arguments, code, named):
    result = overspill(*arguments)
    assert result.code == code, result
    assert named in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    as_json = overspill(*arguments, *(() if arguments[0] == "demo" else ("--json",)))
    if arguments[0] != "demo":
        error = as_json.json["error"]
        assert set(error) == {"code", "message", "mend"}
        assert as_json.code == code


def test_an_unexpected_error_is_noted_in_a_file_and_not_shown(overspill, home, monkeypatch):
    from overspill.cli import ask

    monkeypatch.setattr(ask, "settings_for", lambda *_, **__: 1 / 0)
    result = overspill("run", "hi")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "ZeroDivisionError" in result.err
    assert "settings_for" in (home / "state" / "last-error.txt").read_text()


def test_an_unexpected_error_with_no_place_to_note_it_says_so(overspill, home, monkeypatch):
    from overspill.cli import ask

    monkeypatch.setattr(ask, "settings_for", lambda *_, **__: 1 / 0)
    (home / "state").write_text("a file where the folder should be")
    result = overspill("run", "hi")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "ZeroDivisionError" in result.err
    assert "last-error.txt could not be written" in result.err


def test_trust_init_writes_a_policy_that_checks(overspill, tmp_path):
    file = tmp_path / "trust.toml"
    made = overspill(
        "trust", "init", str(file), "--key", "ab" * 32, "--model", "river=" + "cd" * 32
    )
    assert made.code == 0
    assert overspill("trust", "check", str(file)).code == 0
    assert tomllib.loads(file.read_text())["min_assurance"] == "SOFTWARE"
    assert overspill("trust", "init", str(file)).code == 2


def test_trust_init_without_values_leaves_places_that_do_not_load(overspill, tmp_path):
    file = tmp_path / "trust.toml"
    assert overspill("trust", "init", str(file)).code == 0
    checked = overspill("trust", "check", str(file))
    assert checked.code == 2
    assert str(file) in checked.err


def test_the_doctor_lets_the_device_answer(overspill):
    healthy = overspill("doctor", "--json")
    checks = {check["name"]: check for check in healthy.json["checks"]}
    assert healthy.code == 0
    assert checks["device model"]["ok"] is True
    assert "echo answered" in checks["device model"]["detail"]
    assert checks["cloud"]["ok"] is None


def test_the_doctor_says_what_the_model_takes(overspill, brook_file):
    checks = {
        c["name"]: c
        for c in overspill("doctor", "--model", str(brook_file), "--json").json["checks"]
    }
    assert re.match(
        r"[\d,]+ MiB with a full context of \d+ tokens", checks["device memory"]["detail"]
    )


def test_the_doctor_names_what_fails(overspill):
    sick = overspill("doctor", "--cloud", "127.0.0.1:1")
    assert sick.code == 1
    assert "FAILED" in sick.out
    missing = overspill("doctor", "--model", "missing.gguf")
    assert missing.code == 1
    assert "missing.gguf" in missing.out


def test_no_receipts_is_an_empty_list(overspill):
    result = overspill("receipts", "list", "--json")
    assert result.code == 0
    assert json.loads(result.out) == []


def test_an_adapter_answers_by_file_and_by_its_name_in_the_settings(overspill, home):
    given = overspill("run", "Hello", "--adapter", "poet=poet.gguf")
    assert given.out == "echo[poet]: Hello\n"
    unknown = overspill("run", "Hello", "--adapter", "poet")
    assert unknown.code == 2
    assert "'poet'" in unknown.err
    with (home / "config" / "config.toml").open("a") as config:
        config.write('[adapters]\npoet = "poet.gguf"\n')
    assert overspill("run", "Hello", "--adapter", "poet").out == "echo[poet]: Hello\n"


def test_a_draft_model_leaves_the_answer_alone_and_one_that_is_not_there_is_named(overspill):
    assert overspill("run", "Hello", "--draft-model", "echo").out == "echo: Hello\n"
    missing = overspill("run", "Hello", "--draft-model", "nowhere.gguf")
    assert missing.code == 3
    assert "nowhere.gguf" in missing.err


def test_the_doctor_tells_of_a_draft_model_that_makes_no_drafts(overspill, home, monkeypatch):
    from overspill.engines.echo import EchoBackend

    class Recurrent(EchoBackend):
        abilities = Abilities()

    monkeypatch.setattr("overspill.engines.echo.EchoBackend", Recurrent)
    with (home / "config" / "config.toml").open("a") as config:
        config.write('draft_model = "echo"\nisolate = false\n')
    found = overspill("doctor", "--json").json["checks"]
    assert any("The draft model is not used" in check["detail"] for check in found)


@pytest.mark.parametrize("group", [(), ("cloud",), ("trust", "release"), ("receipts",)])
def test_a_group_without_a_verb_shows_its_help_line_by_line(overspill, group):
    shown = overspill(*group)
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith(f"Usage: {' '.join(('overspill', *group))} ")
    assert len(shown.err.splitlines()) > 5


def test_a_wrong_rules_file_is_named_by_the_doctor_and_not_the_model(overspill, home):
    (home / "config" / "config.toml").write_text(
        'model = "echo"\n[cloud]\naddress = "127.0.0.1:1"\ntrust_policy = "trust.toml"\n'
    )
    (home / "config" / "trust.toml").write_text("version = 1\n")
    checks = {c["name"]: c for c in overspill("doctor", "--json").json["checks"]}
    assert checks["trust policy"]["ok"] is False
    assert "'accept' is missing" in checks["trust policy"]["detail"]
    assert checks["device model"]["ok"] is None
    assert checks["daemon"]["detail"] == "none runs"


def test_the_cloud_of_the_settings_is_the_one_that_is_verified(overspill, home):
    assert "No cloud is set" in overspill("cloud", "verify").err
    (home / "config" / "config.toml").write_text('[cloud]\naddress = "127.0.0.1:1"\n')
    refused = overspill("cloud", "verify")
    assert refused.code == 6
    assert "127.0.0.1:1" in refused.err
