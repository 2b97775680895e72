"""The store: one folder a model, whole or not there."""

import json

import pytest

from overspill.errors import ConfigurationError, ModelInvalid, ModelNotFound, UsageError
from overspill.models.store import NOTE, ModelStore, slug


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


@pytest.fixture
def file(tmp_path, make_gguf):
    path = tmp_path / "My Model Q8.gguf"
    path.write_bytes(make_gguf(1000))
    return path


def test_an_empty_store_makes_nothing(store):
    assert store.models() == ()
    assert store.find("none") is None
    assert not store.folder.exists()


def test_a_file_is_imported_under_a_plain_name(store, file):
    model = store.import_file(file)
    assert model.name == "my-model-q8"
    assert model.path.read_bytes() == file.read_bytes()
    assert store.find("my-model-q8") == model
    store.check(model)


def test_a_folder_is_imported_without_what_runs_code(store, tmp_path):
    folder = tmp_path / "mlx"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "modeling.py", "weights.bin"):
        (folder / name).write_bytes(b"{}")
    model = store.import_file(folder, "own")
    assert model.path == model.folder
    assert {path.name for path in model.folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        NOTE,
    }


def test_a_name_that_is_taken_is_not_overwritten(store, file):
    store.import_file(file)
    with pytest.raises(UsageError, match="already"):
        store.import_file(file)


@pytest.mark.parametrize("name", ["brook", "echo", "..", ".x", "a/b", "UP", "", "x" * 101])
def test_names_that_are_no_folder_or_mean_something_else(store, file, name):
    with pytest.raises(UsageError, match="cannot name"):
        store.import_file(file, name or " ")


def test_a_file_that_is_gone_or_was_changed_is_noticed(store, file):
    model = store.import_file(file)
    data = bytearray(model.path.read_bytes())
    data[-1] ^= 1
    model.path.write_bytes(bytes(data))
    with pytest.raises(ModelInvalid, match="not the file"):
        store.check(model)
    model.path.unlink()
    with pytest.raises(ModelInvalid, match="is gone"):
        store.check(model)


def test_removing_leaves_nothing(store, file):
    store.import_file(file)
    store.remove("my-model-q8")
    assert store.models() == ()
    with pytest.raises(ModelNotFound):
        store.remove("my-model-q8")


@pytest.mark.parametrize("note", ["", "[]", "{}", json.dumps({"version": 1, "name": "x"})])
def test_a_note_that_cannot_be_read_names_its_file(store, file, note):
    model = store.import_file(file)
    (model.folder / NOTE).write_text(note)
    with pytest.raises(ConfigurationError, match=NOTE):
        store.models()


@pytest.mark.parametrize("what", ["missing.gguf", "foreign.gguf", "folder"])
def test_what_is_no_model_is_not_imported(store, tmp_path, what):
    (tmp_path / "foreign.gguf").write_bytes(b"PK\x03\x04")
    (tmp_path / "folder").mkdir()
    with pytest.raises((ModelNotFound, ModelInvalid)):
        store.import_file(tmp_path / what)
    assert store.models() == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Qwen3-0.6B-Q8_0.gguf", "qwen3-0.6b-q8_0"), ("a  b.gguf", "a-b"), ("...", "model")],
)
def test_names_from_files(name, expected):
    assert slug(name) == expected
