"""What the project says about itself: no stray words, one error tree, documented exit codes."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from overspill import errors
from overspill.errors import OverspillError

TEXT = {".py", ".md", ".toml", ".proto", ".sh", ".txt", ".json", ""}
# Put together here, or this file would be its own first finding.
MACHINE = ["/" + "root/", "/" + "work/", "py" + "pi.org", "python" + "hosted", "deb." + "debian"]
UNFINISHED = ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"]


def committed(repository: Path) -> Iterator[Path]:
    # In a container the checkout often belongs to somebody else.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: which files are committed is unknown")
    for name in done.stdout.split("\0"):
        path = repository / name
        if name and path.suffix in TEXT and path.is_file():
            yield path


def test_no_machine_and_no_registry_is_named(repository: Path) -> None:
    pattern = re.compile("|".join(map(re.escape, MACHINE)))
    found = [
        f"{path.relative_to(repository)}: {match.group()}"
        for path in committed(repository)
        if (match := pattern.search(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_nothing_is_left_for_later(repository: Path) -> None:
    pattern = re.compile("|".join(rf"\b{word}\b" for word in UNFINISHED))
    sources = [p for p in committed(repository) if p.suffix == ".py" and p.parent.name != "v1"]
    found = [str(p) for p in sources if pattern.search(p.read_text(encoding="utf-8"))]
    assert found == []


def tree_of_classes(cls: type[OverspillError]) -> dict[str, str]:
    """Each error's name with its parent's."""
    found = {}
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= {child.__name__: cls.__name__} | tree_of_classes(child)
    return found


def tree_of_docstring() -> dict[str, str]:
    """The same, read from the drawing in the module's docstring."""
    found, path = {}, ["OverspillError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ]*)[├└]── (\w+)", line)
        if match:
            depth = 1 + len(match.group(1)) // 4
            path = [*path[:depth], match.group(2)]
            found[match.group(2)] = path[depth - 1]
    return found


def test_the_error_tree_is_drawn_as_it_is() -> None:
    assert tree_of_docstring() == tree_of_classes(OverspillError)


def test_codes_are_one_to_one_with_errors() -> None:
    classes = [getattr(errors, name) for name in tree_of_classes(OverspillError)]
    codes = [cls.code for cls in classes]
    assert len(set(codes)) == len(codes)


def test_the_readme_lists_every_exit_code(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    used = {getattr(errors, name).exit_code for name in tree_of_classes(OverspillError)}
    rows = set(re.findall(r"^\| *`?(\d+)`? *\|", readme, re.MULTILINE))
    assert {str(code) for code in used | {0}} <= rows


def test_the_readme_names_only_targets_that_exist(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_the_changelog_has_this_version(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    import overspill

    assert project["version"] == overspill.__version__
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{overspill.__version__}]" in changelog
