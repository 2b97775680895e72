"""What importing loads, and where modules may stand."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOTS = ("sdk/overspill", "edge/overspill_edge", "cloud/overspill_cloud")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules outside the standard library that a statement loads in a fresh Python."""
    code = (
        "import json, sys; before = set(sys.modules);"
        f"{statement}; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = {name.partition(".")[0] for name in json.loads(done.stdout)}
    return found - sys.stdlib_module_names - {"overspill"}


def shipped(repository: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Every shipped module but the generated ones, parsed."""
    for root in ROOTS:
        for path in sorted((repository / root).rglob("*.py")):
            if path.parent.name != "v1":
                yield path.relative_to(repository), ast.parse(path.read_text(encoding="utf-8"))


def test_importing_overspill_loads_no_third_party_package() -> None:
    assert loaded_by("import overspill") == set()


@pytest.mark.parametrize("module", ["errors", "types.chat", "routing.decide", "types.route"])
def test_the_pure_core_loads_no_third_party_package(module: str) -> None:
    assert loaded_by(f"import overspill.{module}") == set()


def test_the_client_loads_no_runtime_until_it_is_used() -> None:
    loaded = loaded_by("from overspill import Overspill, AsyncOverspill")
    assert loaded.isdisjoint({"grpc", "numpy", "mlx", "llama_cpp", "jinja2", "typer"})


def test_every_public_name_exists_and_is_documented() -> None:
    import overspill

    for name in overspill.__all__:
        value = getattr(overspill, name)
        if name != "__version__":
            assert (value.__doc__ or "").strip(), f"overspill.{name} has no docstring"
    assert sorted(set(overspill.__all__)) == sorted(overspill.__all__)
    assert set(overspill.__all__) <= set(dir(overspill))


def test_an_unknown_name_is_an_attribute_error() -> None:
    import overspill

    with pytest.raises(AttributeError, match="nonsense"):
        overspill.nonsense  # noqa: B018  # the access is what is tested


def test_the_environment_is_read_in_config_only(repository: Path) -> None:
    readers = {
        str(path)
        for path, tree in shipped(repository)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and _names_environment(node))
    }
    assert readers == {"sdk/overspill/config.py"}


def _names_environment(node: ast.ImportFrom) -> bool:
    return any(alias.name in ("environ", "environb", "getenv") for alias in node.names)


def test_every_module_has_a_place_in_the_layers(repository: Path) -> None:
    """import-linter checks only what a contract names: a new module has to be placed."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    placed = {
        name.strip(" ()").removeprefix("overspill.")
        for layer in layers
        for name in layer.replace("|", ":").split(":")
    }
    there = {
        path.stem
        for path in (repository / "sdk/overspill").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {"__init__", "_version", "testing"} <= placed
