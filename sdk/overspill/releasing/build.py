"""What goes into a release: measured here as a node would, or taken from the built files."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from overspill.errors import MissingExtra, UsageError
from overspill.trust.release_manifest import FILE_DIGEST, TREE_DIGEST, Subject, tree_digest

LIBRARIES: Final = frozenset({".so", ".dylib", ".dll", ".metallib"})
_PACKAGES: Final = ("overspill/", "overspill_cloud/")
_ENGINE_PACKAGE: Final = "llama_cpp/"


def measured_subjects(models: Mapping[str, Path], attester: str) -> tuple[Subject, ...]:
    """Program, engine library, settings and models as a node of this installation measures them.

    Raises ``MissingExtra`` without the cloud service, ``ModelNotFound``.
    """
    points = list(entry_points(group="overspill.measure"))
    if not points:
        raise MissingExtra("Measuring what a node runs", "cloud")
    try:
        measure = points[0].load()
    except ImportError as error:
        raise MissingExtra("Measuring what a node runs", "cloud") from error
    return tuple(_subject(name, digests) for name, digests in measure(models, attester).items())


def wheel_subject(wheel: Path) -> Subject:
    """A built wheel of overspill: the file's digest, and that of the tree which it installs."""
    members = _members(wheel, lambda name: name.startswith(_PACKAGES) and name.endswith(".py"))
    return _archive_subject("wheel", wheel, members)


def engine_subject(engine: Path) -> Subject:
    """The engine library, in its wheel or in the folder of its package."""
    if engine.is_dir():
        files = (p for p in engine.rglob("*") if p.suffix in LIBRARIES and p.is_file())
        found = [(p.relative_to(engine).as_posix(), _sha256(p.read_bytes())) for p in files]
        if not found:
            raise UsageError(f"{engine} holds no library.", mend="Give the built package.")
        return Subject("engine", "llama.cpp", {TREE_DIGEST: tree_digest(found)})
    members = _members(
        engine, lambda name: name.startswith(_ENGINE_PACKAGE) and Path(name).suffix in LIBRARIES
    )
    inside = ((name.removeprefix(_ENGINE_PACKAGE), digest) for name, digest in members)
    return _archive_subject("engine", engine, inside)


def adapter_subject(name: str, file: Path) -> Subject:
    """An adapter, named ``MODEL/ADAPTER``. Raises ``UsageError``."""
    return Subject("adapter", name, {FILE_DIGEST: _sha256(_read(file))})


def replaced(subjects: Iterable[Subject], built: Sequence[Subject]) -> tuple[Subject, ...]:
    """``subjects``, with those of a role that ``built`` has taken from there instead."""
    roles = {subject.role for subject in built}
    return (*(subject for subject in subjects if subject.role not in roles), *built)


def _archive_subject(role: str, file: Path, members: Iterable[tuple[str, bytes]]) -> Subject:
    found = list(members)
    if not found:
        raise UsageError(f"{file} holds no {role}.", mend="Give the built wheel.")
    digests = {FILE_DIGEST: _sha256(_read(file)), TREE_DIGEST: tree_digest(found)}
    return Subject(role, file.name, digests)


def _members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if wanted(name):
                    yield name, _sha256(opened.read(name))
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{archive} is no wheel: {error}.", mend="Give the built wheel."
        ) from error


def _subject(name: str, digests: Mapping[str, bytes]) -> Subject:
    role, _, rest = name.partition("/")
    return Subject(role, rest, dict(digests))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.", mend="Check the path."
        ) from error


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
