"""The models that a node serves: measured when loaded, and checked to be the same ever after."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from overspill.engines.base import Engine
from overspill.errors import ModelError, ModelInvalid, ModelNotFound
from overspill.types.card import ModelCard

_Stamp = tuple[tuple[str | int, ...], ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A model's SHA-256, and its stamp then: (name, device, inode, size, mtime, ctime) per file."""

    path: Path
    sha256: bytes
    size_bytes: int
    stamp: _Stamp


def measure(path: Path) -> Measurement:
    """Hash a model file, or a folder in the MLX layout (over its files' names and hashes).

    Raises ``ModelNotFound``; ``ModelInvalid`` if it changes meanwhile.
    """
    try:
        before = _stamp(path)
        digest = _digest(path)
        after = _stamp(path)
    except OSError as error:
        raise ModelNotFound(
            f"The model {path} cannot be read: {error.strerror}.",
            mend="Give the path of a model file: --model NAME=FILE",
        ) from error
    if before != after:
        raise ModelInvalid(f"{path} changed while it was measured.", mend="Start the node again.")
    return Measurement(path, digest, sum(int(entry[3]) for entry in before), before)


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _digest(path: Path) -> bytes:
    if not path.is_dir():
        return _file_digest(path)
    whole = hashlib.sha256(b"overspill/v1/model-folder\x00")
    for file in _files(path):
        name = hashlib.sha256(file.relative_to(path).as_posix().encode()).digest()
        whole.update(name + _file_digest(file))
    return whole.digest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _stamp(path: Path) -> _Stamp:
    # ctime too: a file's owner can set its mtime back, but not its ctime.
    return tuple(
        (file.name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for file in _files(path)
        for s in (file.stat(),)
    )


@dataclass(slots=True)
class ServedModel:
    """A running engine under its public name, and the files that it was loaded from.

    ``measurement`` None is an engine without a file: ``echo``, whose digest is that of nothing, or
    an upstream whose weights were not named, and then it is that of ``stands_for``.
    ``adapters`` are its LoRA adapters by name. ``kv_tokens`` is what its cache holds, all sequences
    together; None where nobody said. ``prices_per_mtok`` are currency units for a million tokens
    of prompts, and of answers.
    """

    name: str
    engine: Engine
    measurement: Measurement | None
    adapters: Mapping[str, Measurement] = field(default_factory=dict)
    kv_tokens: int | None = None
    prices_per_mtok: tuple[float, float] = (0.0, 0.0)
    stands_for: bytes = b""
    _checked: dict[Path, _Stamp] = field(default_factory=dict, init=False)

    @property
    def sha256(self) -> bytes:
        """The digest that evidence, card and receipts name."""
        if self.measurement is None:
            return hashlib.sha256(self.stands_for).digest()
        return self.measurement.sha256

    def adapter_sha256(self, name: str | None) -> bytes:
        """The digest of an adapter that evidence and receipts name; zeros for none."""
        measured = self.adapters.get(name or "")
        return measured.sha256 if measured else bytes(32)

    @property
    def card(self) -> ModelCard:
        """The engine's card under the served name, with the measured digest and the prices."""
        size = self.measurement.size_bytes if self.measurement else 0
        prompt, completion = self.prices_per_mtok
        return replace(
            self.engine.card,
            name=self.name,
            sha256=self.sha256.hex(),
            size_bytes=size,
            price_prompt_per_mtok=prompt,
            price_completion_per_mtok=completion,
        )

    async def check_unchanged(self) -> None:
        """Raise ``ModelInvalid`` when a file is no longer the one in the evidence.

        Costs a ``stat`` per file; what moved is read again.
        """
        for measured in (self.measurement, *self.adapters.values()):
            if measured is not None:
                await self._check(measured)

    async def _check(self, measured: Measurement) -> None:
        known = self._checked.get(measured.path, measured.stamp)
        try:
            found = _stamp(measured.path)
        except OSError:
            raise self._changed() from None
        if found == known:
            return
        try:
            again = await asyncio.to_thread(measure, measured.path)
        except ModelError:  # it names the file as this machine knows it
            raise self._changed() from None
        if again.sha256 != measured.sha256:
            raise self._changed()
        self._checked[measured.path] = again.stamp

    def _changed(self) -> ModelInvalid:
        return ModelInvalid(
            f"A file of model '{self.name}' is not the one that this node's evidence names.",
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
