"""What is in the wheel: hatchling leaves out git-ignored files without a word."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def names(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The paths in a freshly built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, repository],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("stub", ["chat", "local", "sealed", "trust"])
def test_the_stubs_are_in_it(names: set[str], stub: str) -> None:
    for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
        assert f"overspill/wire/v1/{stub}{ending}" in names


@pytest.mark.parametrize("package", ["overspill", "overspill_edge", "overspill_cloud"])
def test_the_packages_are_typed(names: set[str], package: str) -> None:
    assert f"{package}/py.typed" in names


@pytest.mark.parametrize(
    "data", ["routing/scorer.json", "cli/demo_prompts.json", "models/brook/brook-q8_0.gguf"]
)
def test_the_data_is_in_it(names: set[str], data: str) -> None:
    assert f"overspill/{data}" in names


def test_every_committed_file_of_the_packages_is_in_it(names: set[str], repository: Path) -> None:
    roots = ["sdk/overspill", "edge/overspill_edge", "cloud/overspill_cloud"]
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", *roots]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: which files are committed is unknown")
    committed = {name.partition("/")[2] for name in done.stdout.split("\0") if name}
    assert committed - names == set()


def test_nothing_but_the_packages_is_in_it(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "overspill",
        "overspill_edge",
        "overspill_cloud",
    }
