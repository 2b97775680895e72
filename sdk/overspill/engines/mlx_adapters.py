"""LoRA adapters of the MLX backend: folders as ``mlx_lm.lora`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overspill.engines.mlx_tokenizer import read_json
from overspill.errors import ModelInvalid, ModelNotFound, UnsupportedOption


class FolderAdapters:
    """Each adapter's layers, ready to be put in the place of the model's own.

    A switch exchanges module objects: no weight is copied or computed anew, and without an
    adapter the model is exactly what was loaded.
    """

    def __init__(self, model: Any, folders: Mapping[str, str]) -> None:
        self._model = model
        self._base = dict(model.named_modules()) if folders else {}
        self._layers = {name: self._load(name, Path(path)) for name, path in folders.items()}
        self._using: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call them."""
        return tuple(self._layers)

    def use(self, name: str | None) -> None:
        """Compute with this adapter alone; None takes all off."""
        if name == self._using:
            return
        if self._using is not None:
            self._restore(self._layers[self._using])
        if name is not None:
            self._put(self._layers[name])
        self._using = name

    def close(self) -> None:
        """Let go of all layers."""
        self._model = None
        self._base.clear()
        self._layers.clear()

    def _load(self, name: str, folder: Path) -> dict[str, Any]:
        from mlx_lm.tuner.utils import load_adapters

        if not (folder / "adapters.safetensors").is_file():
            raise ModelNotFound(
                f"There is no adapter in {folder}, given as {name!r}.", mend="Check the path."
            )
        kind = read_json(folder / "adapter_config.json").get("fine_tune_type", "lora")
        if kind != "lora":
            raise UnsupportedOption(
                f"{folder}, given as adapter {name!r}, is of type {kind!r}; MLX switches between "
                "LoRA adapters only.",
                param="adapters",
                mend="Fuse it into a model of its own.",
            )
        try:
            load_adapters(self._model, str(folder))
            self._model.eval()
        except Exception as error:
            # mlx-lm raises whatever a stranger's file makes it stumble over.
            raise ModelInvalid(
                f"MLX cannot load adapter {name!r}: {' '.join(str(error).split())[:300]}.",
                mend="Check that it was made for this model.",
            ) from error
        layers = {
            path: module
            for path, module in self._model.named_modules()
            if "lora_a" in module and path in self._base
        }
        self._restore(layers)
        return layers

    def _restore(self, layers: Mapping[str, Any]) -> None:
        self._put({path: self._base[path] for path in layers})

    def _put(self, layers: Mapping[str, Any]) -> None:
        from mlx.utils import tree_unflatten

        self._model.update_modules(tree_unflatten(list(layers.items())))
