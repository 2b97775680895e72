"""Pictures from the command line."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")


@pytest.fixture(scope="module")
def files(made_gguf, made_mmproj, tmp_path_factory):
    return made_mmproj.pair(made_gguf, tmp_path_factory.mktemp("vision"))


def test_run_shows_pictures_to_a_model_with_a_projector(overspill, files, made_mmproj, tmp_path):
    model, projector = files
    picture = tmp_path / "a.png"
    picture.write_bytes(made_mmproj.noise(1))
    options = ("--model", str(model), "--max-tokens", "4", "--json")
    seeing = (*options, "--mmproj", str(projector))
    blind = overspill("run", "What is it?", *options, "--image", str(picture))
    assert blind.code == 2
    assert "cannot read images" in blind.out
    text = overspill("run", "What is it?", *seeing).json
    seen = overspill("run", "What is it?", *seeing, "--image", str(picture)).json
    assert seen["usage"]["prompt_tokens"] >= text["usage"]["prompt_tokens"] + 16


def test_a_picture_that_is_not_there_is_named(overspill):
    missing = overspill("run", "What is it?", "--image", "nowhere.png")
    assert missing.code == 2
    assert "nowhere.png" in missing.err


def test_a_projector_has_no_use_with_another_runtime(overspill):
    refused = overspill("run", "Hello", "--model", "echo", "--mmproj", "eyes.gguf")
    assert refused.code == 2
    assert "reads no images" in refused.err
