"""Changing between LoRA adapters without llama.cpp planning its graph anew.

Attaching another adapter makes llama.cpp build its largest graphs again: 5 ms of a step of 53
(0.5 B, 4 rows), at every turn. Adapters of one shape differ in their numbers only; so one of them
stays attached, and its tensors point at the numbers of the one whose turn it is.

``ggml_tensor`` is public (ggml.h), but no function leads from an adapter to its tensors: they are
seen in the graph of one token, planned in a small context of its own. Where anything is not as
expected - another layout, weights outside the host's memory, adapters of unlike shapes - nothing is
swapped, and adapters are attached as usual.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp as native

from overspill.engines.llama_native import AbortFlag

_LORA_SUFFIXES = (b".lora_a", b".lora_b")
_FUNCTIONS = ("ggml_get_name", "ggml_get_data", "ggml_nbytes", "ggml_backend_buffer_is_host")
_LOOK_CONTEXT_TOKENS = 32


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h, as far as it is read here."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """llama.cpp's own pointer, and what its file says: ``alpha`` as it is, and how many tensors."""

    native: Any
    alpha: object
    tensors: int


@dataclass(frozen=True, slots=True)
class _Weights:
    """Where the tensors of one adapter lie, by name; ``shape`` is equal for those alike."""

    tensors: tuple[int, ...]
    numbers: tuple[int, ...]
    shape: tuple[object, ...]


class AdapterSwap:
    """Lets one attached adapter compute with the numbers of another of its shape."""

    def __init__(self, weights: Mapping[str, _Weights]) -> None:
        self._weights = weights

    @classmethod
    def of(cls, model: Any, adapters: Mapping[str, LoadedAdapter]) -> AdapterSwap:
        """Looks at loaded adapters by name; those that cannot be swapped are left out."""
        if len(adapters) < 2 or _library() is None:
            return cls({})
        with _looking(model) as look:
            seen = {name: _weights(look(each.native), each) for name, each in adapters.items()}
        return cls({name: weights for name, weights in seen.items() if weights is not None})

    def carrier(self, name: str, attached: str | None) -> str:
        """The one to attach for ``name``: what is attached, if of the same shape, else itself."""
        mine, other = self._weights.get(name), self._weights.get(attached or "")
        if attached is None or mine is None or other is None or mine.shape != other.shape:
            return name
        return attached

    def point(self, carrier: str, name: str) -> None:
        """Let ``carrier``, of the same shape, compute with the numbers of ``name``."""
        if carrier in self._weights:
            numbers = self._weights[name].numbers
            for tensor, data in zip(self._weights[carrier].tensors, numbers, strict=True):
                _Tensor.from_address(tensor).data = data


@contextmanager
def _looking(model: Any) -> Iterator[Callable[[Any], Sequence[int]]]:
    """A function that gives the addresses of an adapter's tensors; none where it cannot look."""
    seen: set[int] = set()

    def note(node: int, ask: bool, _: int) -> bool:
        if ask and _is_known_layout(node):
            seen.add(_Tensor.from_address(node).src[0] or node)
        return False

    kind = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_size_t, ctypes.c_bool, ctypes.c_size_t)
    callback = kind(note)
    params = native.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = _LOOK_CONTEXT_TOKENS, 1, 1
    params.n_threads = params.n_threads_batch = 1
    params.cb_eval = ctypes.cast(callback, native.ggml_backend_sched_eval_callback)
    abort = AbortFlag()
    abort.set()
    params.abort_callback, params.abort_callback_data = abort.callback, abort.data
    context = native.llama_init_from_model(model, params)
    if not context:
        yield lambda _: ()
        return

    def look(adapter: Any) -> Sequence[int]:
        seen.clear()
        chosen = (native.llama_adapter_lora_p_ctypes * 1)(adapter)
        native.llama_set_adapters_lora(context, chosen, 1, (ctypes.c_float * 1)(1.0))
        native.llama_memory_clear(native.llama_get_memory(context), False)
        tokens = (native.llama_token * 1)(0)
        # It ends by the abort, having named every operation and computed none.
        native.llama_decode(context, native.llama_batch_get_one(tokens, 1))
        return [tensor for tensor in seen if _is_lora(tensor)]

    try:
        yield look
    finally:
        native.llama_free(context)


def _is_known_layout(address: int) -> bool:
    """Whether ggml's own functions find name and data where ``_Tensor`` has them."""
    return bool(
        _ggml("ggml_get_name", ctypes.c_void_p, address) == address + _Tensor.name.offset
        and _ggml("ggml_get_data", ctypes.c_void_p, address) == _Tensor.from_address(address).data
    )


def _is_lora(address: int) -> bool:
    return _is_known_layout(address) and bool(
        _Tensor.from_address(address).name.endswith(_LORA_SUFFIXES)
    )


def _weights(addresses: Sequence[int], adapter: LoadedAdapter) -> _Weights | None:
    """None where they are not what this module can point elsewhere."""
    named = sorted((bytes(_Tensor.from_address(a).name), a) for a in addresses)
    tensors = [_Tensor.from_address(address) for _, address in named]
    if len(named) != adapter.tensors or not all(
        map(_is_plain, (address for _, address in named), tensors)
    ):
        return None
    shape = tuple((t.name, t.type, *t.ne, *t.nb) for t in tensors)
    return _Weights(
        tuple(address for _, address in named),
        tuple(int(t.data) for t in tensors),
        (adapter.alpha, *shape),
    )


def _is_plain(address: int, tensor: _Tensor) -> bool:
    """Whether it is a matrix in the host's memory, of which no runtime keeps another form."""
    return (
        _ggml("ggml_nbytes", ctypes.c_size_t, address) == tensor.ne[1] * tensor.nb[1]
        and tensor.ne[2] == tensor.ne[3] == 1
        and tensor.buffer is not None
        and bool(_ggml("ggml_backend_buffer_is_host", ctypes.c_bool, tensor.buffer))
        and tensor.extra is None
        and tensor.view_src is None
    )


@functools.cache
def _library() -> Any:
    """ggml, where the bindings have it and it has all that is asked here; else None."""
    try:
        from llama_cpp._ggml import libggml

        for name in _FUNCTIONS:
            getattr(libggml, name)
    except (ImportError, AttributeError):
        return None
    return libggml


def _ggml(name: str, result: Any, address: int) -> Any:
    function = getattr(_library(), name)
    function.argtypes, function.restype = [ctypes.c_void_p], result
    return function(address)
