"""Images on llama.cpp, by projectors with random weights: what they change, and what they cost.

Each kind of projector does something else to a sequence: ``mlp`` stands for those whose vectors
are decoded like tokens, ``tiles`` for those that cut an image into several, ``gemma3`` for images
that see themselves, ``qwen2vl_merger`` for positions in a grid (M-RoPE).
"""

from __future__ import annotations

import asyncio
import ctypes
from contextlib import aclosing

import numpy as np
import pytest

from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.registry import open_engine
from overspill.errors import (
    ContextOverflow,
    DeadlineExceeded,
    InvalidRequest,
    ModelInvalid,
    ModelNotFound,
    UnsupportedOption,
)
from overspill.types.chat import FinishReason, Image, Message, Request
from overspill.worker import WorkerEngine

pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")

pytestmark = pytest.mark.anyio

KINDS = ["mlp", "tiles", "gemma3", "qwen2vl_merger"]
WORDS = "look at this"


@pytest.fixture(scope="module")
def noise(made_mmproj):
    """``noise(1)``: a picture of its own for each number, as PNG."""
    return made_mmproj.noise


def show(*images, text=WORDS, **options) -> Request:
    """A request that shows images, each before another character of its text."""
    shown = tuple(Image(data, "image/png", 5 + n) for n, data in enumerate(images))
    options = {"max_tokens": 6, "top_logprobs": 0, **options}
    return Request((Message("user", text, images=shown),), **options)


def logprobs_of(chunks) -> list[float]:
    """Of the tokens that were chosen."""
    return [logprob.logprob for chunk in chunks for logprob in chunk.logprobs]


@pytest.fixture(scope="module")
def files(made_gguf, made_mmproj, tmp_path_factory):
    """``files("mlp")``: a model and a projector for it."""
    folder = tmp_path_factory.mktemp("vision")

    return lambda kind: made_mmproj.pair(made_gguf, folder, kind)


@pytest.fixture(scope="module")
def open_seeing(files):
    """``open_seeing("gemma3")``: an engine that reads images, exact and on one thread."""

    def build(kind, *, worker=False, **options):
        model, projector = files(kind)
        settings = EngineOptions(
            **{
                "context_tokens": 256,
                "mmproj": str(projector),
                "threads": 1,
                "exact_attention": True,
                **options,
            }
        )
        return (WorkerEngine if worker else open_engine)(str(model), options=settings)

    return build


@pytest.fixture(scope="module", params=KINDS)
async def seeing(request, open_seeing):
    """A running engine of each kind."""
    async with open_seeing(request.param) as engine:
        yield engine


@pytest.fixture(scope="module")
async def plain(open_seeing):
    """A running engine of the plainest kind."""
    async with open_seeing("mlp") as engine:
        yield engine


async def test_the_same_image_gives_the_same_answer_and_another_one_another(seeing, kit, noise):
    first, again, other, none = [
        await kit.collect(seeing, show(*images))
        for images in ((noise(1),), (noise(1),), (noise(2),), ())
    ]
    assert logprobs_of(first) == logprobs_of(again)
    assert kit.tokens_of(first) == kit.tokens_of(again)
    assert not np.allclose(logprobs_of(first), logprobs_of(other), atol=1e-3)
    assert not np.allclose(logprobs_of(first), logprobs_of(none), atol=1e-3)


async def test_usage_counts_an_images_tokens(seeing, kit, noise):
    requests = [show(), show(noise(1)), show(noise(1), noise(2))]
    counted = [await seeing.count_prompt_tokens(request) for request in requests]
    answers = [await kit.collect(seeing, request) for request in requests]
    assert counted == [chunks[-1].finish.usage.prompt_tokens for chunks in answers]
    assert counted[1] >= counted[0] + 4
    assert counted[2] >= counted[1] + 4


async def test_an_image_that_is_cut_into_several_counts_them_all(open_seeing, noise):
    async with open_seeing("tiles") as engine:
        none, one = [await engine.count_prompt_tokens(show(*i)) for i in ((), (noise(1),))]
    # The overview and its tiles, each of 16.
    assert one - none >= 3 * 16


async def test_the_order_of_two_images_matters(seeing, kit, noise):
    one, other = noise(1), noise(2)
    there = await kit.collect(seeing, show(one, other))
    back = await kit.collect(seeing, show(other, one))
    assert not np.allclose(logprobs_of(there), logprobs_of(back), atol=1e-3)


async def test_images_and_texts_run_beside_each_other_as_alone(seeing, kit, noise):
    requests = [show(noise(n)) if n % 2 else show(text=f"{WORDS} {n}") for n in range(4)]
    alone = [await kit.collect(seeing, request) for request in requests]
    beside = await asyncio.gather(*(kit.collect(seeing, request) for request in requests))
    for one, other in zip(alone, beside, strict=True):
        assert kit.tokens_of(one) == kit.tokens_of(other)
        assert np.allclose(logprobs_of(one), logprobs_of(other), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [1, 2])
async def test_it_computes_what_the_librarys_own_reference_does(
    kind, images, files, open_seeing, kit, noise
):
    shown = [noise(n) for n in range(images)]
    # Chunks shorter than an image, so that it is computed in parts where it may be.
    scheduler = SchedulerOptions(prefill_chunk_tokens=5, speculation="off")
    async with open_seeing(kind, scheduler=scheduler) as engine:
        chunks = await kit.collect(engine, show(*shown, max_tokens=5, top_logprobs=3))
    model, projector = files(kind)
    # As the made model's template writes it: images at characters 5, 6, ...
    text = (
        "user: look "
        + "".join(f"<__media__>{letter}" for letter in WORDS[5 : 5 + images])
        + WORDS[5 + images :]
        + "\n"
    )
    tokens, logprobs = reference(model, projector, text, shown, 5)
    assert kit.tokens_of(chunks) == tokens
    assert np.allclose(logprobs_of(chunks), logprobs, atol=1e-4)


def reference(model_path, projector_path, text, images, count):
    """Greedy tokens and their log-probs by ``mtmd_tokenize`` and ``mtmd_helper_eval_chunks``."""
    import llama_cpp as native
    from llama_cpp import mtmd_cpp as mtmd

    model = native.llama_model_load_from_file(
        str(model_path).encode(), native.llama_model_default_params()
    )
    params = native.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 256, 256, 256
    params.type_k = params.type_v = 0
    params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads = params.n_threads_batch = 1
    context = native.llama_init_from_model(model, params)
    options = mtmd.mtmd_context_params_default()
    options.warmup, options.n_threads = False, 1
    projector = mtmd.mtmd_init_from_file(str(projector_path).encode(), model, options)
    bitmaps = [
        mtmd.mtmd_helper_bitmap_init_from_buf(
            projector, (ctypes.c_uint8 * len(data)).from_buffer_copy(data), len(data), False
        )
        for data in images
    ]
    chunks = mtmd.mtmd_input_chunks_init()
    data = text.encode()
    spoken = mtmd.mtmd_input_text(data, len(data), True, True)
    array = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
    assert mtmd.mtmd_tokenize(projector, chunks, ctypes.byref(spoken), array, len(bitmaps)) == 0
    past = native.llama_pos(0)
    assert (
        mtmd.mtmd_helper_eval_chunks(
            projector, context, chunks, 0, 0, 256, True, ctypes.byref(past)
        )
        == 0
    )
    size = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
    tokens, logprobs = [], []
    position = past.value
    for _ in range(count):
        row = np.ctypeslib.as_array(native.llama_get_logits_ith(context, -1), (size,))
        row = row.astype(np.float64)
        row -= row.max() + np.log(np.exp(row - row.max()).sum())
        tokens.append(int(row.argmax()))
        logprobs.append(float(row.max()))
        batch = native.llama_batch_init(1, 0, 1)
        batch.n_tokens, batch.token[0], batch.pos[0] = 1, tokens[-1], position
        batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, 1
        assert native.llama_decode(context, batch) == 0
        native.llama_batch_free(batch)
        position += 1
    mtmd.mtmd_input_chunks_free(chunks)
    for bitmap in bitmaps:
        mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_free(projector)
    native.llama_free(context)
    native.llama_model_free(model)
    return tokens, logprobs


async def test_a_prompt_that_its_images_make_too_long_is_refused_with_numbers(seeing, noise):
    many = [noise(n) for n in range(8)]
    request = show(*many, text=" ".join([WORDS] * 4), max_tokens=100)
    counted = await seeing.count_prompt_tokens(request)
    assert counted > 156
    with pytest.raises(ContextOverflow, match=str(counted)):
        [chunk async for chunk in seeing.generate(request)]


async def test_who_leaves_while_images_are_encoded_frees_the_slot(seeing, kit, noise):
    for images in range(1, 5):
        chunks = seeing.generate(show(*[noise(n) for n in range(images)], max_tokens=100))
        task = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0.002 * images)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await chunks.aclose()
    assert await kit.is_idle(seeing)
    assert seeing.status().kv_tokens_reserved == 0
    assert kit.tokens_of(await kit.collect(seeing, show(noise(1))))


async def test_who_leaves_while_it_writes_stops_too(seeing, kit, noise):
    async with aclosing(seeing.generate(show(noise(1), max_tokens=150))) as chunks:
        await anext(chunks)
    assert await kit.is_idle(seeing)


async def test_a_deadline_counts_the_images(plain, noise):
    request = show(*[noise(n, 600, 600) for n in range(8)], deadline_s=0.001)
    with pytest.raises(DeadlineExceeded):
        [chunk async for chunk in plain.generate(request)]


@pytest.mark.parametrize("kind", KINDS)
async def test_prompts_with_the_same_images_are_computed_once_where_they_can_be(
    kind, open_seeing, kit, noise
):
    async with open_seeing(kind) as engine:
        long = " ".join([WORDS] * 3)
        first = await kit.collect(engine, show(noise(1), text=long, cache_scope="s"))
        again = await kit.collect(engine, show(noise(1), text=long, cache_scope="s"))
        other = await kit.collect(engine, show(noise(2), text=long, cache_scope="s"))
        alone = await kit.collect(engine, show(noise(2), text=long))
        private = await kit.collect(engine, show(noise(1), text=long))
    usages = [chunks[-1].finish.usage for chunks in (first, again, other, private)]
    cached = [usage.cached_tokens for usage in usages]
    assert np.allclose(logprobs_of(first), logprobs_of(again), atol=1e-4)
    assert np.allclose(logprobs_of(other), logprobs_of(alone), atol=1e-4)
    assert cached[0] == cached[3] == 0
    if kind == "qwen2vl_merger":
        assert cached[1] == cached[2] == 0
    else:
        assert cached[1] == usages[1].prompt_tokens - 1
        # Up to the other image, and not a token of it.
        assert 0 < cached[2] < cached[1] - 16


async def test_a_damaged_image_is_refused_and_the_engine_goes_on(seeing, kit, noise, made_mmproj):
    good = noise(1)
    # Well-formed by its header, and no picture behind it.
    empty = (
        good[: good.index(b"IDAT") - 4] + made_mmproj.chunk(b"IDAT", b"no zlib stream") + good[-12:]
    )
    for bad, words in ((good[:200], "cut off"), (empty, "does not decode")):
        with pytest.raises(InvalidRequest, match=words) as caught:
            await kit.collect(seeing, show(bad))
        assert caught.value.param == "messages"
    assert await kit.is_idle(seeing)
    assert kit.tokens_of(await kit.collect(seeing, show(good)))


async def test_a_gif_is_seen(plain, kit):
    gif = bytes.fromhex(
        "47494638396101000100800000000000ffffff21f90401000000002c000000000100010000020244013b"
    )
    shown = Message("user", WORDS, images=(Image(gif, "image/gif", 5),))
    request = Request((shown,), max_tokens=2)
    assert len(kit.tokens_of(await kit.collect(plain, request))) == 2


async def test_a_marker_of_the_library_in_a_text_is_text(plain, kit, noise):
    request = show(noise(1), text=f"{WORDS} <__media__> and on")
    chunks = await kit.collect(plain, request)
    assert chunks[-1].finish.reason is FinishReason.LENGTH
    assert chunks[-1].finish.usage.prompt_tokens == await plain.count_prompt_tokens(request)


async def test_a_worker_reads_images_too(open_seeing, kit, noise):
    async with open_seeing("mlp") as engine:
        here = await kit.collect(engine, show(noise(1)))
    worker = open_seeing("mlp", worker=True)
    assert "image" in worker.card.modalities
    async with worker:
        there = await kit.collect(worker, show(noise(1)))
        with pytest.raises(InvalidRequest, match="cut off"):
            await kit.collect(worker, show(noise(1)[:200]))
    assert kit.tokens_of(here) == kit.tokens_of(there)
    assert logprobs_of(here) == logprobs_of(there)


async def test_what_is_too_large_for_a_message_to_a_worker_does_not_end_it(open_seeing, noise, kit):
    async with open_seeing("mlp", worker=True) as worker:
        pid = worker.pid
        with pytest.raises(InvalidRequest, match="together"):
            await kit.collect(worker, show(*[noise(n) + bytes(19 << 20) for n in range(4)]))
        assert kit.tokens_of(await kit.collect(worker, show(noise(1))))
        assert worker.pid == pid


async def test_a_projector_of_another_model_is_refused_by_name(files, made_mmproj, tmp_path):
    model, _ = files("mlp")
    wrong = made_mmproj.write(tmp_path / "wide.gguf", made_mmproj.Projector(text_width=96))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(wrong.read_bytes()[:-100])
    for path, kind, words in (
        (wrong, ModelInvalid, "mismatch"),
        (cut, ModelInvalid, "cut.gguf"),
        (model, ModelInvalid, "no projector but a llama model"),
        (tmp_path / "none.gguf", ModelNotFound, "no projector at"),
    ):
        with pytest.raises(kind, match=words) as caught:
            async with open_engine(str(model), options=EngineOptions(mmproj=str(path))):
                pass
        assert path.name in str(caught.value)


async def test_a_projector_counts_in_the_memory_estimate(files, open_seeing):
    model, projector = files("mlp")
    options = EngineOptions(context_tokens=256, exact_attention=True, threads=1)
    async with open_engine(str(model), options=options) as blind, open_seeing("mlp") as seeing:
        more = seeing.card.memory_bytes - blind.card.memory_bytes
    assert 0.9 * projector.stat().st_size < more <= projector.stat().st_size


@pytest.mark.parametrize("spec", ["echo", "mlx"])
def test_another_runtime_says_that_it_has_no_vision(spec, request):
    if spec == "mlx":
        pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")
        spec = str(request.getfixturevalue("tiny_folder"))
    with pytest.raises(UnsupportedOption, match="reads no images") as caught:
        open_engine(spec, options=EngineOptions(mmproj="any.gguf"))
    assert caught.value.param == "mmproj"
