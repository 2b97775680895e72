"""LoRA adapters by request: each answer is its adapter's, whoever runs beside it."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.backend import BatchRow
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.engines.step_plan import AdapterTurns
from overspill.errors import InvalidRequest, ModelInvalid, ModelNotFound

NAMES = ("pirate", "poet")
RANK, SCALE = 4, 2.0


def _weights(width, layers, seed, rank=RANK):
    """A and B of the value projection in each layer, as x @ A @ B."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.standard_normal((width, rank)).astype(np.float32) / width**0.5,
            rng.standard_normal((rank, width)).astype(np.float32) / rank**0.5,
        )
        for _ in range(layers)
    ]


def _write_gguf(path, weights, alpha=SCALE * RANK):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for layer, (a, b) in enumerate(weights):
        writer.add_tensor(f"blk.{layer}.attn_v.weight.lora_a", np.ascontiguousarray(a.T))
        writer.add_tensor(f"blk.{layer}.attn_v.weight.lora_b", np.ascontiguousarray(b.T))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_folder(folder, weights):
    from safetensors.numpy import save_file

    folder.mkdir()
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": ["self_attn.v_proj"]}
    config = {
        "fine_tune_type": "lora", "num_layers": len(weights), "lora_parameters": parameters,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"model.layers.{layer}.self_attn.v_proj.lora_{which}": matrix
        for layer, pair in enumerate(weights)
        for which, matrix in zip("ab", pair, strict=True)
    }
    save_file(tensors, folder / "adapters.safetensors")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_folder):
    """For each runtime, the same two adapters by name."""
    folder = tmp_path_factory.mktemp("adapters")
    config = json.loads((tiny_folder / "config.json").read_text())
    for seed, name in enumerate(NAMES):
        weights = _weights(config["hidden_size"], config["num_hidden_layers"], seed)
        _write_gguf(folder / f"{name}.gguf", weights)
        _write_folder(folder / name, weights)
    return {
        "echo": dict.fromkeys(NAMES, ""),
        "llama.cpp": {name: str(folder / f"{name}.gguf") for name in NAMES},
        "mlx": {name: str(folder / name) for name in NAMES},
    }


async def _tokens(engine, kit, requests):
    answers = await asyncio.gather(*(kit.collect(engine, request) for request in requests))
    for request, chunks in zip(requests, answers, strict=True):
        assert chunks[-1].finish.adapter == request.adapter
    return [kit.tokens_of(chunks) for chunks in answers]


def _requests(kit):
    return [
        kit.ask(f"Tell me of river {n}", id=f"{n}{name}", adapter=name, max_tokens=16)
        for n in range(2)
        for name in (None, *NAMES)
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("runtime", ["echo", "llama.cpp", "mlx", "worker-llama.cpp"])
async def test_answers_are_their_adapters_whoever_runs_beside_them(
    runtime, adapters, open_kind, kit
):
    requests = _requests(kit)
    files = adapters[runtime.removeprefix("worker-")]
    async with open_kind(runtime, exact_attention=True, adapters=files) as engine:
        alone = [(await _tokens(engine, kit, [request]))[0] for request in requests]
        assert len({tuple(tokens) for tokens in alone[:3]}) == 3
        assert await _tokens(engine, kit, requests) == alone
    async with open_kind(runtime, exact_attention=True) as engine:
        # Beside its adapters the model is what it is without any.
        assert (await _tokens(engine, kit, requests[:1]))[0] == alone[0]


@pytest.mark.anyio
async def test_both_runtimes_compute_the_same_with_an_adapter(adapters, open_kind, kit):
    request = kit.ask("Tell me of rivers", adapter="poet", max_tokens=16)
    tokens = []
    for runtime in ("llama.cpp", "mlx"):
        options = {"exact_attention": True, "adapters": adapters[runtime]}
        async with open_kind(runtime, **options) as engine:
            tokens += await _tokens(engine, kit, [request])
    assert tokens[0] == tokens[1]


@pytest.mark.anyio
@pytest.mark.parametrize("runtime", ["echo", "llama.cpp", "mlx"])
async def test_prefixes_are_not_shared_between_adapters(runtime, adapters, open_kind, kit):
    async with open_kind(runtime, exact_attention=True, adapters=adapters[runtime]) as engine:
        for name in (None, *NAMES):
            ask = kit.ask("Once upon a time " * 4, adapter=name, max_tokens=8, cache_scope="s")
            first = await kit.collect(engine, ask)
            assert first[-1].finish.usage.cached_tokens == 0
            again = await kit.collect(engine, ask)
            assert again[-1].finish.usage.cached_tokens > 0
            assert kit.tokens_of(again) == kit.tokens_of(first)


@pytest.mark.anyio
async def test_an_unknown_adapter_is_refused_by_name(adapters, open_kind, kit):
    async with open_kind("echo", adapters=adapters["echo"]) as engine:
        with pytest.raises(InvalidRequest, match="poet") as caught:
            await kit.collect(engine, kit.ask("x", adapter="prophet"))
        assert caught.value.param == "adapter"
    async with open_kind("echo") as engine:
        with pytest.raises(InvalidRequest, match="adapter"):
            await kit.collect(engine, kit.ask("x", adapter="poet"))


@pytest.mark.anyio
@pytest.mark.parametrize("runtime", ["llama.cpp", "mlx"])
async def test_a_file_that_is_no_adapter_of_the_model_is_an_error(
    runtime, adapters, open_kind, tmp_path, tiny_gguf, tiny_folder
):
    with pytest.raises(ModelNotFound):
        await open_kind(runtime, adapters={"none": str(tmp_path / "none")}).start()
    wrong = tmp_path / "wrong"
    weights = _weights(32, 2, 1)
    if runtime == "mlx":
        _write_folder(wrong, weights)
    else:
        _write_gguf(wrong, weights)
        with pytest.raises(ModelInvalid, match="no adapter"):
            await open_kind(runtime, adapters={"model": str(tiny_gguf)}).start()
    with pytest.raises(ModelInvalid, match="'wrong'"):
        await open_kind(runtime, adapters={"wrong": str(wrong)}).start()


def _logits(backend, name):
    backend.use_adapter(name)
    backend.forget(0, 0)
    return backend.run([BatchRow(0, 0, [3, 4, 5], wants_logits=True)]).copy()


def test_adapters_of_one_shape_are_exchanged_and_others_attached(adapters, tiny_gguf, tmp_path):
    """Each computes what it does alone, in whichever order they come."""
    from overspill.engines.llama_cpp import LlamaCppBackend, LlamaCppOptions

    wide, loud = tmp_path / "wide.gguf", tmp_path / "loud.gguf"
    _write_gguf(wide, _weights(64, 2, 7, rank=8))
    _write_gguf(loud, _weights(64, 2, 8), alpha=3 * RANK)
    files = {**adapters["llama.cpp"], "wide": str(wide), "loud": str(loud)}

    def open_with(names):
        options = LlamaCppOptions(
            context_tokens=256, threads=1, adapters={name: files[name] for name in names}
        )
        return LlamaCppBackend(tiny_gguf, name="tiny", options=options)

    alone = {}
    for name in (None, *files):
        with closing(open_with([name] if name else [])) as backend:
            alone[name] = _logits(backend, name)
    with closing(open_with(files)) as backend:
        swap = backend._adapters._swap
        carriers = {name: swap.carrier(name, "pirate") for name in files}
        order = ("pirate", "poet", None, "poet", "wide", "pirate", "loud", "poet", None, "pirate")
        for name in order:
            np.testing.assert_array_equal(_logits(backend, name), alone[name])
    assert carriers == {"pirate": "pirate", "poet": "pirate", "wide": "wide", "loud": "loud"}


# --- turns --------------------------------------------------------------------------------------


@dataclass(eq=False)
class Running:
    adapter: str | None


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=40))
def test_no_adapter_waits_for_more_than_four_steps(steps):
    turns = AdapterTurns()
    waited = {}
    for adapters in steps:
        running = [Running(str(adapter)) for adapter in adapters]
        chosen = turns.next(running)
        (served,) = {generation.adapter for generation in chosen}
        assert list(chosen) == [g for g in running if g.adapter == served]
        names = {generation.adapter for generation in running}
        waited = {name: 0 if name == served else waited.get(name, 0) + 1 for name in names}
        assert max(waited.values()) <= 4


@pytest.mark.anyio
async def test_adapters_take_turns_without_draining_and_a_sixth_waits(kit):
    backend = EchoBackend(EchoOptions(adapters=tuple("abcdef"), max_sequences=16))
    used = []
    use, run = backend.use_adapter, backend.run
    backend.use_adapter = lambda name: used.append(name) or use(name)
    seen = []

    def watched(rows):
        seen.append(used[-1])
        return run(rows)

    backend.run = watched
    engine = ScheduledEngine(
        lambda: backend,
        name="echo",
        runtime="echo",
        options=EngineOptions(scheduler=SchedulerOptions(speculation="off")),
    )
    async with engine:
        requests = [
            kit.ask(f"hello from {name} {n}", adapter=name, id=f"{name}{n}")
            for n in range(2)
            for name in "abcdef"
        ]
        answers = await asyncio.gather(*(kit.collect(engine, request) for request in requests))
    for request, chunks in zip(requests, answers, strict=True):
        said = request.messages[0].content
        assert kit.text_of(chunks) == f"echo[{request.adapter}]: {said}"
    # While five take turns each is seen in every five steps, and the sixth not before one is done
    # (which five come first depends on whose prompt is ready first).
    early = seen[10:60]
    assert len(set(early)) == 5
    for at in range(len(early) - 5):
        assert len(set(early[at : at + 5])) == 5
