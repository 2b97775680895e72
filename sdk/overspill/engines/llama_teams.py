"""OpenMP's threads of an engine that rests, where another engine of this process may work.

Each thread that computes has a team of its own. GNU's libgomp lets threads that wait for each other
spin only while all teams together have no more of them than there are cores, and counts those of
who rests (``gomp_managed_threads``, libgomp/config/linux/wait.h): beside an engine that did nothing
steps took more than twice their time. A team that was let go is made again by the next operation.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Final

from llama_cpp import llama_cpp as binding

_SOFT: Final = 1
"""omp_pause_soft (OpenMP 5.0, section 3.2.44): what a program set stays set."""
_lock = threading.Lock()
_models: Counter[int] = Counter()
"""Open models by the thread that computes them: a model and its draft share one."""


class Team:
    """The calling thread's, while it has a model open."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        with _lock:
            _models[self._thread] += 1

    def close(self) -> None:
        """The model is gone."""
        with _lock:
            _models[self._thread] -= 1
            if not _models[self._thread]:
                del _models[self._thread]

    @staticmethod
    def rest() -> bool:
        """The calling thread computes nothing for a while. True where its team was let go: not
        where no other thread of this process has a model, nor where OpenMP is not libgomp's or has
        no such call."""
        library: Any = binding._lib
        if len(_models) < 2 or not hasattr(library, "omp_pause_resource"):
            return False
        return bool(library.omp_pause_resource(_SOFT, library.omp_get_initial_device()) == 0)
