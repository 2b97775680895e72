"""`overspill models`: pull from a hub on loopback, use what came, and take it away again."""

import hashlib

import pytest


@pytest.fixture
def brook_hub(hub, home, brook_file):
    """A hub that serves brook under another name, and settings that know it."""
    hub.files["maker/creek-GGUF"] = {"creek-Q8_0.gguf": brook_file.read_bytes()}
    config = home / "config" / "config.toml"
    config.write_text(f'hub = "{hub.url}"\n{config.read_text()}')
    return hub


def test_a_model_is_pulled_used_checked_and_removed(overspill, brook_hub, brook_file):
    pulled = overspill("models", "pull", "maker/creek-GGUF", "--name", "creek", "--json")
    assert pulled.code == 0, pulled.err
    assert pulled.json["sha256"] == {
        "creek-Q8_0.gguf": hashlib.sha256(brook_file.read_bytes()).hexdigest()
    }
    answer = overspill("run", "Convert 3 km to m.", "--model", "creek", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["model"] == "creek"
    assert [m["name"] for m in overspill("models", "list", "--json").json["models"]] == [
        "brook",
        "creek",
    ]
    assert overspill("models", "check", "creek").code == 0
    assert overspill("models", "remove", "creek").code == 0
    gone = overspill("run", "hi", "--model", "creek")
    assert gone.code == 3
    assert len(gone.err.strip().splitlines()) == 1


def test_the_plan_is_shown_before_anything_is_fetched(overspill, brook_hub):
    result = overspill("models", "pull", "maker/creek-GGUF", "--yes")
    assert result.code == 0
    for said in ("hf.co/maker/creek-GGUF", brook_hub.commit, "apache-2.0", "sha256:", "are free"):
        assert said in result.out


def test_a_model_that_could_be_pulled_names_the_command(overspill):
    result = overspill("run", "hi", "--model", "qwen3-0.6b")
    assert result.code == 3
    assert "overspill models pull qwen3-0.6b" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("pull", "maker/none"), 3, "no maker/none"),
        (("pull", "qwen3-0.6"), 3, "qwen3-0.6b"),
        (("pull", "brook"), 2, "always there"),
        (("pull", "maker/creek-GGUF:Q2_K"), 2, "creek-Q8_0.gguf"),
        (("pull", "maker/creek-GGUF", "--runtime", "onnx"), 2, "--runtime"),
        (("pull", "maker/creek-GGUF", "--name", "../x"), 2, "cannot name"),
        (("remove", "none"), 3, "no model"),
        (("remove", "echo"), 2, "ships"),
        (("check", "none"), 3, "no model"),
        (("import", "none.gguf"), 3, "no file"),
        (("fit", "maker/none"), 3, "no maker/none"),
    ],
)
def test_bad_input_is_one_line(overspill, brook_hub, arguments, code, says):
    result = overspill("models", *arguments)
    assert result.code == code
    assert says in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_pulled_file_that_is_no_model_is_not_kept(overspill, brook_hub):
    brook_hub.files["maker/fake-GGUF"] = {"fake.gguf": b"GGUF" + b"\xff" * 500}
    result = overspill("models", "pull", "maker/fake-GGUF", "--yes")
    assert result.code == 3
    assert [m["name"] for m in overspill("models", "list", "--json").json["models"]] == ["brook"]


def test_fit_tells_the_arithmetic(overspill, brook_hub, brook_file):
    here = overspill("models", "fit", "brook", "--json")
    assert here.code == 0
    assert here.json["verdict"] == "fits"
    assert here.json["needed_bytes"] > brook_file.stat().st_size
    there = overspill("models", "fit", "maker/creek-GGUF", "--json")
    assert there.json["verdict"] == "may_fit"
    assert there.json["needed_bytes"] == brook_file.stat().st_size


def test_a_model_of_ones_own_is_imported(overspill, home, brook_file):
    assert overspill("models", "import", str(brook_file), "--name", "mine").code == 0
    answer = overspill("run", "Convert 3 km to m.", "--model", "mine", "--json")
    assert answer.json["model"] == "mine"


def test_the_catalog_is_listed_with_licence_and_source(overspill):
    listed = overspill("models", "catalog", "--json").json["models"]
    assert {"name", "licence", "source", "context_tokens", "variants"} <= set(listed[0])
    assert "Apache-2.0" in overspill("models", "catalog").out
