"""A repository's files make one model, pinned to a commit, or the reason is said."""

import pytest

from overspill.errors import InvalidRequest, ModelInvalid, ModelNotFound, PullFailed
from overspill.models.catalog import catalog, find_entry, parse_catalog
from overspill.models.files import Digest, RemoteFile
from overspill.models.hub import HubReference, choose_files, parse_reference, plan_from_listing
from overspill.models.pull import plan_pull

REPO = HubReference("maker/model")
MLX = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("maker/model", HubReference("maker/model")),
        ("maker/model:Q4_K_M", HubReference("maker/model", choice="Q4_K_M")),
        ("maker/model@v1.0:a/b.gguf", HubReference("maker/model", "v1.0", "a/b.gguf")),
        ("hf.co/maker/model", HubReference("maker/model")),
        ("https://huggingface.co/maker/model", HubReference("maker/model")),
        ("model", None),
        ("a/b/c", None),
        ("../model", None),
        ("maker/..", None),
        ("maker/model:../../etc", None),
        ("", None),
    ],
)
def test_references(text, expected):
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    ("paths", "choice", "runtime", "expected"),
    [
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf", "README.md"), None, "llama.cpp", ("m-Q4_K_M.gguf",)),
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf"), "Q8_0", "llama.cpp", ("m-Q8_0.gguf",)),
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf"), "q8_0", "llama.cpp", ("m-Q8_0.gguf",)),
        # Q4_K must not be found in Q4_K_M, nor F16 in BF16.
        (("m-Q4_K_M.gguf", "m-Q4_K.gguf"), "Q4_K", "llama.cpp", ("m-Q4_K.gguf",)),
        (("m-BF16.gguf", "m-F16.gguf"), "F16", "llama.cpp", ("m-F16.gguf",)),
        (("only.gguf", "mmproj-F16.gguf"), None, "llama.cpp", ("only.gguf",)),
        (
            ("m-00002-of-00002.gguf", "m-00001-of-00002.gguf"),
            None,
            "llama.cpp",
            ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"),
        ),
        ((*MLX, "pytorch_model.bin", "modeling.py"), None, "mlx", MLX),
        ((*MLX, "m-Q8_0.gguf"), None, "mlx", MLX),
        ((*MLX, "m-Q8_0.gguf"), None, "llama.cpp", ("m-Q8_0.gguf",)),
        (MLX, None, "llama.cpp", MLX),
    ],
)
def test_the_files_of_one_model_are_chosen(paths, choice, runtime, expected):
    reference = HubReference("maker/model", choice=choice)
    chosen, found = choose_files(paths, reference, runtime)
    assert chosen == expected
    assert found == ("llama.cpp" if chosen[0].endswith(".gguf") else "mlx")


def test_nothing_that_runs_code_is_ever_taken():
    with pytest.raises(ModelInvalid, match="neither"):
        choose_files(("pytorch_model.bin", "modeling.py", "config.json"), REPO, "llama.cpp")


def test_a_choice_that_is_not_there_names_what_is():
    with pytest.raises(InvalidRequest, match=r"m-Q8_0\.gguf"):
        choose_files(("m-Q8_0.gguf",), HubReference("a/b", choice="Q2_K"), "llama.cpp")


def test_parts_that_are_missing_are_noticed():
    with pytest.raises(ModelInvalid, match="1 of its 3"):
        choose_files(("m-00001-of-00003.gguf",), REPO, "llama.cpp")


def entry(path, **fields):
    return {"rfilename": path, "size": 3, "blobId": "0" * 40} | fields


@pytest.mark.parametrize(
    "listing",
    [
        {},
        {"sha": "main", "siblings": [entry("m.gguf")]},
        {"sha": "a" * 40, "siblings": [entry("m.gguf", lfs={"sha256": "xyz", "size": 3})]},
        {"sha": "a" * 40, "siblings": [entry("m.gguf", lfs={"sha256": "a" * 64})]},
        {"sha": "a" * 40, "siblings": [{"rfilename": "m.gguf", "size": 3}]},
        {"sha": "a" * 40, "siblings": [entry("..gguf/.gguf")]},
        {"sha": "a" * 40, "siblings": None},
    ],
)
def test_an_answer_without_commit_size_or_digest_is_refused(listing):
    with pytest.raises(PullFailed):
        plan_from_listing(listing, REPO, runtime="llama.cpp")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../b", ".hidden", "a\\b", "", "a//../b", "~"])
def test_no_file_leaves_its_folder(path):
    with pytest.raises(ValueError, match="file name"):
        RemoteFile("https://hub.example/x", path)


@pytest.mark.parametrize("hexes", ["", "AA", "a" * 63, "G" * 64])
def test_a_digest_is_hex_of_its_length(hexes):
    with pytest.raises(ValueError, match="no digest"):
        Digest("sha256", hexes)


@pytest.mark.anyio
async def test_small_files_are_checked_by_git_object_id(hub, tmp_path, quick):
    from overspill.models.pull import run_pull
    from overspill.models.store import ModelStore

    hub.files["maker/model"] = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"[]",
    }
    hub.small = {"config.json", "tokenizer.json"}
    plan = await plan_pull("maker/model", runtime="mlx", hub=hub.url)
    assert {file.digest.kind for file in plan.files} == {"git-sha1", "sha256"}
    hub.serve_instead["config.json"] = b"[]"
    with pytest.raises(ModelInvalid, match="git-sha1"):
        await run_pull(plan, ModelStore(tmp_path), options=quick)
    hub.serve_instead.clear()
    stored = await run_pull(plan, ModelStore(tmp_path), options=quick)
    assert stored.runtime == "mlx"
    assert stored.path == stored.folder
    assert stored.name == "model"


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["maker/none", "qwen"])
async def test_what_nobody_has_is_not_found(hub, what):
    with pytest.raises(ModelNotFound) as refusal:
        await plan_pull(what, runtime="llama.cpp", hub=hub.url)
    if what == "qwen":
        assert "qwen3-0.6b" in str(refusal.value)


@pytest.mark.anyio
async def test_a_hub_that_nobody_answers_for_is_said():
    with pytest.raises(PullFailed, match="cannot be reached"):
        await plan_pull("maker/model", runtime="llama.cpp", hub="http://127.0.0.1:9")


@pytest.mark.anyio
async def test_the_catalog_pulls_what_its_publisher_serves(hub, make_gguf):
    variant = find_entry("qwen3-0.6b").variant_for("llama.cpp")
    hub.files[variant.repo] = {"Qwen3-0.6B-Q8_0.gguf": make_gguf(64)}
    plan = await plan_pull("qwen3-0.6b", runtime="llama.cpp", hub=hub.url)
    assert (plan.name, plan.licence, plan.source) == (
        "qwen3-0.6b",
        "Apache-2.0",
        f"hf.co/{variant.repo}",
    )
    assert plan.notes


def test_every_entry_names_its_publisher_licence_and_source():
    assert {entry.place for entry in catalog().values()} == {"device", "cloud"}
    for model in catalog().values():
        assert model.source.startswith("https://")
        assert model.licence_url.startswith("https://")
        assert model.publisher
        assert parse_reference(model.name) is None
        # Nothing is claimed to be verified here that was not.
        assert all(v.sha256 is None and v.size_bytes is None for v in model.variants)


def test_an_unknown_key_in_the_catalog_is_an_error():
    from overspill.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="'stars'"):
        parse_catalog('["m"]\nstars = 5\n')
