"""The models on this machine: a folder each, with a note of where it came from and its digests.

::

    <data>/models/qwen3-0.6b/model.json      what it is
    <data>/models/qwen3-0.6b/Qwen3-0.6B-Q8_0.gguf
    <data>/models/.pulling/...               half a pull; nothing looks there but the next one

A model appears by one rename, whole: nobody ever opens half of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from overspill.errors import ConfigurationError, ModelInvalid, ModelNotFound, UsageError
from overspill.models.download import check_disk
from overspill.models.files import Runtime

NOTE: Final = "model.json"
NOTE_VERSION: Final = 1
PULLING: Final = ".pulling"
RESERVED: Final = frozenset({"brook", "echo"})
"""Names that always mean what ships in the wheel."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model here. ``main`` is the file a runtime opens, or "." for the folder itself.

    ``sha256`` has the digest of each file in hex; ``revision`` the commit it was pinned to.
    """

    name: str
    runtime: Runtime
    main: str
    size_bytes: int
    sha256: dict[str, str]
    source: str
    added: str
    revision: str | None = None
    licence: str | None = None
    folder: Path = field(default_factory=Path)

    @property
    def path(self) -> Path:
        """What a runtime opens."""
        return self.folder if self.main == "." else self.folder / self.main


class ModelStore:
    """The models under one folder. Nothing is made before something is put there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def models(self) -> tuple[StoredModel, ...]:
        """All of them by name. Raises ``ConfigurationError`` for a note that cannot be read."""
        return tuple(sorted(self._found(), key=lambda model: model.name))

    def find(self, name: str) -> StoredModel | None:
        """The model of that name, or None."""
        if not _NAME.fullmatch(name):
            return None
        note = self.folder / name / NOTE
        return self._read(note) if note.is_file() else None

    def pulling_folder(self, name: str) -> Path:
        """Where a pull of that name collects its files; made if need be."""
        folder = self.folder / PULLING / checked_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def place(self, collected: Path, model: StoredModel) -> StoredModel:
        """Put a whole model in place by one rename; one of that name is replaced."""
        write_note(collected, model)
        target = self.folder / checked_name(model.name)
        old = self.folder / PULLING / f"{model.name}.old"
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        collected.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        return dataclasses.replace(model, folder=target)

    def import_file(self, source: Path, name: str | None = None) -> StoredModel:
        """Copy a ``.gguf`` file or a folder in the MLX layout into the store.

        Whether a runtime can open it is checked by who calls. Raises ``ModelNotFound``,
        ``ModelInvalid``, ``UsageError`` for a name that is taken or no name, ``DoesNotFit``.
        """
        if not source.exists():
            raise ModelNotFound(f"There is no file at {source}.", mend="Check the path.")
        name = checked_name(name or slug(source.name))
        if self.find(name) is not None:
            raise UsageError(
                f"There is a model '{name}' already.",
                mend=f"Give --name, or run: overspill models remove {name}",
            )
        files = _importable(source)
        self.folder.mkdir(parents=True, exist_ok=True)
        check_disk(self.folder, sum(file.stat().st_size for file in files), str(source))
        collected = self.pulling_folder(name)
        sha256 = {file.name: _copy(file, collected / file.name) for file in files}
        runtime: Runtime = "llama.cpp" if source.is_file() else "mlx"
        return self.place(
            collected,
            StoredModel(
                name=name,
                runtime=runtime,
                main=files[0].name if source.is_file() else ".",
                size_bytes=sum(file.stat().st_size for file in files),
                sha256=sha256,
                source=str(source.resolve()),
                added=now_utc(),
            ),
        )

    def remove(self, name: str) -> StoredModel:
        """Delete a model; ``ModelNotFound`` with near names where there is none."""
        model = self.find(name)
        if model is None:
            raise ModelNotFound.among(name, (m.name for m in self.models()))
        # Renamed first: whoever looks now finds all of it or none.
        away = self.folder / PULLING / f"{name}.removed"
        away.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(away, ignore_errors=True)
        model.folder.rename(away)
        shutil.rmtree(away)
        return model

    def check(self, model: StoredModel) -> None:
        """Read all its files again; ``ModelInvalid`` for one that is gone or another by now."""
        for name, expected in model.sha256.items():
            file = model.folder / name
            if not file.is_file():
                raise ModelInvalid(f"{file} is gone.", mend=f"overspill models pull {model.name}")
            if sha256_of(file) != expected:
                raise ModelInvalid(
                    f"{file} is not the file that was put there.",
                    mend=f"Run: overspill models remove {model.name}, and pull it again.",
                )

    def _found(self) -> Iterator[StoredModel]:
        if not self.folder.is_dir():
            return
        for note in self.folder.glob(f"*/{NOTE}"):
            yield self._read(note)

    def _read(self, note: Path) -> StoredModel:
        try:
            raw = json.loads(note.read_text("utf-8"))
            if raw.pop("version") != NOTE_VERSION:
                raise ValueError("another version")
            return StoredModel(**raw, folder=note.parent)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                f"{note} cannot be read ({type(error).__name__}).",
                mend=f"Remove {note.parent} and pull the model again.",
            ) from None


def write_note(folder: Path, model: StoredModel) -> None:
    """Write the note of a model into its folder."""
    raw: dict[str, Any] = {"version": NOTE_VERSION, **dataclasses.asdict(model)}
    del raw["folder"]
    (folder / NOTE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def slug(file_name: str) -> str:
    """A name for the store from a file's: lower case, plain characters, without ``.gguf``."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", file_name.lower().removesuffix(".gguf"))
    return plain.strip("-._") or "model"


def checked_name(name: str) -> str:
    """The name, or ``UsageError`` for one that could not be a folder, or is taken by the wheel."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"'{name[:80]}' cannot name a model here.",
            mend="Use up to 100 lower-case letters, digits, dots, dashes and underscores.",
        )
    return name


def sha256_of(file: Path) -> str:
    """The digest of a file in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def now_utc() -> str:
    """This moment, RFC 3339, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _importable(source: Path) -> list[Path]:
    if source.is_file():
        with source.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelInvalid(f"{source} is not a GGUF file.", mend="Give a .gguf file.")
        return [source]
    files = sorted(file for file in source.iterdir() if file.is_file())
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ModelInvalid(
            f"{source} is no folder in the MLX layout: config.json and safetensors are missing.",
            mend="Give such a folder, or a .gguf file.",
        )
    wanted = (".json", ".safetensors", ".model", ".txt", ".jinja")
    return [file for file in files if file.suffix in wanted and file.name != NOTE]


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while data := reading.read(_BLOCK):
            digest.update(data)
            writing.write(data)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()
