"""The container file as far as it can be judged without an engine, and the wheel twice."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\b")


@pytest.fixture(scope="module")
def instructions(repository: Path) -> list[tuple[str, str]]:
    """(instruction, arguments), with continued lines joined and comments left out."""
    text = (repository / "cloud/deploy/Containerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def arguments(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in instructions if instruction == name]


def test_every_base_is_one_digest(instructions: list[tuple[str, str]]) -> None:
    bases = arguments(instructions, "FROM")
    digests = {found[0] for base in bases if (found := _DIGEST.search(base))}
    assert len(bases) == 2
    assert len(digests) == 1
    labels = " ".join(arguments(instructions, "LABEL"))
    assert f'base.digest="{digests.pop()[1:]}"' in labels


def test_nothing_is_fetched(instructions: list[tuple[str, str]]) -> None:
    assert arguments(instructions, "ADD") == []
    for command in arguments(instructions, "RUN"):
        assert not re.search(r"https?://|\b(curl|wget|git|apt|apt-get)\b", command)
        assert command.count(" install ") == command.count("--no-index")
        assert "--require-hashes" in command


def test_it_runs_as_a_number_that_is_not_root(instructions: list[tuple[str, str]]) -> None:
    (user,) = arguments(instructions, "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    last_of = [name for name, _ in instructions]
    assert last_of.index("USER") > max(n for n, name in enumerate(last_of) if name == "RUN")


def test_it_says_what_it_is(instructions: list[tuple[str, str]]) -> None:
    labels = " ".join(arguments(instructions, "LABEL"))
    for name in ("title", "description", "licenses", "source", "base.name", "base.digest"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert arguments(instructions, "ENTRYPOINT") == ['["overspill-cloud"]']


def test_what_is_copied_in_names_no_secret_and_no_weights(
    instructions: list[tuple[str, str]],
) -> None:
    copied = {words.split()[-2] for words in arguments(instructions, "COPY")}
    assert copied == {"cloud/deploy/requirements.txt", "wheels/", "dist/", "/opt/overspill"}


def test_every_requirement_has_one_version_and_its_hash(repository: Path) -> None:
    lines = (repository / "cloud/deploy/requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert len(wanted) > 10
    for line in wanted:
        assert re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line)


def test_the_wheel_is_the_same_bytes_when_it_is_built_again(
    repository: Path, tmp_path: Path
) -> None:
    digests = set()
    for name in ("one", "two"):
        subprocess.run(
            [
                *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
                *("--outdir", str(tmp_path / name), str(repository)),
            ],
            check=True,
            capture_output=True,
            env=dict(os.environ, SOURCE_DATE_EPOCH="1700000000"),
            timeout=100,
        )
        (wheel,) = (tmp_path / name).glob("*.whl")
        digests.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert len(digests) == 1
