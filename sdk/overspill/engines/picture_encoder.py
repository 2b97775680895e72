"""Encodes pictures on a thread of its own, one at a time, while the scheduler goes on stepping.

An image encoder has no way to be stopped, so a cancel takes effect behind the picture that is
being encoded; nobody but the next picture waits for that one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from overspill.errors import EngineError, OverspillError

if TYPE_CHECKING:
    from overspill.engines.backend import Vision
    from overspill.engines.generation import Generation
    from overspill.engines.picture_prompt import PicturePrompt


class PictureEncoder:
    """``wake`` is called whenever a picture is there, or will never be."""

    def __init__(self, vision: Vision, wake: Callable[[], None]) -> None:
        self._vision = vision
        self._wake = wake
        self._closing = False
        self._queue: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="overspill-pictures", daemon=True)
        self._thread.start()

    def put(self, generation: Generation) -> None:
        """Encode what an admitted generation still needs, behind those that came before."""
        if generation.pictures is not None:
            self._queue.put(generation)

    def close(self) -> None:
        """Wait for the picture that is being encoded, and drop the others."""
        self._closing = True
        self._queue.put(None)
        self._thread.join()

    def _main(self) -> None:
        while (generation := self._queue.get()) is not None:
            pictures = generation.pictures
            if pictures is not None and not self._is_over(generation):
                try:
                    self._encode(generation, pictures)
                except OverspillError as error:
                    pictures.failure = error
                except Exception as error:
                    # Whatever it is, it ends this generation and not the thread.
                    pictures.failure = EngineError(
                        f"An image could not be encoded: {type(error).__name__}: {error}"
                    )
                self._wake()

    def _encode(self, generation: Generation, pictures: PicturePrompt) -> None:
        wanted = pictures.missing(generation.computed)
        for number, picture in self._vision.encode(pictures.parts, wanted):
            pictures.ready[number] = picture
            self._wake()
            if self._is_over(generation):
                return

    def _is_over(self, generation: Generation) -> bool:
        return self._closing or generation.cancelled or generation.ended
