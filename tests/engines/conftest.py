"""Models that the engine tests run: a tiny one with random weights, in both layouts."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from overspill.engines.base import Engine, EngineHealth
from overspill.engines.registry import BROOK, EngineOptions, open_engine
from overspill.types.chat import Message, Request

REPOSITORY = Path(__file__).resolve().parents[2]
FAMILY = REPOSITORY / "examples" / "family"
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))


def _random_weights(config, seed):
    """HF-named F32 tensors, spread widely enough that greedy choices are no coin tosses."""
    rng = np.random.default_rng(seed)
    width, hidden = config["hidden_size"], config["intermediate_size"]

    def matrix(rows, columns):
        return rng.standard_normal((rows, columns), np.float32) * np.float32(1.5 / columns**0.5)

    weights = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], width),
        "model.norm.weight": np.ones(width, np.float32),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{prefix}self_attn.{name}.weight"] = matrix(width, width)
        weights[prefix + "mlp.gate_proj.weight"] = matrix(hidden, width)
        weights[prefix + "mlp.up_proj.weight"] = matrix(hidden, width)
        weights[prefix + "mlp.down_proj.weight"] = matrix(width, hidden)
        weights[prefix + "input_layernorm.weight"] = np.ones(width, np.float32)
        weights[prefix + "post_attention_layernorm.weight"] = np.ones(width, np.float32)
    return weights


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """The MLX layout: two layers of random weights under the family's own tokenizer."""
    from safetensors.numpy import save_file

    from examples.family.export import hf_config, tokenizer_config

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    folder.mkdir()
    config = hf_config(
        {
            "width": 64, "hidden": 192, "layers": 2, "heads": 2, "norm_eps": 1e-5,
            "rope_theta": 10_000.0, "context": 512, "vocabulary": 2048,
        }
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(512)))
    shutil.copy(FAMILY / "models" / "tokenizer.json", folder / "tokenizer.json")
    save_file(_random_weights(config, 1), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder) -> Path:
    """The same weights as GGUF F32."""
    from examples.family.export import write_gguf

    path = tiny_folder.parent / "tiny-f32.gguf"
    write_gguf(tiny_folder, path, "F32")
    return path


@pytest.fixture(scope="session")
def foreign_gguf(shared_data) -> Path:
    """A story model that others made: SentencePiece vocabulary, no chat template."""
    return shared_data / "models" / "stories260K-tok512-f32.gguf"


@pytest.fixture(scope="session")
def brook_gguf() -> Path:
    """The model in the wheel."""
    if not BROOK.exists():
        pytest.skip(f"{BROOK.name} is not in this checkout")
    return BROOK


@pytest.fixture(scope="session")
def brook_f32() -> Path:
    """Its weights as they were trained, in the MLX layout."""
    folder = FAMILY / "models" / "brook-f32"
    if not (folder / "model.safetensors").exists():
        pytest.skip("examples/family/models/brook-f32 is not in this checkout")
    return folder


def ask(text, **options) -> Request:
    """A request of one user message."""
    return Request(messages=(Message("user", text),), **options)


async def collect(engine, request):
    """All chunks of an answer."""
    return [chunk async for chunk in engine.generate(request)]


def text_of(chunks) -> str:
    """The answer's text."""
    return "".join(chunk.text for chunk in chunks)


async def is_idle(engine) -> bool:
    """Whether nothing runs and nothing waits, within a few seconds: leaving is not instant."""
    for _ in range(100):
        health = await engine.health()
        if health.ok and (health.active, health.queued) == (0, 0):
            return True
        await asyncio.sleep(0.05)
    return False


def tokens_of(chunks) -> list[int]:
    """The answer's tokens."""
    return [token for chunk in chunks for token in chunk.token_ids]


_HELPERS = {
    "ask": ask,
    "collect": collect,
    "text_of": text_of,
    "tokens_of": tokens_of,
    "is_idle": is_idle,
}


@pytest.fixture(scope="session")
def kit():
    """The helpers above as one object: test modules cannot import a conftest."""
    return type("Kit", (), {name: staticmethod(helper) for name, helper in _HELPERS.items()})


_NEEDS = {"llama.cpp": ("llama_cpp", "llama"), "mlx": ("mlx_lm", "mlx")}


@pytest.fixture(scope="session")
def open_kind(tiny_gguf, tiny_folder, tmp_path_factory):
    """``open_kind("mlx")``: an engine over the tiny model; skips when not installed."""

    def build(kind, **options):
        runtime = kind.removeprefix("worker-").removeprefix("remote-")
        if runtime in _NEEDS and find_spec(_NEEDS[runtime][0]) is None:
            pytest.skip(
                f"{runtime} is not installed; pip install 'overspill[{_NEEDS[runtime][1]}]'"
            )
        spec = {"echo": "echo", "llama.cpp": str(tiny_gguf), "mlx": str(tiny_folder)}[runtime]
        # Echo without a delay ends before anybody reads; a model takes its time by itself.
        settings = EngineOptions(**{"context_tokens": 512, "token_delay_s": 0.001, **options})
        # One thread: OpenMP's spinning costs tenfold on a machine that has other work. MLX takes
        # neither: it chooses its threads, and rounds no F32 weights.
        is_mlx = runtime == "mlx"
        exact = settings.exact_attention and not is_mlx
        settings = replace(settings, threads=None if is_mlx else 1, exact_attention=exact)
        if kind.startswith("remote-"):
            pytest.importorskip("sqlalchemy", reason="pip install 'overspill[cloud]'")
            return RemoteOverNode(tmp_path_factory.mktemp("node"), settings)
        if kind.startswith("worker-"):
            from overspill.worker import WorkerEngine

            return WorkerEngine(spec, options=settings)
        return open_engine(spec, options=settings)

    return build


class RemoteOverNode(Engine):
    """A cloud as an engine, with a node of its own: the whole sealed road over a Unix socket."""

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self._folder = folder
        self._engine_options = options
        self._stack = AsyncExitStack()
        self._remote = None

    @property
    def card(self):
        return self._remote.card

    async def start(self) -> None:
        from overspill.identity.keys import SoftwareKey
        from overspill.remote import RemoteEngine
        from overspill.transport.grpc import GrpcTransport
        from overspill.trust.policy import parse_policy
        from overspill.trust.template import dev_policy
        from overspill_cloud.app import ModelSpec, NodeOptions, serve
        from overspill_cloud.store import Store

        options = NodeOptions(
            models=(ModelSpec("echo", "echo"),),
            listen=f"unix:{self._folder}/node.sock",
            state=self._folder / "state",
            engine=self._engine_options,
        )
        node = await self._stack.enter_async_context(serve(options, log_to=io.StringIO()))
        self._node_engine = node.models["echo"].engine
        policy = dev_policy(bytes.fromhex(node.dev_root), {"echo": node.models["echo"].sha256})
        remote = RemoteEngine(
            GrpcTransport(node.listen), parse_policy(policy), SoftwareKey.generate(1 << 40)
        )
        store = Store(options.state)
        await remote.enroll(store.new_code(1 << 40))
        store.close()
        await remote.start()
        self._stack.push_async_callback(remote.aclose)
        self._remote = remote

    async def aclose(self) -> None:
        self._remote = None
        await self._stack.aclose()

    async def health(self):
        """The road's health, and what runs at the node."""
        if self._remote is None:
            return EngineHealth(ok=False)
        return replace(await self._node_engine.health(), ok=(await self._remote.health()).ok)

    async def count_prompt_tokens(self, request):
        return await self._node_engine.count_prompt_tokens(request)

    async def _generate(self, request):
        if self._remote is None:
            await self.start()
        async with aclosing(self._remote.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk


KINDS = [
    "echo", "llama.cpp", "mlx", "worker-echo", "worker-llama.cpp", "worker-mlx", "remote-echo",
]  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    """Each kind of engine, by name."""
    return request.param


@pytest.fixture(scope="module", params=KINDS)
async def engine(request, open_kind) -> Iterator:
    """One running engine of each kind: add a row to add a backend."""
    async with open_kind(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def made_mlx():
    """The module that writes MLX folders with random weights: ``CONFIGS`` and ``write``."""
    pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")
    from tests import made_mlx as module

    return module


@pytest.fixture(scope="session")
def stepped():
    """Echo that steps when a test says so, and helpers to ask it."""
    from tests.engines import stepped_echo

    return stepped_echo
