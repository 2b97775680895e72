"""What a bundle needs of overspill beyond its imports: most of them are late, or by name."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from PyInstaller.utils.hooks import (
    collect_data_files,
    collect_dynamic_libs,
    collect_submodules,
    copy_metadata,
)

_TOOLS = ("overspill._pyinstaller", "overspill.bench", "overspill.evals", "overspill.testing")
"""What no app needs."""


def _is_needed(module: str) -> bool:
    return not module.startswith(_TOOLS)


hiddenimports = collect_submodules("overspill", filter=_is_needed)
datas = [*collect_data_files("overspill"), *copy_metadata("overspill")]
if find_spec("llguidance") is not None:
    # It asks for its own version when it is imported.
    datas += copy_metadata("llguidance")
binaries: list[tuple[str, str]] = []
if find_spec("llama_cpp") is not None:
    # It loads its libraries by path, from a folder of its own.
    binaries += collect_dynamic_libs("llama_cpp")
if sys.platform == "darwin" and find_spec("mlx") is not None:
    binaries += collect_dynamic_libs("mlx")
    datas += collect_data_files("mlx")
excludedimports = ["IPython", "gguf", "matplotlib", "openai", "pytest", "torch"]
