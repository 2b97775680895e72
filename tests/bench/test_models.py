"""Made models: a tokenizer in which a word is a token, and weights that a runtime accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.bench import models
from overspill.bench.models import SHAPES, Shape, made_adapter, made_model
from overspill.bench.ours import OurTarget, Overheads, serving
from overspill.bench.vocabulary import CONTROL, MIN_SIZE, make_vocabulary, make_words
from overspill.engines.options import EngineOptions
from overspill.engines.registry import open_engine
from overspill.types.chat import FinishReason


@pytest.mark.parametrize("size", [MIN_SIZE, 32000, 151936])
def test_a_vocabulary_has_the_size_that_was_asked_for_and_no_token_twice(size):
    made = make_vocabulary(size)
    assert len(made.tokens) == len(set(made.tokens)) == size
    assert made.tokens[-len(CONTROL) :] == CONTROL
    assert made.tokens[made.end_id] == "<|im_end|>"


def test_each_merge_joins_tokens_made_before_it():
    made = make_vocabulary(MIN_SIZE)
    there = set(made.tokens[:256])
    for merge in made.merges:
        left, right = merge.split(" ")
        assert {left, right} <= there
        there.add(left + right)


@pytest.mark.parametrize("size", [0, MIN_SIZE - 1, 10**7])
def test_a_vocabulary_that_cannot_be_made_is_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        make_vocabulary(size)


@given(st.integers(0, 50), st.lists(st.integers(-5, 10**6), max_size=4))
def test_words_are_the_same_for_the_same_seed(count, seed):
    words = make_words(count, seed)
    assert words == make_words(count, list(seed))
    assert words.count(" ") == count
    assert len(words.split()) == count


def test_a_seed_makes_the_same_file_and_another_seed_another(made_models, tmp_path):
    first = made_model("mini", made_models)
    again = made_model("mini", tmp_path)
    other = made_model("mini", tmp_path, seed=1)
    assert first.read_bytes() == again.read_bytes()
    assert other.read_bytes() != first.read_bytes()
    # What was being written is gone.
    assert {path.suffix for path in tmp_path.iterdir()} == {".gguf"}


def test_a_model_that_is_there_is_not_made_again(made_models, monkeypatch):
    path = made_model("mini", made_models)
    monkeypatch.setattr(models, "_write_model", None)
    assert made_model("mini", made_models) == path


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(models._KINDS, "Q8_0", (7, models._q8_0))
    with pytest.raises(ValueError, match="multiple of 7"):
        made_model("mini", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def k_quant_shape(monkeypatch):
    """The block types of l1b, at a size for tests."""
    shape = Shape("llama", 256, 1, 4, 2, 512, 8704, 4096, 5e5, "Q4_K", "Q6_K")
    monkeypatch.setitem(SHAPES, "kquant", shape)
    return "kquant"


@pytest.fixture
def biased_shape(monkeypatch):
    """The architecture and block types of q05, at a size for tests."""
    shape = Shape("qwen2", 64, 2, 4, 2, 192, 8704, 4096, 1e6, "Q4_0", "Q8_0", True)
    monkeypatch.setitem(SHAPES, "biased", shape)
    return "biased"


@pytest.mark.anyio
@pytest.mark.parametrize("shape", ["mini", "kquant", "biased"])
async def test_a_made_model_answers_in_full_with_text_for_each_token(
    made_models, k_quant_shape, biased_shape, shape
):
    model = made_model(shape, made_models)
    engine = open_engine(str(model), options=EngineOptions(context_tokens=256, max_sequences=1))
    async with serving(engine) as target:
        assert engine.card.quantization.startswith(SHAPES[shape].weights)
        text, ids = "", []
        request = target.request(64, 100, 1)
        assert await engine.count_prompt_tokens(request) == 64
        async for chunk in engine.generate(request):
            text += chunk.text
            ids += chunk.token_ids
        assert chunk.finish.reason is FinishReason.LENGTH
        assert len(ids) == 100
        assert text.isascii()
        assert text.isprintable()
        # It wanders: an answer that repeats itself would flatter speculation.
        assert len(set(ids)) > 25


@pytest.fixture
async def mini_target(made_models):
    options = EngineOptions(context_tokens=512, max_sequences=1)
    async with serving(open_engine(str(made_model("mini", made_models)), options=options)) as it:
        yield it


@pytest.mark.anyio
@pytest.mark.parametrize("tokens", [17, 64, 333])
@pytest.mark.parametrize("system", [0, 11])
async def test_a_prompt_has_exactly_the_tokens_that_were_asked_for(mini_target, tokens, system):
    tokens = max(tokens, system + 17)
    request = mini_target.request(tokens, 1, 3, system_tokens=system)
    assert await mini_target.engine.count_prompt_tokens(request) == tokens


@pytest.mark.anyio
async def test_an_adapter_changes_what_a_model_says(made_models):
    model = made_model("mini", made_models)
    adapter = made_adapter("mini", made_models, seed=7)
    options = EngineOptions(context_tokens=256, max_sequences=2, adapters={"a": str(adapter)})
    engine = open_engine(str(model), options=options)
    async with serving(engine) as plain:
        adapted = OurTarget(engine, await Overheads.of(engine), ("a",))
        answers = []
        for target in (plain, adapted):
            request = target.request(32, 16, 0)
            tokens = [t async for c in engine.generate(request) for t in c.token_ids]
            answers.append(tokens)
    assert answers[0] != answers[1]
