"""Write what a release says about other people's work: a bill of materials and a NOTICE.

Both are made of what is installed here: every library that the extras of a release bring on this
platform, with its version, licence and licence texts. Fails, naming the library, where a licence
is unknown or is none of the allowed ones.

    python scripts/release_papers.py --out build/release
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageMetadata, PackageNotFoundError, distribution
from pathlib import Path

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from license_expression import ExpressionError, LicenseSymbol, Licensing, get_spdx_licensing
from packageurl import PackageURL
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = frozenset({"dev", "train", "bench"})
"""Extras that work on overspill takes, and its use does not."""
ALLOWED = frozenset(
    """0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 CNRI-Python HPND ISC MIT MIT-0
    MIT-CMU PSF-2.0 Unlicense Zlib""".split()
)
"""Licences that ask for no more than to be named."""
ALLOWED_AS_LIBRARY = frozenset({"MPL-2.0", "LGPL-3.0-only"})
"""Copyleft by file or by library: fine for what is installed beside overspill, unchanged."""
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",  # the stricter of those that it may mean
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "ISC License": "ISC",
}
READ_IN_THE_FILES = {"sigstore-models": "Apache-2.0"}
"""What metadata does not say and the licence file in the package does."""
LICENCE_FILE = re.compile(r"^(licen[cs]e|copying|notice|authors)\b.*", re.IGNORECASE)


class UnknownLicence(Exception):
    """A library says nothing that can be read as a licence."""


@dataclass(frozen=True)
class Library:
    """One library: its name, what it says of itself, and the names of what it needs."""

    name: str
    found: Distribution
    needs: frozenset[str]

    @property
    def licence(self) -> str:
        """As an SPDX expression. Raises ``UnknownLicence``."""
        return licence_of(self.name, self.found.metadata)

    @property
    def texts(self) -> Iterator[str]:
        """The licence files that came with it."""
        for file in self.found.files or ():
            if LICENCE_FILE.match(file.name) and any(".dist-info" in part for part in file.parts):
                yield Path(str(file.locate())).read_text("utf-8", errors="replace").strip()


def licence_of(name: str, metadata: PackageMetadata) -> str:
    """What metadata says, in this order: an expression, a short field, classifiers."""
    said = metadata.get("License-Expression") or metadata.get("License") or ""
    said = SPELLINGS.get(said, said)
    if not _is_spdx(said):
        kinds = metadata.get_all("Classifier") or []
        known = {CLASSIFIERS.get(kind.rpartition(" :: ")[2]) for kind in kinds}
        said = " AND ".join(sorted(filter(None, known))) or READ_IN_THE_FILES.get(name, "")
    if not said:
        raise UnknownLicence(f"{name}: no licence in its metadata; look, and add it to the script")
    return said


@cache
def _spdx() -> Licensing:
    return get_spdx_licensing()


def _is_spdx(text: str) -> bool:
    if not text or "\n" in text:  # many put the licence's whole text there
        return False
    try:
        _spdx().parse(text, validate=True)
    except ExpressionError:
        return False
    return True


def is_allowed(expression: str, allowed: frozenset[str] = ALLOWED | ALLOWED_AS_LIBRARY) -> bool:
    """Whether the allowed licences are enough: all sides of an AND, one side of an OR."""
    parsed = _spdx().parse(expression, validate=True)
    if isinstance(parsed, LicenseSymbol):
        return parsed.key in allowed
    sides = (is_allowed(str(side), allowed) for side in parsed.args)
    return any(sides) if isinstance(parsed, _spdx().OR) else all(sides)


def released_extras() -> list[str]:
    """The extras that a user may install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return sorted(project["optional-dependencies"].keys() - LEFT_OUT)


def installed(extras: list[str]) -> tuple[dict[str, Library], list[str]]:
    """The libraries that these extras bring here, by name, and what is not installed of them."""
    libraries: dict[str, Library] = {}
    missing: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    open_ = [("overspill", frozenset(extras))]
    while open_:
        name, wanted = open_.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        needed = list(_needed(found, wanted))
        before = libraries[name].needs if name in libraries else frozenset()
        libraries[name] = Library(name, found, before | {needs for needs, _ in needed} - {name})
        open_ += needed
    return libraries, sorted(missing)


def _needed(found: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for text in found.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def bill_of_materials(libraries: dict[str, Library]) -> str:
    """CycloneDX 1.6 in JSON: the libraries, their licences, and who needs whom."""
    components = {name: _component(library) for name, library in libraries.items()}
    bom = Bom(components=[c for name, c in components.items() if name != "overspill"])
    root = bom.metadata.component = components["overspill"]
    root.type = ComponentType.APPLICATION
    here = default_environment()
    for marker in ("python_version", "sys_platform", "platform_machine"):
        bom.metadata.properties.add(Property(name=f"overspill:{marker}", value=here[marker]))
    for name, library in libraries.items():
        needed = (components[need] for need in sorted(library.needs) if need in components)
        bom.register_dependency(components[name], needed)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _component(library: Library) -> Component:
    version = library.found.version
    url = PackageURL("pypi", name=library.name, version=version)
    return Component(
        type=ComponentType.LIBRARY,
        name=library.name,
        version=version,
        purl=url,
        bom_ref=url.to_string(),
        licenses=[LicenseExpression(library.licence)],
    )


def notice(libraries: dict[str, Library]) -> str:
    """The repository's NOTICE, then every library, then the texts of their licences, each once."""
    others = [libraries[name] for name in sorted(libraries) if name != "overspill"]
    parts = [(ROOT / "NOTICE").read_text("utf-8"), "Libraries that the extras install\n"]
    parts += [f"{lib.name} {lib.found.version}: {lib.licence}" for lib in others]
    named: dict[str, list[str]] = {}
    for library in others:
        for text in library.texts:
            named.setdefault(text, []).append(library.name)
    for text, names in named.items():
        parts.append(f"\n{'-' * 80}\n{', '.join(dict.fromkeys(names))}\n\n{text}")
    return "\n".join(parts) + "\n"


def not_allowed(libraries: dict[str, Library]) -> Iterator[str]:
    """A line for each library that may not be depended on."""
    for name, library in libraries.items():
        try:
            if not is_allowed(library.licence):
                yield f"{name}: {library.licence} is none of the allowed licences"
        except (UnknownLicence, ExpressionError) as error:
            yield str(error)


def main() -> int:
    """Write both files, or say what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "release")
    out: Path = parser.parse_args().out
    libraries, missing = installed(released_extras())
    wrong = list(not_allowed(libraries))
    for line in wrong:
        print(f"release papers: {line}", file=sys.stderr)
    if wrong:
        return 1
    out.mkdir(parents=True, exist_ok=True)
    name = f"overspill-{libraries['overspill'].found.version}.cdx.json"
    (out / name).write_text(bill_of_materials(libraries), "utf-8")
    (out / "NOTICE").write_text(notice(libraries), "utf-8")
    print(f"{out}: {name} and NOTICE name {len(libraries) - 1} libraries")
    if missing:
        print(f"not installed here, and so not named: {', '.join(missing)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
