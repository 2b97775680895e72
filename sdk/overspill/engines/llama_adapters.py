"""LoRA adapters of the llama.cpp backend: GGUF files of type ``adapter``, loaded beside a model."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp as native

from overspill.engines.adapter_file import adapter_header
from overspill.engines.llama_adapter_swap import AdapterSwap, LoadedAdapter
from overspill.engines.llama_native import native_log
from overspill.errors import EngineError, ModelInvalid


class NativeAdapters:
    """All adapters of one model. They are freed with the model, and die before no context of it.

    Raises :class:`ModelNotFound` and :class:`ModelInvalid` for files that cannot be loaded or
    belong to another model.
    """

    def __init__(self, model: Any, files: Mapping[str, str]) -> None:
        loaded = {name: _load(model, name, Path(path)) for name, path in files.items()}
        self._loaded = {name: each.native for name, each in loaded.items()}
        self._swap = AdapterSwap.of(model, loaded)
        self._attached: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call them."""
        return tuple(self._loaded)

    def use(self, context: Any, name: str | None) -> None:
        """Make the context compute with this adapter alone, at scale 1; None takes all off.

        Where one of the same shape is attached, only its numbers are exchanged.
        """
        carrier = name
        if name is not None:
            carrier = self._swap.carrier(name, self._attached)
            self._swap.point(carrier, name)
        if carrier != self._attached:
            self._attach(context, carrier)
            self._attached = carrier

    def _attach(self, context: Any, name: str | None) -> None:
        chosen = [] if name is None else [self._loaded[name]]
        adapters = (native.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        scales = (ctypes.c_float * len(chosen))(*[1.0] * len(chosen))
        if native.llama_set_adapters_lora(context, adapters, len(chosen), scales):
            raise EngineError(f"llama.cpp cannot switch to adapter {name!r}.")


def adapter_bytes(files: Mapping[str, str]) -> int:
    """What adapters take: their tensors are kept as they are in the file. A file that is not there
    takes nothing; loading it says so."""
    paths = map(Path, files.values())
    return sum(path.stat().st_size for path in paths if path.is_file())


def _load(model: Any, name: str, path: Path) -> LoadedAdapter:
    header = adapter_header(name, path)
    log = native_log()
    log.take()
    adapter = native.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        said = log.take()
        raise ModelInvalid(
            f"llama.cpp cannot load adapter {name!r} from {path}{f': {said}' if said else ''}.",
            mend="Check that it was made for this model.",
        )
    return LoadedAdapter(adapter, header.metadata.get("adapter.lora.alpha"), len(header.tensors))
