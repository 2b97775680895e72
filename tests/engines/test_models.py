"""Real model files: one set of weights on two runtimes, and a model that others made."""

from __future__ import annotations

import pytest

from overspill.engines.registry import EngineOptions, name_of, open_engine
from overspill.errors import UnsupportedOption
from overspill.types.chat import FinishReason, Message, Request

pytestmark = pytest.mark.anyio

PROMPTS = ["Hello!", "What is 12 + 30?", "Tell me a story about a fox.", "naïve 😀", "Sort: 3 1 2"]


async def _greedy(engine, kit, prompts, max_tokens):
    return [
        kit.tokens_of(await kit.collect(engine, kit.ask(prompt, max_tokens=max_tokens)))
        for prompt in prompts
    ]


async def test_one_set_of_weights_gives_the_same_greedy_tokens_on_both_runtimes(open_kind, kit):
    exact = {"exact_attention": True}
    async with open_kind("llama.cpp", **exact) as llama, open_kind("mlx") as mlx:
        for prompt in PROMPTS:
            counts = [await e.count_prompt_tokens(kit.ask(prompt)) for e in (llama, mlx)]
            assert counts[0] == counts[1]
        assert await _greedy(llama, kit, PROMPTS, 48) == await _greedy(mlx, kit, PROMPTS, 48)


async def test_brook_gives_the_same_greedy_tokens_on_both_runtimes(brook_f32, kit, tmp_path):
    pytest.importorskip("mlx_lm")
    from examples.family.export import write_gguf

    path = tmp_path / "brook-f32.gguf"
    write_gguf(brook_f32, path, "F32")
    options = EngineOptions(threads=1, exact_attention=True)
    async with (
        open_engine(str(path), options=options) as llama,
        open_engine(str(brook_f32)) as mlx,
    ):
        assert await _greedy(llama, kit, PROMPTS, 64) == await _greedy(mlx, kit, PROMPTS, 64)


async def test_the_model_in_the_wheel_answers(brook_gguf, kit):
    async with open_engine("brook", options=EngineOptions(threads=1)) as engine:
        chunks = await kit.collect(engine, kit.ask("What is 12 + 30?", max_tokens=64))
        assert chunks[-1].finish.reason is FinishReason.STOP
        assert chunks[-1].finish.model == engine.card.name == "brook"
        assert kit.text_of(chunks).rstrip().endswith("Answer: 42")


async def test_a_model_made_by_others_loads_streams_and_stops(foreign_gguf, kit):
    pytest.importorskip("llama_cpp")
    async with open_engine(str(foreign_gguf), options=EngineOptions(threads=1)) as engine:
        assert engine.card.context == 512
        chunks = await kit.collect(engine, kit.ask("Once upon a time", max_tokens=400))
        text = kit.text_of(chunks)
        assert len(chunks) > 10
        assert text.startswith((" ", ",")), text
        assert chunks[-1].finish.reason in (FinishReason.STOP, FinishReason.LENGTH)
        stopped = await kit.collect(
            engine, kit.ask("Once upon a time", max_tokens=400, stop=("the",))
        )
        assert stopped[-1].finish.reason is FinishReason.STOP
        assert kit.text_of(stopped) == text[: text.index("the")]


async def test_a_model_ends_its_text_by_itself(foreign_gguf, kit):
    pytest.importorskip("llama_cpp")
    async with open_engine(str(foreign_gguf), options=EngineOptions(threads=1)) as engine:
        # Token 1 ends a text; forced, it must end the answer and show nothing.
        from overspill.types.chat import Sampling

        chunks = await kit.collect(
            engine, kit.ask("The end.", sampling=Sampling(logit_bias={1: 100.0}))
        )
        assert (kit.text_of(chunks), kit.tokens_of(chunks)) == ("", [])
        assert chunks[-1].finish.reason is FinishReason.STOP


async def test_a_model_without_a_template_refuses_a_conversation(foreign_gguf, kit):
    pytest.importorskip("llama_cpp")
    turns = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "and?"))
    async with open_engine(str(foreign_gguf), options=EngineOptions(threads=1)) as engine:
        with pytest.raises(UnsupportedOption, match="no chat template"):
            await kit.collect(engine, Request(messages=turns))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("echo", "echo"),
        ("/models/Qwen2.5-0.5B.gguf", "Qwen2.5-0.5B"),
        ("/models/Qwen2.5-0.5B-4bit", "Qwen2.5-0.5B-4bit"),
    ],
)
def test_a_model_nobody_names_is_called_after_its_file(spec, name):
    assert name_of(spec) == name
