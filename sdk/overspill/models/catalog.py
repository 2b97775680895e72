"""The catalog: real, current open models by a short name, with what their publishers say of them.

Sizes and digests are told by the hub when a model is pulled; where the catalog holds one, it has
been verified, and a pull that finds another is refused. An empty one was never verified.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, Literal

from overspill.errors import ConfigurationError, ModelNotFound
from overspill.models.files import Runtime

Place = Literal["device", "cloud"]

_ENTRY_KEYS: Final = frozenset(
    {
        "title",
        "publisher",
        "place",
        "parameters",
        "context_tokens",
        "licence",
        "licence_url",
        "languages",
        "tools",
        "vision",
        "source",
        "variants",
    }
)
_VARIANT_KEYS: Final = frozenset(
    {"runtime", "repo", "choice", "quantization", "size_bytes", "sha256", "checked"}
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of files of a model. ``size_bytes`` and ``sha256`` None were never verified;
    ``checked`` False means that even the repository's name could not be looked up."""

    runtime: Runtime
    repo: str
    choice: str | None
    quantization: str
    size_bytes: int | None = None
    sha256: str | None = None
    checked: bool = False


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model of the catalog. ``parameters`` and ``context_tokens`` are numbers, None unknown;
    ``languages`` is the publisher's own wording; ``source`` the publisher's page."""

    name: str
    title: str
    publisher: str
    place: Place
    parameters: int | None
    context_tokens: int | None
    licence: str
    licence_url: str
    languages: str
    tools: bool | None
    vision: bool
    source: str
    variants: tuple[Variant, ...]

    def variant_for(self, runtime: Runtime) -> Variant:
        """The variant of that runtime, or the first one."""
        return next((v for v in self.variants if v.runtime == runtime), self.variants[0])


@functools.cache
def catalog() -> Mapping[str, CatalogEntry]:
    """All entries by name, as shipped."""
    return parse_catalog(files(__package__).joinpath("catalog.toml").read_text("utf-8"))


def find_entry(name: str) -> CatalogEntry:
    """The entry of that name; ``ModelNotFound`` with near names."""
    entry = catalog().get(name)
    if entry is None:
        raise ModelNotFound.among(name, catalog())
    return entry


def parse_catalog(text: str) -> Mapping[str, CatalogEntry]:
    """Entries from TOML. Raises ``ConfigurationError`` naming entry and key."""
    raw = tomllib.loads(text)
    return {name: _entry(name, fields) for name, fields in raw.items()}


def _entry(name: str, fields: Mapping[str, Any]) -> CatalogEntry:
    _check(name, fields, _ENTRY_KEYS)
    try:
        return CatalogEntry(
            name=name,
            title=fields["title"],
            publisher=fields["publisher"],
            place=fields["place"],
            parameters=fields.get("parameters"),
            context_tokens=fields.get("context_tokens"),
            licence=fields["licence"],
            licence_url=fields["licence_url"],
            languages=fields["languages"],
            tools=fields.get("tools"),
            vision=fields.get("vision", False),
            source=fields["source"],
            variants=tuple(_variant(name, variant) for variant in fields["variants"]),
        )
    except KeyError as error:
        raise ConfigurationError(f"The catalog: '{name}' has no {error}.") from None


def _variant(name: str, fields: Mapping[str, Any]) -> Variant:
    _check(name, fields, _VARIANT_KEYS)
    return Variant(
        runtime=fields["runtime"],
        repo=fields["repo"],
        choice=fields.get("choice"),
        quantization=fields["quantization"],
        size_bytes=fields.get("size_bytes"),
        sha256=fields.get("sha256"),
        checked=fields.get("checked", False),
    )


def _check(name: str, fields: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigurationError(f"The catalog: '{name}' has the unknown key '{unknown[0]}'.")
