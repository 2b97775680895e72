"""Images for llama.cpp, by its multimodal part (mtmd) and a projector file (mmproj).

mtmd cuts an image as the model's family wants it, says which tokens stand around it, and encodes
it; the vectors are decoded here, in rows like any others, so that sequences go on beside them.
Files are decoded by the library's own reader, behind the checks of ``image_header``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp as native
import numpy as np
from llama_cpp import mtmd_cpp as mtmd

from overspill.engines.backend import Picture, PictureSpan, PromptPart
from overspill.engines.image_header import ImageLimits, check_images
from overspill.engines.llama_native import NativeLog
from overspill.errors import EngineError, InvalidRequest, ModelInvalid
from overspill.types.chat import Image

if TYPE_CHECKING:
    import numpy.typing as npt

_SECTIONS = 4
"""Of an M-RoPE position: time, height, width, and one in reserve (``GGML_MROPE_SECTIONS``)."""
_NO_PROGRAMS = os.devnull.encode()
"""Where mtmd looks for ffmpeg: it would hand what it cannot decode to it as a video."""


@dataclass(frozen=True, slots=True)
class VisionOptions:
    """``batch_tokens`` is the most that one decode takes; ``threads`` encode images."""

    batch_tokens: int
    threads: int
    limits: ImageLimits = field(default_factory=ImageLimits)


class LlamaVision:
    """A projector beside a loaded model; see :class:`~overspill.engines.backend.Vision`."""

    def __init__(
        self, path: Path, model: Any, bos_id: int | None, log: NativeLog, options: VisionOptions
    ) -> None:
        self._path = path
        self._bos_id = bos_id
        self._log = log
        self._options = options
        self._lock = threading.Lock()
        self._width = int(native.llama_model_n_embd_inp(model))
        self._context = self._open(model)
        self._grid = bool(mtmd.mtmd_decode_use_mrope(self._context))

    @property
    def shares(self) -> bool:
        """Grid positions are counted from the sequence's start, so they cannot be cut."""
        return not self._grid

    def measure(self, parts: Sequence[PromptPart]) -> tuple[list[int], tuple[PictureSpan, ...]]:
        """By the images' headers: mtmd counts without their pixels."""
        images = tuple(part for part in parts if isinstance(part, Image))
        sizes = check_images(images, self._options.limits)
        with self._lock, ExitStack() as stack:
            bitmaps = [
                self._named(mtmd.mtmd_bitmap_init(width, height, None), number, stack)
                for number, (width, height) in enumerate(sizes)
            ]
            chunks = self._tokenize(parts, bitmaps, stack)
            tokens, spans, _ = self._read(chunks, images)
        self._check_whole(spans)
        return tokens, spans

    def encode(
        self, parts: Sequence[PromptPart], wanted: Sequence[int]
    ) -> Iterator[tuple[int, Picture]]:
        """Decode the images that are wanted, then encode picture by picture."""
        images = tuple(part for part in parts if isinstance(part, Image))
        sizes = check_images(images, self._options.limits)
        _, spans = self.measure(parts)
        seen = {spans[number].image for number in wanted}
        with ExitStack() as stack:
            bitmaps = []
            for number, (image, size) in enumerate(zip(images, sizes, strict=True)):
                bitmap = (
                    self._decoded(image, size)
                    if number in seen
                    else mtmd.mtmd_bitmap_init(*size, None)
                )
                bitmaps.append(self._named(bitmap, number, stack))
            chunks = self._tokenize(parts, bitmaps, stack)
            _, again, natives = self._read(chunks, images)
            if again != spans:
                raise EngineError("llama.cpp cuts an image otherwise than it measured it.")
            starts = self._starts(spans, natives)
            for number in wanted:
                yield number, self._encoded(natives[number], spans[number], starts[number])

    def close(self) -> None:
        """Free the projector."""
        with self._lock:
            context, self._context = self._context, None
            if context:
                mtmd.mtmd_free(context)

    def _open(self, model: Any) -> Any:
        mtmd.mtmd_helper_log_set(self._log.callback, ctypes.c_void_p(0))
        self._log.take()
        params = mtmd.mtmd_context_params_default()
        params.print_timings = False
        params.n_threads = self._options.threads
        # It would encode an empty image: what it would allocate is allocated by the first one.
        params.warmup = False
        context = mtmd.mtmd_init_from_file(os.fsencode(self._path), model, params)
        if context and mtmd.mtmd_support_vision(context):
            return context
        said = self._log.take() or "it reads no images"
        if context:
            mtmd.mtmd_free(context)
        raise ModelInvalid(
            f"{self._path} is no projector for this model: {said}.",
            mend="Use the mmproj file that was published with it.",
        )

    def _named(self, bitmap: Any, number: int, stack: ExitStack) -> Any:
        if not bitmap:
            raise EngineError("llama.cpp has no memory for an image.")
        stack.callback(mtmd.mtmd_bitmap_free, bitmap)
        mtmd.mtmd_bitmap_set_id(bitmap, str(number).encode())
        return bitmap

    def _decoded(self, image: Image, size: tuple[int, int]) -> Any:
        options = mtmd.mtmd_helper_init_opt_default()
        options.video_params.ffmpeg_bin_dir = _NO_PROGRAMS
        data = (ctypes.c_uint8 * len(image.data)).from_buffer_copy(image.data)
        found = mtmd.mtmd_helper_bitmap_init_from_buf_wrapper(
            self._context, data, len(image.data), False, options
        )
        bitmap = found.bitmap
        try:
            if found.video_ctx or not bitmap:
                raise InvalidRequest(
                    f"An image ({image.media_type}) is damaged: it does not decode.",
                    param="messages",
                )
            if (mtmd.mtmd_bitmap_get_nx(bitmap), mtmd.mtmd_bitmap_get_ny(bitmap)) != size:
                raise InvalidRequest(
                    f"An image ({image.media_type}) is not of the size that its header says.",
                    param="messages",
                )
        except InvalidRequest:
            if bitmap:
                mtmd.mtmd_bitmap_free(bitmap)
            if found.video_ctx:
                mtmd.mtmd_helper_video_free(found.video_ctx)
            raise
        finally:
            self._log.take()
        return bitmap

    def _tokenize(self, parts: Sequence[PromptPart], bitmaps: list[Any], stack: ExitStack) -> Any:
        if self._context is None:
            raise EngineError("The model was closed.", mend="Start the engine again.")
        chunks = mtmd.mtmd_input_chunks_init()
        stack.callback(mtmd.mtmd_input_chunks_free, chunks)
        kept, left = [], iter(bitmaps)
        for part in parts:
            native_part = mtmd.mtmd_input_part()
            if isinstance(part, Image):
                native_part.bitmap = next(left)
            else:
                data = part[0].encode("utf-8", "replace")
                text = mtmd.mtmd_input_text(data, len(data), False, part[1])
                native_part.text = ctypes.pointer(text)
            kept.append(native_part)
        pointers = (ctypes.POINTER(mtmd.mtmd_input_part) * len(kept))(*map(ctypes.pointer, kept))
        status = mtmd.mtmd_tokenize_from_parts(self._context, chunks, pointers, len(kept), False)
        if status != 0:
            said = self._log.take() or f"status {status}"
            raise InvalidRequest(f"llama.cpp cannot cut the images: {said}.", param="messages")
        return chunks

    def _read(
        self, chunks: Any, images: Sequence[Image]
    ) -> tuple[list[int], tuple[PictureSpan, ...], list[Any]]:
        """Tokens, spans, and the native chunk of each span."""
        tokens: list[int] = []
        spans: list[PictureSpan] = []
        natives: list[Any] = []
        seeds = [_seed(image) for image in images]
        cuts = [0] * len(images)
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                tokens.extend(_text_tokens(chunk))
                continue
            image = int(mtmd.mtmd_input_chunk_get_id(chunk) or b"0")
            count = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
            whole = bool(mtmd.mtmd_decode_use_non_causal(self._context, chunk))
            spans.append(PictureSpan(len(tokens), count, image, whole))
            natives.append(chunk)
            tokens.extend([seeds[image] - cuts[image]] * count)
            cuts[image] += 1
        if self._bos_id is not None and tokens[:1] != [self._bos_id]:
            tokens.insert(0, self._bos_id)
            spans = [replace(span, start=span.start + 1) for span in spans]
        return tokens, tuple(spans), natives

    def _check_whole(self, spans: Sequence[PictureSpan]) -> None:
        for span in spans:
            if span.whole and span.tokens > self._options.batch_tokens:
                raise InvalidRequest(
                    f"An image takes {span.tokens} tokens that are computed at once; the limit is "
                    f"{self._options.batch_tokens}.",
                    param="messages",
                    mend="Send it smaller.",
                )

    def _starts(self, spans: Sequence[PictureSpan], natives: Sequence[Any]) -> list[int]:
        """At which position of the sequence each picture begins."""
        starts, shift = [], 0
        for span, chunk in zip(spans, natives, strict=True):
            starts.append(span.start + shift)
            shift += int(mtmd.mtmd_input_chunk_get_n_pos(chunk)) - span.tokens
        return starts

    def _encoded(self, chunk: Any, span: PictureSpan, start: int) -> Picture:
        self._log.take()
        if mtmd.mtmd_encode_chunk(self._context, chunk) != 0:
            said = self._log.take()
            raise EngineError(f"llama.cpp cannot encode an image{': ' + said if said else ''}.")
        pointer = mtmd.mtmd_get_output_embd(self._context)
        # The next picture overwrites it.
        vectors = np.ctypeslib.as_array(pointer, (span.tokens, self._width)).copy()
        advance = int(mtmd.mtmd_input_chunk_get_n_pos(chunk))
        return Picture(vectors, self._positions(chunk, span, start), advance, span.whole)

    def _positions(self, chunk: Any, span: PictureSpan, start: int) -> npt.NDArray[np.int32] | None:
        if not self._grid:
            return None
        found = (mtmd.mtmd_decoder_pos * span.tokens)()
        image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        mtmd.mtmd_helper_image_get_decoder_pos(image, start, found)
        columns = np.ctypeslib.as_array(found)
        # In the order of the model's sections: time, height, width.
        return np.stack([columns[name] for name in ("t", "y", "x", "z")]).astype(np.int32)


def _text_tokens(chunk: Any) -> list[int]:
    count = ctypes.c_size_t()
    pointer = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
    return list(pointer[: count.value])


def _seed(image: Image) -> int:
    """A negative number that other images don't have, nor other pictures of this one."""
    digest = hashlib.sha256(image.data).digest()
    return -1 - (int.from_bytes(digest[:12], "big") << 16)
