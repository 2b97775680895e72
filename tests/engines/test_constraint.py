"""Answers are held to schemas and grammars, whatever the model wants to say."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest

from overspill.engines.constraint import MAX_COMPILED, Constrainer
from overspill.engines.echo import EchoBackend
from overspill.errors import EngineError, InvalidRequest, UnsupportedOption
from overspill.types.chat import FinishReason, Grammar, Sampling

pytestmark = pytest.mark.anyio

SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "unit": {"enum": ["m", "km"]},
        "sure": {"type": "boolean"},
    },
    "required": ["count", "unit", "sure"],
    "additionalProperties": False,
}


async def test_an_answer_is_of_the_schema(engine, kit):
    chunks = await kit.collect(engine, kit.ask("tell me", json_schema=SCHEMA, max_tokens=200))
    value = json.loads(kit.text_of(chunks))
    assert 0 <= value["count"] <= 99
    assert value["unit"] in ("m", "km")
    assert isinstance(value["sure"], bool)
    assert chunks[-1].finish.reason is FinishReason.STOP


async def test_a_regex_holds_the_whole_answer(engine, kit):
    grammar = Grammar("regex", r"[a-c]{3}-[0-9]{2}")
    chunks = await kit.collect(engine, kit.ask("tell me", grammar=grammar))
    assert re.fullmatch(r"[a-c]{3}-[0-9]{2}", kit.text_of(chunks))


async def test_a_lark_grammar_holds_the_whole_answer(engine, kit):
    grammar = Grammar("lark", 'start: item ("," item)~2\nitem: "é" | "\U0001f600"')
    chunks = await kit.collect(engine, kit.ask("tell me", grammar=grammar))
    assert re.fullmatch("(é|\U0001f600)(,(é|\U0001f600)){2}", kit.text_of(chunks))


async def test_a_seed_repeats_a_held_answer(engine, kit):
    request = kit.ask(
        "tell me", json_schema=SCHEMA, max_tokens=200, sampling=Sampling(temperature=2.0, seed=9)
    )
    first = kit.text_of(await kit.collect(engine, request))
    again = kit.text_of(await kit.collect(engine, replace(request, id="again")))
    other = replace(request, id="other", sampling=Sampling(temperature=2.0, seed=10))
    assert first == again
    assert first != kit.text_of(await kit.collect(engine, other))


async def test_logprobs_stay_the_models_own(engine, kit):
    request = kit.ask("x", grammar=Grammar("lark", 'start: "~"'), top_logprobs=2, max_tokens=4)
    (held,) = [p for c in await kit.collect(engine, request) for p in c.logprobs]
    free = replace(request, id="free", grammar=None, max_tokens=1)
    (best,) = [p for c in await kit.collect(engine, free) for p in c.logprobs]
    assert held.top == best.top
    assert held.logprob < best.logprob


@pytest.mark.parametrize(
    ("schema", "error", "where"),
    [
        ({"properties": {"a": {"items": {"not": {}}}}}, UnsupportedOption, "#/properties/a/items"),
        ({"$defs": {"x": {"uniqueItems": True}}, "$ref": "#/$defs/x"}, UnsupportedOption, "#/$de"),
        ({"anyOf": [{"type": "string"}, {"type": "text"}]}, InvalidRequest, "#/anyOf/1"),
        ({"properties": {"a/b": {"format": "car"}}}, UnsupportedOption, "#/properties/a~1b"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, InvalidRequest, "#/properties/a"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, InvalidRequest, "#"),
        # A schema cannot switch the refusals off.
        ({"x-guidance": {"lenient": True}, "not": {}}, UnsupportedOption, "#"),
        ({"const": float("nan")}, InvalidRequest, "json_schema"),
    ],
)
async def test_what_cannot_be_enforced_is_refused_by_its_path(engine, kit, schema, error, where):
    with pytest.raises(error, match=re.escape(where)) as caught:
        await kit.collect(engine, kit.ask("x", json_schema=schema))
    assert type(caught.value) is error
    assert caught.value.param == "json_schema"


async def test_a_schema_that_no_answer_meets_is_refused_and_others_go_on(engine, kit):
    with pytest.raises(InvalidRequest, match="no answer") as caught:
        await kit.collect(engine, kit.ask("x", json_schema={"$ref": "#"}))
    assert caught.value.param == "json_schema"
    assert kit.text_of(await kit.collect(engine, kit.ask("x")))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "(a"),
        Grammar("lark", "start: nowhere"),
        Grammar("lark", "start: /(?=a)b/"),
        Grammar("lark", ""),
        Grammar("lark", 'start: "' + "a" * 600_000 + '"'),
        Grammar("lark", "start: start"),
    ],
)
async def test_a_grammar_that_does_not_compile_is_refused(engine, kit, grammar):
    with pytest.raises(InvalidRequest) as caught:
        await kit.collect(engine, kit.ask("x", grammar=grammar))
    assert caught.value.param == "grammar"
    assert "\n" not in str(caught.value)


async def test_a_schema_and_a_grammar_exclude_each_other(engine, kit):
    request = kit.ask("x", grammar=Grammar("regex", "a"), json_schema=SCHEMA)
    with pytest.raises(InvalidRequest, match="both"):
        await kit.collect(engine, request)


async def test_an_answer_goes_on_from_its_prefix(engine, kit):
    request = kit.ask("x", json_schema=SCHEMA, prefix='{"count": 12', max_tokens=200)
    rest = kit.text_of(await kit.collect(engine, request))
    assert not rest.lstrip().startswith("{")
    assert str(json.loads(request.prefix + rest)["count"]).startswith("12")
    with pytest.raises(InvalidRequest) as caught:
        await kit.collect(engine, replace(request, id="bad", prefix='{"count": x'))
    assert caught.value.param == "prefix"


async def test_a_held_answer_that_is_cut_off_says_so(engine, kit):
    request = kit.ask("x", json_schema=SCHEMA, max_tokens=2)
    chunks = await kit.collect(engine, request)
    assert chunks[-1].finish.reason is FinishReason.LENGTH


async def test_a_grammar_that_gets_too_complex_fails_alone(open_kind, kit):
    wild = Grammar("lark", 'start: x "z"\nx: y x y | "a"\ny: x | "a" x | x "a"')
    endless = Sampling(logit_bias={ord("z"): -100.0})
    async with open_kind("echo") as engine:
        held = kit.collect(engine, kit.ask("hi", grammar=wild, sampling=endless, max_tokens=400))
        other = kit.collect(engine, kit.ask("something longer " * 8))
        failed, answered = await asyncio.gather(held, other, return_exceptions=True)
    assert isinstance(failed, EngineError)
    assert "grammar" in str(failed)
    assert set(failed.partial) == {"a"}
    assert kit.text_of(answered) == "echo: " + "something longer " * 8


class Compiled(Constrainer):
    """Counts what it compiles."""

    def __init__(self, backend):
        super().__init__(backend)
        self.compiled = []

    def _matcher(self, tokenizer, grammar, scope):
        before = set(self._compiled)
        matcher = super()._matcher(tokenizer, grammar, scope)
        self.compiled += set(self._compiled) - before
        return matcher


def test_a_grammar_is_compiled_once_for_whom_it_may_be_shared_with():
    constrainer = Compiled(EchoBackend())
    grammar = "start: /[ab]{3}/"
    first = constrainer.constrain(grammar, param="grammar", scope="one")
    assert first.advance_text(list(b"ab"))
    # The next one begins at the beginning, wherever the first one is.
    second = constrainer.constrain(grammar, param="grammar", scope="one")
    assert second.advance_text(list(b"bbb"))
    assert second.is_finished
    assert not first.is_finished
    assert constrainer.compiled == [("one", grammar)]
    constrainer.constrain(grammar, param="grammar", scope="other")
    assert constrainer.compiled == [("one", grammar), ("other", grammar)]
    constrainer.constrain(grammar, param="grammar")
    assert len(constrainer.compiled) == 2
    with pytest.raises(InvalidRequest):
        constrainer.constrain("start: /[/", param="grammar", scope="one")
    for i in range(100):
        constrainer.constrain(f'start: "{i}"', param="grammar", scope="one")
    assert len(constrainer._compiled) == MAX_COMPILED


async def test_answers_of_one_schema_at_once_do_not_disturb_each_other(engine, kit):
    requests = [
        kit.ask("x", json_schema=SCHEMA, max_tokens=200, cache_scope="s", sampling=Sampling(seed=n))
        for n in range(3)
    ]
    alone = [kit.text_of(await kit.collect(engine, request)) for request in requests]
    again = [replace(request, id=f"again{n}") for n, request in enumerate(requests)]
    together = await asyncio.gather(*(kit.collect(engine, request) for request in again))
    for text in (*alone, *map(kit.text_of, together)):
        assert set(json.loads(text)) == {"count", "unit", "sure"}
