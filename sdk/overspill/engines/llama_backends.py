"""llama.cpp's compute backends, of a library that has them built in or beside it.

The released library has the CPU's features as variants in files of their own, of which the best
for this machine is chosen when it is loaded (``GGML_BACKEND_DL``). Somebody has to say where they
are: left alone, llama.cpp would look beside the program, and in the current folder.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import llama_cpp as native
from llama_cpp import llama_cpp as binding

from overspill.errors import EngineError


def start_backends() -> None:
    """Initialise llama.cpp, and load the variant for this CPU where none is built in. Safe to
    repeat.

    Raises ``EngineError`` where the library comes with none that runs here.
    """
    native.llama_backend_init()
    library: Any = binding._lib
    if _registered(library):
        return
    folder = Path(binding._base_path)
    library.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    library.ggml_backend_load_all_from_path.restype = None
    library.ggml_backend_load_all_from_path(os.fsencode(folder))
    if not _registered(library):
        raise EngineError(
            f"The engine library in {folder} has no backend for this machine's CPU.",
            mend="Install a build for this machine: pip install --force-reinstall llama-cpp-python",
        )


def _registered(library: Any) -> int:
    """How many backends there are (through the library's own copy of ggml)."""
    library.ggml_backend_reg_count.argtypes = []
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    return int(library.ggml_backend_reg_count())
