"""Echo: every feature without weights, and it says what it is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import util

import pytest

from overspill.engines import registry
from overspill.engines.options import EngineOptions
from overspill.engines.registry import open_engine
from overspill.errors import InvalidRequest, MissingExtra
from overspill.types.chat import FinishReason, Message, Request, Sampling, Tool, ToolCall

pytestmark = pytest.mark.anyio

ADD = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})


@pytest.fixture(scope="module", params=["echo", "worker-echo"])
async def echo(request, open_kind):
    async with open_kind(request.param, token_delay_s=0.0) as running:
        yield running


async def test_it_says_what_it_is(echo, kit):
    chunks = await kit.collect(echo, kit.ask("hello"))
    assert kit.text_of(chunks) == "echo: hello"
    assert chunks[-1].finish.model == "echo"
    assert chunks[-1].finish.reason is FinishReason.STOP
    assert (echo.card.name, echo.card.runtime) == ("echo", "echo")


async def test_it_answers_the_last_user_turn(echo, kit):
    turns = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"))
    request = Request((*turns, Message("user", "c")))
    assert kit.text_of(await kit.collect(echo, request)) == "echo: c"


async def test_it_calls_a_tool_that_was_offered(echo, kit):
    chunks = await kit.collect(echo, kit.ask('call add {"a": 1}', tools=(ADD,)))
    (call,) = [call for chunk in chunks for call in chunk.tool_calls]
    assert (call.name, call.arguments) == ("add", '{"a": 1}')
    assert kit.text_of(chunks) == ""
    assert chunks[-1].finish.reason is FinishReason.TOOL_CALLS
    answered = Request(
        (
            Message("user", 'call add {"a": 1}'),
            Message("assistant", "", tool_calls=(ToolCall(call.id, "add", call.arguments),)),
            Message("tool", "1", tool_call_id=call.id),
        ),
        tools=(ADD,),
    )
    assert kit.text_of(await kit.collect(echo, answered)) == "echo: 1"


@pytest.mark.parametrize("options", [{}, {"tools": (ADD,), "tool_choice": "none"}])
async def test_without_a_tool_to_call_the_same_words_are_text(echo, kit, options):
    chunks = await kit.collect(echo, kit.ask('call add {"a": 1}', **options))
    assert kit.text_of(chunks) == 'echo: call add {"a": 1}'
    assert chunks[-1].finish.reason is FinishReason.STOP


async def test_a_call_cut_off_by_max_tokens_is_handed_over_as_text(echo, kit):
    chunks = await kit.collect(echo, kit.ask('call add {"a": 1}', tools=(ADD,), max_tokens=20))
    assert kit.text_of(chunks) == '<tool_call>{"name": '
    assert chunks[-1].finish.reason is FinishReason.LENGTH


# Any ASCII, and no end: bytes that are no text could not be handed over as text.
ASCII = dict.fromkeys(range(128, 258), -100.0)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=6.0, seed=5, logit_bias=ASCII)]
)
async def test_an_answer_that_has_begun_elsewhere_goes_on(echo, kit, sampling):
    request = kit.ask("go on from here", sampling=sampling, max_tokens=20)
    whole = kit.text_of(await kit.collect(echo, request))
    assert (whole == "echo: go on from her") == (sampling.temperature == 0)
    for cut in (1, 7, 12):
        rest = replace(request, max_tokens=20 - cut, prefix=whole[:cut])
        assert whole[:cut] + kit.text_of(await kit.collect(echo, rest)) == whole


async def test_it_refuses_room_for_nothing():
    engine = open_engine("echo", options=EngineOptions(max_sequences=0))
    with pytest.raises(InvalidRequest):
        await engine.start()
    await engine.aclose()


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch, tiny_gguf):
    def find(name):
        return None if name == "llama_cpp" else util.find_spec(name)

    monkeypatch.setattr(registry, "find_spec", find)
    with pytest.raises(MissingExtra, match="llama") as caught:
        open_engine(str(tiny_gguf))
    assert caught.value.mend


def test_naming_an_engine_loads_no_runtime():
    code = (
        "import sys\n"
        "from overspill.engines.registry import EngineOptions, runtime_of\n"
        "runtime_of('echo'), EngineOptions()\n"
        "print([m for m in ('numpy', 'jinja2', 'grpc', 'mlx', 'llama_cpp') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
