"""The models that a node serves: measured when loaded, and checked to be the same ever after."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from overspill.engines.base import Engine
from overspill.errors import ModelInvalid, ModelNotFound
from overspill.types.card import ModelCard

_Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A file's SHA-256, and the stamp (device, inode, size, mtime, ctime) it then had."""

    path: Path
    sha256: bytes
    size_bytes: int
    stamp: _Stamp


def measure(path: Path) -> Measurement:
    """Hash a model file. Raises ``ModelNotFound``; ``ModelInvalid`` if it changes meanwhile."""
    try:
        with path.open("rb") as file:
            before = _stamp(os.fstat(file.fileno()))
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, "sha256").digest()
            after = _stamp(os.fstat(file.fileno()))
    except OSError as error:
        raise ModelNotFound(
            f"The model file {path} cannot be read: {error.strerror}.",
            mend="Give the path of a model file: --model NAME=FILE",
        ) from error
    if before != after:
        raise ModelInvalid(f"{path} changed while it was measured.", mend="Start the node again.")
    return Measurement(path, digest, size, before)


@dataclass(slots=True)
class ServedModel:
    """A running engine under its public name, and the file that it was loaded from.

    ``measurement`` None is the ``echo`` engine, which has no file; its digest is that of nothing.
    """

    name: str
    engine: Engine
    measurement: Measurement | None
    _checked: _Stamp | None = field(default=None, init=False)

    @property
    def sha256(self) -> bytes:
        """The digest that evidence, card and receipts name."""
        return self.measurement.sha256 if self.measurement else hashlib.sha256().digest()

    @property
    def card(self) -> ModelCard:
        """The engine's card under the served name, with the measured digest."""
        size = self.measurement.size_bytes if self.measurement else 0
        return replace(self.engine.card, name=self.name, sha256=self.sha256.hex(), size_bytes=size)

    async def check_unchanged(self) -> None:
        """Raise ``ModelInvalid`` when the file is no longer the one in the evidence.

        Costs one ``stat``; a file whose stamp moved is read again.
        """
        if self.measurement is None:
            return
        known = self._checked or self.measurement.stamp
        try:
            found = _stamp(self.measurement.path.stat())
        except OSError:
            raise self._changed() from None
        if found == known:
            return
        again = await asyncio.to_thread(measure, self.measurement.path)
        if again.sha256 != self.measurement.sha256:
            raise self._changed()
        self._checked = again.stamp

    def _changed(self) -> ModelInvalid:
        return ModelInvalid(
            f"The file of model '{self.name}' is not the one that this node's evidence names.",
            mend="The node's operator has to restart it.",
        )


def pick(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    """The named model, or the first one. Raises ``ModelNotFound`` with the names there are."""
    if name is None:
        return next(iter(models.values()))
    try:
        return models[name]
    except KeyError:
        raise ModelNotFound(
            f"This node has no model '{name}'.", mend=f"It serves: {', '.join(models)}."
        ) from None


def _stamp(stat: os.stat_result) -> _Stamp:
    # ctime too: a file's owner can set its mtime back, but not its ctime.
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
