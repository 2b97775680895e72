"""Tool calls in every family's form: read alike however the text is split, and never lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.dialects.base import Parsed
from overspill.engines.dialects.cohere import Cohere
from overspill.engines.dialects.framed_calls import KIMI, SOLAR, FramedCalls
from overspill.engines.dialects.gemma_calls import GemmaCalls
from overspill.engines.dialects.harmony import Harmony
from overspill.engines.dialects.json_calls import FunctionTag, Llama3, Mistral, TaggedJson
from overspill.engines.dialects.json_reader import ObjectReader
from overspill.engines.dialects.value_tags import InvokeTags, KeyValueTags
from overspill.engines.dialects.xml_calls import XmlCalls
from overspill.types.chat import Tool

ADD = Tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}}})
NOTE = Tool(
    "note",
    "",
    {"type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"}}},
)
TOOLS = (ADD, NOTE)
HERMES, LLAMA, MISTRAL, XML = TaggedJson(), Llama3(), Mistral(), XmlCalls()
TAG, HARMONY = FunctionTag(), Harmony()
GLM, MINIMAX, COHERE = KeyValueTags(), InvokeTags(), Cohere()
DSML = InvokeTags("｜DSML｜tool_calls", "｜DSML｜", typed=True)
KIMI_K2, SOLAR_OPEN = FramedCalls(KIMI), FramedCalls(SOLAR)
GEMMA = GemmaCalls()
LISTED = TaggedJson("<TOOLCALL>", "</TOOLCALL>", is_list=True)


def read(dialect, pieces) -> Parsed:
    parser = dialect.parser(TOOLS, id_prefix="t")
    whole = Parsed()
    for piece in pieces:
        whole += parser.feed(piece)
    return whole + parser.flush()


def outcome(parsed):
    """What must not depend on the splits: deltas count by what they add up to."""
    grown = {}
    for delta in parsed.deltas:
        name, text = grown.get(delta.index, (None, ""))
        grown[delta.index] = (name or (delta.id, delta.name), text + delta.arguments)
    calls = [(call.id, call.name, call.arguments) for call in parsed.calls]
    return parsed.text, calls, grown, parsed.reasoning


def xml(name, **parameters):
    inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in parameters.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def glm(name, gap="", **arguments):
    inner = "".join(
        f"<arg_key>{k}</arg_key>{gap}<arg_value>{v}</arg_value>{gap}" for k, v in arguments.items()
    )
    return f"<tool_call>{name}{gap}{inner}</tool_call>"


def invoke(name, prefix="", typed=None, **arguments):
    kinds = {k: f' string="{typed[k]}"' if typed else "" for k in arguments}
    inner = "".join(
        f'<{prefix}parameter name="{k}"{kinds[k]}>{v}</{prefix}parameter>\n'
        for k, v in arguments.items()
    )
    return f'\n<{prefix}invoke name="{name}">\n{inner}</{prefix}invoke>'


def dsml(*calls):
    return f"<｜DSML｜tool_calls>{''.join(calls)}\n</｜DSML｜tool_calls>"


def kimi(*calls):
    inner = "".join(
        f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{text}<|tool_call_end|>"
        for i, (name, text) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


ACTION = '{"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}}'
TRICKY = 'é "q" \n\\'
CALL = '{"name": "add", "arguments": {"a": 1}}'
WANTED = [("add", {"a": 1})]
TWO = [*WANTED, ("note", {"text": 'é "q" \n\\', "n": 3})]
NOTED = json.dumps({"text": 'é "q" \n\\', "n": 3}, ensure_ascii=False)
NOTE_CALL = f'{{"name": "note", "arguments": {NOTED}}}'

READ = [
    # dialect, what the model wrote, the text and the calls in it
    (HERMES, f"Well. <tool_call>\n{CALL}\n</tool_call>", "Well. ", WANTED),
    (HERMES, f"<tool_call>{CALL}</tool_call>\n<tool_call>{NOTE_CALL}</tool_call>", "", TWO),
    (HERMES, f"<tool_call>{CALL}</tool_call>\nDone.", "\nDone.", WANTED),
    (HERMES, '<tool_call>{"arguments":{"a":1},"name":"add"}</tool_call>', "", WANTED),
    (HERMES, '<tool_call>{"name":"add","arguments":"{\\"a\\": 1}"}</tool_call>', "", WANTED),
    (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
    (
        HERMES,
        '<tool_call> { "name" : "add" ,\n"arguments" : { "a" : 1 } \n} </tool_call>',
        "",
        WANTED,
    ),
    (HERMES, f"<tool_call>\n{CALL}\n{NOTE_CALL}\n</tool_call>", "", TWO),
    (HERMES, f"<tool_call>{CALL}{{x}}</tool_call>", "{x}</tool_call>", WANTED),
    (HERMES, f"<tool_call>\n[{CALL}, {NOTE_CALL}]\n</tool_call>", "", TWO),
    (LISTED, f"a<TOOLCALL>[{CALL},\n{NOTE_CALL}]</TOOLCALL>", "a", TWO),
    (LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", WANTED),
    (LLAMA, '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", WANTED),
    (
        LLAMA,
        f'{{"name": "add", "parameters": {{"a": 1}}}}; {{"name": "note", "parameters": {NOTED}}}',
        "",
        TWO,
    ),
    (MISTRAL, f"[TOOL_CALLS][{CALL}, {NOTE_CALL}]", "", TWO),
    (MISTRAL, f"Now: [TOOL_CALLS] [{CALL}]", "Now: ", WANTED),
    (MISTRAL, f'[TOOL_CALLS]add[ARGS]{{"a": 1}}[TOOL_CALLS]note[ARGS]{NOTED}', "", TWO),
    (MISTRAL, '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1}', "", WANTED),
    (TAG, f'<function=add>{{"a": 1}}</function>\n<function=note>{NOTED}</function>', "", TWO),
    (XML, "Well.\n" + xml("add", a=1), "Well.\n", WANTED),
    (XML, xml("add", a=1) + "\n" + xml("note", text='é "q" \n\\', n=3), "", TWO),
    (XML, xml("add"), "", [("add", {})]),
    # A string stays one though it looks like JSON, and keeps its own line breaks.
    (XML, xml("note", text="\n12\n\n"), "", [("note", {"text": "\n12\n\n"})]),
    (XML, xml("note", text=""), "", [("note", {"text": ""})]),
    (XML, xml("add", a='{"x": [1]}'), "", [("add", {"a": {"x": [1]}})]),
    (XML, xml("add", a="no number"), "", [("add", {"a": "no number"})]),
    (XML, "<function=add><parameter=a>1</parameter></function>", "", WANTED),
    (
        HARMONY,
        '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}',
        "",
        WANTED,
    ),
    (HARMONY, ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>', "", WANTED),
    (HARMONY, "<|channel|>final<|message|>Hello.<|return|>", "Hello.", []),
    (GLM, "Well.\n" + glm("add", a=1), "Well.\n", WANTED),
    (GLM, glm("add", "\n", a=1) + "\n" + glm("note", "\n", text=TRICKY, n=3), "", TWO),
    (GLM, glm("add") + "\nDone.", "\nDone.", [("add", {})]),
    # A string stays one though it looks like JSON, and keeps its own tags and line breaks.
    (GLM, glm("note", text="12"), "", [("note", {"text": "12"})]),
    (GLM, glm("note", text="\n</arg>\n"), "", [("note", {"text": "\n</arg>\n"})]),
    (GLM, glm("add", a='{"x": [1]}'), "", [("add", {"a": {"x": [1]}})]),
    (
        MINIMAX,
        f"a<minimax:tool_call>{invoke('add', a=1)}{invoke('note', text=TRICKY, n=3)}\n"
        "</minimax:tool_call>",
        "a",
        TWO,
    ),
    (MINIMAX, f"<minimax:tool_call>{invoke('add')}</minimax:tool_call>", "", [("add", {})]),
    (
        DSML,
        dsml(
            invoke("add", "｜DSML｜", {"a": "false"}, a=1),
            invoke("note", "｜DSML｜", {"text": "true", "n": "false"}, text=TRICKY, n=3),
        ),
        "",
        TWO,
    ),
    # The tag's word goes before the schema's.
    (
        DSML,
        dsml(invoke("add", "｜DSML｜", {"a": "true"}, a="1")) + "\nDone.",
        "\nDone.",
        [("add", {"a": "1"})],
    ),
    (KIMI_K2, "Well. " + kimi(("add", '{"a": 1}'), ("note", NOTED)), "Well. ", TWO),
    (KIMI_K2, kimi(("add", '{"a": 1}')) + " Done.", " Done.", WANTED),
    (
        KIMI_K2,
        '<|tool_call_begin|>add<|tool_call_argument_begin|> {"a": 1} <|tool_call_end|>',
        "",
        WANTED,
    ),
    (
        SOLAR_OPEN,
        '<|tool_calls|><|tool_call:begin|>x1<|tool_call:name|>add<|tool_call:args|>{"a": 1}'
        "<|tool_call:end|><|tool_call:begin|>x2<|tool_call:name|>note<|tool_call:args|>"
        f"{NOTED}<|tool_call:end|>",
        "",
        TWO,
    ),
    (GEMMA, "Well. <|tool_call>call:add{a:1}<tool_call|>", "Well. ", WANTED),
    (
        GEMMA,
        f'<|tool_call>call:add{{a:1}}<tool_call|><|tool_call>call:note{{text:<|"|>{TRICKY}<|"|>,'
        "n:3}<tool_call|>",
        "",
        TWO,
    ),
    (GEMMA, "<|tool_call>call:add{}<tool_call|> Done.", " Done.", [("add", {})]),
    (
        GEMMA,
        '<|tool_call>call:add{a:{b:[1,None,true,[]], c:<|"|><|x{}<|"|>}}<tool_call|>',
        "",
        [("add", {"a": {"b": [1, None, True, []], "c": "<|x{}"}})],
    ),
    (COHERE, f"I will. <|START_ACTION|>[\n    {ACTION}\n]<|END_ACTION|>", "I will. ", WANTED),
    (
        COHERE,
        f'<|START_ACTION|>[{ACTION}, {{"tool_name": "note", "parameters": {NOTED}}}]<|END_ACTION|>',
        "",
        TWO,
    ),
]

SPOILED = [
    # What is no call comes out as text, whole.
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": }}</tool_call>'),
    (HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1}'),
    (HERMES, f"<tool_call>{CALL} and more</tool_call>"),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 01}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "\n"}}</tool_call>'),
    (HERMES, "<tool_call>"),
    (HERMES, "<tool_call><tool_cal"),
    (HERMES, "1 < 2 <tool <tool_call"),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a":1}, "name": "note"}</tool_call>'),
    (LISTED, '<TOOLCALL>[{"name": "nobody", "arguments": {}}]</TOOLCALL>'),
    (LLAMA, '{"name": "add", "parameters": {"a": 1'),
    (LLAMA, '{"answer": 42}'),
    (LLAMA, "  Plain text, then {}"),
    (LLAMA, '<|python_tag|>print("hi")'),
    (LLAMA, "<|python"),
    (MISTRAL, '[TOOL_CALLS]nobody[ARGS]{"a": 1}'),
    (MISTRAL, '[TOOL_CALLS]add{"a": 1}'),
    (MISTRAL, "[TOOL_CALLS] what?"),
    (MISTRAL, '[TOOL_CALLS][{"name": "add"'),
    (TAG, "<function=nobody>{}</function>"),
    (TAG, '<function=add>{"a": 1}'),
    (XML, "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"),
    (XML, "<tool_call>\n<function=nobody>\n</function>\n</tool_call>"),
    (XML, "<tool_call>{}</tool_call>"),
    (XML, "<tool_call>\n<function=add>\n<parameter=a\n"),
    (HARMONY, "no format at all"),
    (HARMONY, "<|channel|>commentary to=functions.nobody<|message|>{}"),
    (HARMONY, '<|channel|>commentary to=functions.add<|message|>{"a": '),
    (HARMONY, "<|channel|>final"),
    (GLM, glm("nobody", a=1)),
    (GLM, "<tool_call>add<arg_key>a</arg_key>1</tool_call>"),
    (GLM, "<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value"),
    (GLM, glm("add", a=1).replace("</tool_call>", "<arg_key>a</arg_key><arg_value>2</arg_value>")),
    (GLM, "<tool_call>\n{}\n</tool_call>"),
    (MINIMAX, f"<minimax:tool_call>{invoke('nobody', a=1)}</minimax:tool_call>"),
    (MINIMAX, '<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">1</parameter>'),
    (MINIMAX, "<minimax:tool_call>\n</minimax:tool_call>"),
    (DSML, '<｜DSML｜tool_calls><｜DSML｜invoke name="add"><｜DSML｜parameter name="a"'),
    (KIMI_K2, kimi(("nobody", "{}"))),
    (KIMI_K2, kimi(("add", '{"a": }'))),
    (KIMI_K2, "<|tool_calls_section_begin|> and nothing"),
    (KIMI_K2, '<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"a": 1}'),
    (SOLAR_OPEN, "<|tool_calls|><|tool_call:begin|>add<|tool_call:args|>{}<|tool_call:end|>"),
    (GEMMA, "<|tool_call>call:nobody{}<tool_call|>"),
    (GEMMA, "<|tool_call>call:add{a:1"),
    (GEMMA, "<|tool_call>call:add{a:one}<tool_call|>"),
    (GEMMA, "<|tool_call>call:add{a:[1,]}<tool_call|>"),
    (GEMMA, "<|tool_call>call:add{a:1,a:2}<tool_call|>"),
    (GEMMA, '<|tool_call>call:add{a:<|"|>x<|"|>'),
    (GEMMA, "<|tool_call>add{a:1}<tool_call|>"),
    (COHERE, "<|START_ACTION|>{}<|END_ACTION|>"),
    (COHERE, '<|START_ACTION|>[{"tool_name": "nobody", "parameters": {}}]<|END_ACTION|>'),
    (COHERE, '<|START_ACTION|>[{"name": "add", "parameters": {}}]<|END_ACTION|>'),
]


def ids(cases):
    return [f"{case[0].name}-{i}" for i, case in enumerate(cases)]


@pytest.mark.parametrize(("dialect", "written", "text", "calls"), READ, ids=ids(READ))
def test_calls_are_read_whole(dialect, written, text, calls):
    parsed = read(dialect, [written])
    assert parsed.text == text
    assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == calls
    assert len({call.id for call in parsed.calls}) == len(calls)


@pytest.mark.parametrize(("dialect", "written", "text", "calls"), READ, ids=ids(READ))
def test_deltas_add_up_to_the_calls(dialect, written, text, calls):
    parsed = read(dialect, written)
    grown = outcome(parsed)[2]
    assert [(*grown[i][0], grown[i][1]) for i in sorted(grown)] == [
        (call.id, call.name, call.arguments) for call in parsed.calls
    ]


@pytest.mark.parametrize(("dialect", "written"), SPOILED, ids=ids(SPOILED))
def test_what_is_no_call_comes_out_as_text(dialect, written):
    parsed = read(dialect, [written])
    assert parsed.text == written
    assert parsed.calls == ()


EVERY = [(dialect, written) for dialect, written, *_ in READ] + SPOILED


@pytest.mark.parametrize(("dialect", "written"), EVERY, ids=ids(EVERY))
def test_every_split_gives_the_same(dialect, written):
    whole = outcome(read(dialect, [written]))
    assert outcome(read(dialect, written)) == whole
    for at in range(1, len(written)):
        assert outcome(read(dialect, [written[:at], written[at:]])) == whole


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<function=", "add", ">", "{", "}",
    '"name": "add"', '"arguments": ', '"parameters": ', ", ", "[", "]", '"', "\\", "1", "\n", " ",
    "<parameter=a>", "</parameter>", "</function>", "<|python_tag|>", "<|channel|>", "<|message|>",
    "analysis", "final", "<|end|>", "<|start|>", "to=functions.add", CALL, "é", ";",
    "<arg_key>", "a", "</arg_key>", "<arg_value>", "</arg_value>", "<minimax:tool_call>",
    "</minimax:tool_call>", '<invoke name="', '">', '<parameter name="', "</invoke>",
    "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
    "<|tool_call_end|>", "<|tool_calls_section_end|>", "<|START_ACTION|>", "<|END_ACTION|>",
    '"tool_name": "add"', "<|tool_call>", "<tool_call|>", "call:add{", '<|"|>', "a:", "b:", "None",
]  # fmt: skip
written_text = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


NEW = [GLM, MINIMAX, DSML, KIMI_K2, SOLAR_OPEN, COHERE, GEMMA]


@pytest.mark.parametrize("dialect", [HERMES, LISTED, LLAMA, MISTRAL, TAG, XML, HARMONY, *NEW])
@given(data=st.data())
def test_any_text_in_any_split_gives_the_same(dialect, data):
    written = data.draw(written_text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=6)))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert outcome(read(dialect, pieces)) == outcome(read(dialect, [written]))


@pytest.mark.parametrize("dialect", [HERMES, LISTED, LLAMA, MISTRAL, TAG, XML, *NEW])
@given(written=written_text)
def test_without_a_call_every_character_comes_out(dialect, written):
    parsed = read(dialect, [written])
    if not parsed.calls:
        assert parsed.text == written


def test_arguments_stream_as_they_are_written():
    parser = HERMES.parser(TOOLS, id_prefix="t")
    assert parser.feed('<tool_call>{"name": "note", "arguments"').deltas == ()
    (first,) = parser.feed(': {"text": "on').deltas
    assert (first.index, first.name, first.arguments) == (0, "note", '{"text": "on')
    (second,) = parser.feed("e").deltas
    assert (second.index, second.id, second.name, second.arguments) == (0, "", "", "e")
    rest = parser.feed('"}}</tool_call>')
    assert rest.deltas[0].arguments == '"}'
    assert rest.calls[0].arguments == '{"text": "one"}'
    assert rest.calls[0].id == first.id


def test_a_string_parameter_streams_as_json():
    parser = XML.parser(TOOLS, id_prefix="t")
    parser.feed("<tool_call>\n<function=note>\n<parameter=text>\nabcdefghijklmnopqrst")
    (delta,) = parser.feed('"uvw').deltas
    assert delta.arguments
    assert delta.name == ""


def test_harmony_keeps_thoughts_apart():
    written = (
        "<|channel|>analysis<|message|>Add them.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.add<|message|>{"a": 1}<|call|>'
    )
    parsed = read(HARMONY, [written])
    assert parsed.reasoning == "Add them."
    assert parsed.text == "One moment."
    assert parsed.calls[0].name == "add"
    for at in range(1, len(written)):
        assert outcome(read(HARMONY, [written[:at], written[at:]])) == outcome(parsed)


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6)
)
objects = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        leaves.filter(lambda value: value not in (float("inf"), -float("inf"))),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ),
    max_size=4,
)


@given(objects, st.sampled_from([None, 1]), st.booleans())
def test_the_object_reader_takes_what_json_is(value, indent, ascii_only):
    reader, text = ObjectReader(), json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert all(reader.push(char) for char in text)
    assert reader.done
    assert reader.raw == text
    assert {key: json.loads(raw) for key, raw in reader.members.items()} == value


@given(st.text(alphabet='{}[]",:\\u0123abtrueflsn.eE+- \n', max_size=16).map(lambda t: "{" + t))
def test_the_object_reader_takes_nothing_else(text):
    reader = ObjectReader()
    accepted = all(reader.push(char) for char in text) and reader.done
    try:
        is_object = isinstance(json.loads(text.rstrip(" \n")), dict) and text == text.rstrip(" \n")
    except ValueError:
        is_object = False
    assert accepted == is_object


def test_mistral_ids_are_what_its_templates_accept():
    assert MISTRAL.call_id("abc123XYZ") == "abc123XYZ"
    assert MISTRAL.call_id("call_0123_1") == MISTRAL.call_id("call_0123_1")
    assert len(MISTRAL.call_id("call_0123_1")) == 9
    assert MISTRAL.call_id("call_0123_1").isalnum()
    assert MISTRAL.call_id("call_0123_1") != MISTRAL.call_id("call_0123_2")
