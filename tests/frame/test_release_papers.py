"""What a release says about other people's work is whole, valid, and allowed."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("cyclonedx", reason="pip install 'overspill[dev]'")
BASE = ("anyio", "cryptography", "grpcio", "platformdirs", "protobuf", "typer")


@pytest.fixture(scope="module")
def papers(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "release_papers", repository / "scripts" / "release_papers.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(papers: ModuleType, tmp_path_factory) -> Path:
    folder, before = tmp_path_factory.mktemp("release"), sys.argv
    sys.argv = ["release_papers", "--out", str(folder)]
    try:
        assert papers.main() == 0
    finally:
        sys.argv = before
    return folder


@pytest.fixture(scope="module")
def bom(written: Path) -> dict:
    (file,) = written.glob("overspill-*.cdx.json")
    return json.loads(file.read_text())


def test_the_bill_is_valid_cyclonedx(bom):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))
    assert problem is None, str(problem)[:500]


def test_the_bill_names_what_is_installed_and_who_needs_it(bom):
    components = {c["name"]: c for c in bom["components"]}
    for name in (*BASE, "llama-cpp-python", "starlette", "sqlalchemy", "sigstore"):
        assert components[name]["version"] == version(name)
        assert components[name]["purl"] == f"pkg:pypi/{name}@{version(name)}"
    assert all(c["licenses"] for c in components.values())
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
    root = bom["metadata"]["component"]["bom-ref"]
    assert {components[name]["bom-ref"] for name in BASE} <= set(needs[root])
    # From overspill every library is reached: nothing is in the bill for no reason.
    reached, ahead = set(), [root]
    while ahead:
        ref = ahead.pop()
        reached.add(ref)
        ahead += set(needs[ref]) - reached
    assert reached == {root, *(c["bom-ref"] for c in components.values())}


def test_what_only_work_on_overspill_takes_is_not_in_the_bill(bom):
    assert not {"pytest", "ruff", "torch", "openai"} & {c["name"] for c in bom["components"]}


def test_the_notice_has_every_library_and_its_licence_text(bom, written, repository):
    notice = (written / "NOTICE").read_text("utf-8")
    assert notice.startswith((repository / "NOTICE").read_text("utf-8"))
    for component in bom["components"]:
        (licence,) = component["licenses"]
        said = licence.get("expression") or licence["license"]["id"]
        assert f"\n{component['name']} {component['version']}: {said}\n" in notice
    assert "THE SOFTWARE IS PROVIDED" in notice


def test_the_notice_names_the_makers_of_all_that_the_package_holds(repository):
    notice = (repository / "NOTICE").read_text("utf-8")
    roots = repository / "sdk" / "overspill" / "trust" / "roots"
    makers = {re.match(r"[a-z]+", file.name).group() for file in roots.glob("*.pem")}
    assert makers
    assert all(maker in notice.lower() for maker in makers)


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("MPL-2.0 AND MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("(MIT OR GPL-2.0-only) AND BSD-3-Clause", True),
        ("MIT AND GPL-2.0-only", False),
        ("GPL-3.0-or-later", False),
        ("AGPL-3.0-only OR GPL-3.0-only", False),
        ("LGPL-2.1-only", False),
    ],
)
def test_a_licence_is_allowed_when_what_it_asks_for_is(papers, licence, allowed):
    assert papers.is_allowed(licence) is allowed


def metadata(**fields: str) -> Message:
    message = Message()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "ISC", "License": "GPL"}, "ISC"),
        ({"License": "Apache 2.0"}, "Apache-2.0"),
        ({"License": "All of it:\nwords, words", "Classifier": "License :: MIT License"}, "MIT"),
    ],
)
def test_a_licence_is_read_where_it_is_said_best(papers, fields, licence):
    assert papers.licence_of("some", metadata(**fields)) == licence


def test_a_library_that_says_nothing_is_named(papers):
    with pytest.raises(papers.UnknownLicence, match="some: no licence"):
        papers.licence_of("some", metadata(License="Ask us", Classifier="Topic :: Internet"))
