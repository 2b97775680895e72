"""Opens a folder by mlx-lm: the model's code first, its weights once it is known that they fit.

mlx-lm's models come lazily: until an array is asked for its values nothing is read or computed,
but every shape is known. So the model itself says what its caches take, whatever its architecture.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from overspill.engines.loading import on_loaded
from overspill.engines.memory import Fit, available_memory, settle
from overspill.engines.mlx_caches import Caches, can_merge
from overspill.engines.mlx_memory import CacheCost, MlxUse, cost_of, mlx_need
from overspill.engines.mlx_tokenizer import read_json
from overspill.errors import InvalidRequest, ModelInvalid, UnsupportedOption
from overspill.types.card import ModelCard

_PROBES = ([1, 2, 3, 4, 5], [6, 7])
"""Two sequences of unequal length, computed together and alone."""
_ODD = 0.1
"""Of the logits' spread: far more than rounding, even of four bits."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a model; ``context_tokens`` None takes what it was trained for, up to
    ``usual_tokens``. ``outputs_each`` is how many numbers come out for a sequence in a step."""

    context_tokens: int | None
    usual_tokens: int
    max_sequences: int
    outputs_each: int
    adapter_bytes: int = 0
    shrink_context: bool = False


@dataclass(frozen=True, slots=True)
class Outline:
    """What a model is known by before its weights are read."""

    vocabulary_size: int
    weights_bytes: int
    cache_costs: tuple[CacheCost, ...]

    @property
    def padded_token_bytes(self) -> int:
        """Of a token of padding, in the caches that see everything."""
        return sum(cost.token_bytes for cost in self.cache_costs if cost.window_tokens is None)


_TOLD_PARTS = 32
"""In so many parts weights are read at the most, and told of."""


class FolderModel:
    """A model of mlx-lm's; ``read`` has to come before anything is computed.

    Raises :class:`ModelInvalid` for what mlx-lm cannot load.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = read_json(folder / "config.json")
        with self._blamed(), _open_file_limit_kept():
            from mlx_lm.models.cache import make_prompt_cache
            from mlx_lm.utils import load_model

            self.module: Any = load_model(folder, lazy=True)[0]
            self.new_caches: Callable[[], Caches] = lambda: list(make_prompt_cache(self.module))
            self.outline = self._outline()

    @property
    def weights(self) -> list[Any]:
        """All arrays of it."""
        arrays: list[Any] = list(dict(tree_flatten(self.module.parameters())).values())
        return arrays

    def quantize_caches(self, bits: int, name: str) -> None:
        """Keep keys and values in 8 or 4 bits from now on, in groups of 64 or 32 values.

        Raises :class:`UnsupportedOption` where mlx-lm has no such cache for this model.
        """
        if bits not in (4, 8):
            raise InvalidRequest(f"kv_bits is {bits}; it can be 8 or 4.", param="kv_bits")
        plain = self.new_caches
        for group in (64, 32):
            self.new_caches = functools.partial(_quantized, plain, group, bits)
            with contextlib.suppress(Exception):
                # Kinds of caches and models' code each fail in their own way.
                self.outline = self._outline()
                return
        raise UnsupportedOption(
            f"mlx-lm cannot quantize the caches of {name}.",
            param="kv_bits",
            mend="Leave it out.",
        )

    def fit(self, wish: Wish, name: str) -> Fit:
        """Whether it fits, by the largest context that does where that may be made smaller.

        Raises :class:`DoesNotFit`, and :class:`InvalidRequest` for a context beyond its own.
        """
        outline = self.outline
        return settle(
            lambda tokens: mlx_need(
                outline.weights_bytes + wish.adapter_bytes,
                outline.cache_costs,
                self.config,
                wish.outputs_each,
                MlxUse(tokens, wish.max_sequences),
            ),
            name,
            context_tokens=_context_tokens(self.config, wish, name),
            max_sequences=wish.max_sequences,
            available_bytes=available_memory(),
            shrink=wish.shrink_context,
        )

    def read(self, part: Any = None) -> None:
        """Read the weights in, or those of one part of it."""
        wired_bytes = mx.device_info().get("max_recommended_working_set_size")
        if wired_bytes is not None:
            # As mlx-lm does: macOS may page out what is not wired. There is no Metal elsewhere.
            mx.set_wired_limit(int(wired_bytes))
        arrays = dict(tree_flatten((self.module if part is None else part).parameters())).values()
        with self._blamed():
            _read_telling(list(arrays))

    def close(self) -> None:
        """Let go of the weights."""
        self.module = None
        self.new_caches = list
        mx.clear_cache()

    def card(self, fit: Fit, name: str) -> ModelCard:
        """What there is to say about it."""
        quantization = self.config.get("quantization") or {}
        bits = quantization.get("bits")
        return ModelCard(
            name=name,
            context=fit.context_tokens,
            runtime="mlx",
            quantization=f"{bits}-bit" if bits else _dtype(self.weights),
            parameters=0 if quantization else sum(array.size for array in self.weights),
            size_bytes=weights_bytes(self._folder),
            memory_bytes=fit.need.total_bytes,
            notes=fit.notes,
        )

    def steps_together(self) -> bool:
        """Whether it computes sequences in one batch as it does each alone.

        mlx-lm has no batch caches of some kinds, and some of its models take positions for plain
        numbers, which in a batch they are not: those raise, or give something else.
        """
        parts = [self.new_caches() for _ in _PROBES]
        if not can_merge(parts[0]):
            return False
        ends = [tokens[-1:] for tokens in _PROBES]
        with self._blamed():
            for tokens, caches in zip(_PROBES, parts, strict=True):
                self.module(mx.array([tokens[:-1]]), cache=caches)
            alone = mx.concatenate(
                [
                    self.module(mx.array([end]), cache=copy.deepcopy(caches))
                    for end, caches in zip(ends, parts, strict=True)
                ]
            )
            mx.eval(alone)
        try:
            batch = [layer[0].merge(list(layer)) for layer in zip(*parts, strict=True)]
            beside = self.module(mx.array(ends), cache=batch)
            spread, odd = (
                float(_length(array)) for array in (alone - alone.mean(), beside - alone)
            )
        except Exception:
            # Whatever a model stumbles over, it did not when it ran alone.
            return False
        return odd <= _ODD * spread

    def _outline(self) -> Outline:
        caches = self.new_caches()
        logits = self.module(mx.array([[0]]), cache=caches)
        costs = tuple(cost for cache in caches for cost in cost_of(cache))
        return Outline(int(logits.shape[-1]), sum(array.nbytes for array in self.weights), costs)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # mlx and mlx-lm raise whatever a stranger's file makes them stumble over.
            line = " ".join(f"{error}".split())[:300]
            raise ModelInvalid(
                f"MLX cannot load {self._folder}: {line}.",
                mend="Fetch the model again, or use another.",
            ) from error


def _quantized(plain: Callable[[], Caches], group: int, bits: int) -> Caches:
    return [cache.to_quantized(group_size=group, bits=bits) for cache in plain()]


def _read_telling(arrays: list[Any]) -> None:
    """Read the arrays in, a part at a time, and tell how far it is."""
    tell, all_bytes = on_loaded(), sum(array.nbytes for array in arrays)
    group: list[Any] = []
    read = held = 0
    for array in arrays:
        group.append(array)
        held += array.nbytes
        if held * _TOLD_PARTS >= all_bytes:
            mx.eval(group)
            read, held, group = read + held, 0, []
            tell(read / all_bytes)
    mx.eval(group)


def _length(array: Any) -> Any:
    return mx.sqrt(mx.square(array.astype(mx.float32)).sum())


@contextmanager
def _open_file_limit_kept() -> Iterator[None]:
    """mlx-lm sets the process's limits of open files when it is imported; put the soft one back."""
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A lowered hard limit can't be raised again: as much as there is.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))


def weights_bytes(folder: Path) -> int:
    """Of the files with weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _context_tokens(config: dict[str, Any], wish: Wish, name: str) -> int:
    text = config.get("text_config") or config
    trained = text.get("max_position_embeddings")
    if not isinstance(trained, int) or trained < 1:
        trained = wish.usual_tokens
    if wish.context_tokens is None:
        return min(trained, wish.usual_tokens)
    if not 1 <= wish.context_tokens <= trained:
        raise InvalidRequest(
            f"context_tokens is {wish.context_tokens}; {name} was trained for {trained}.",
            param="context_tokens",
            mend="Ask for a smaller context.",
        )
    return wish.context_tokens


def _dtype(weights: list[Any]) -> str:
    largest = max(weights, key=lambda array: array.size)
    return str(largest.dtype).rpartition(".")[2]
