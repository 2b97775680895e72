"""What goes over the wire comes back as it was."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill import errors
from overspill.types.card import ModelCard
from overspill.types.chat import (
    Chunk,
    Finish,
    FinishReason,
    Grammar,
    Message,
    Privacy,
    Request,
    Sampling,
    TokenLogprob,
    TokenSignal,
    Tool,
    ToolCall,
    ToolCallDelta,
    Watch,
)
from overspill.types.usage import Usage
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2

text = st.text(max_size=40)
maybe_text = st.none() | text
unit = st.floats(0, 1, allow_nan=False)
single = st.floats(-100, 100, width=32)
int32 = st.integers(0, 2**31 - 1)
tool_calls = st.lists(st.builds(ToolCall, text, text, text), max_size=2).map(tuple)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=text,
    tool_calls=tool_calls,
    tool_call_id=maybe_text,
    name=maybe_text,
)
schemas = st.dictionaries(text, st.recursive(text | st.integers(), st.lists, max_leaves=4))
requests = st.builds(
    Request,
    messages=st.lists(messages, max_size=3).map(tuple),
    model=maybe_text,
    max_tokens=st.none() | int32,
    sampling=st.builds(
        Sampling,
        temperature=unit,
        top_p=unit,
        top_k=int32,
        logit_bias=st.dictionaries(int32, unit, max_size=3),
        seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    ),
    stop=st.lists(text, max_size=2).map(tuple),
    tools=st.lists(st.builds(Tool, text, text, schemas, st.booleans()), max_size=2).map(tuple),
    tool_choice=st.sampled_from(["auto", "none", "required"]),
    tool_name=maybe_text,
    json_schema=st.none() | schemas,
    grammar=st.none() | st.builds(Grammar, st.sampled_from(["regex", "lark"]), text),
    parallel_tool_calls=st.booleans(),
    top_logprobs=st.none() | st.integers(0, 20),
    deadline_s=st.none() | unit,
    first_token_s=st.none() | unit,
    attempt=int32,
    lane=st.sampled_from(["interactive", "batch"]),
    prefix=text,
    adapter=maybe_text,
    draft=text,
    draft_tokenizer=text,
    cache_scope=maybe_text,
    app=text.filter(bool),
    privacy=st.sampled_from(list(Privacy)),
    watch=st.none() | st.builds(Watch, int32, st.lists(int32, max_size=3).map(tuple)),
)


@given(requests)
def test_a_local_request_survives_the_wire(request):
    data = convert.request_to_proto(request, local=True).SerializeToString()
    read = convert.request_from_proto(chat_pb2.ChatRequest.FromString(data), local=True)
    assert read == request


@given(requests)
def test_a_cloud_request_names_neither_app_nor_floor(request):
    message = convert.request_to_proto(request)
    assert message.app == ""
    assert message.privacy == ""
    assert not message.HasField("cache_scope")
    assert not message.HasField("watch")


def test_a_grammar_in_an_unknown_syntax_is_refused():
    message = chat_pb2.ChatRequest(id="r", grammar=chat_pb2.Grammar(syntax="bnf", text="x"))
    with pytest.raises(errors.InvalidRequest, match="grammar") as caught:
        convert.request_from_proto(message)
    assert caught.value.param == "grammar"


def test_a_cloud_reads_no_cache_scope_whatever_a_device_sends():
    message = chat_pb2.ChatRequest(id="r", cache_scope="a scope of somebody else's")
    assert convert.request_from_proto(message).cache_scope is None


@given(
    st.builds(
        Chunk,
        text=text,
        token_ids=st.lists(int32, max_size=3).map(tuple),
        logprobs=st.lists(
            st.builds(
                TokenLogprob, int32, text, unit, st.lists(st.tuples(int32, text, unit)).map(tuple)
            ),
            max_size=2,
        ).map(tuple),
        tool_calls=tool_calls,
        tool_call_deltas=st.lists(st.builds(ToolCallDelta, int32, text, text, text)).map(tuple),
        reasoning=text,
        signals=st.lists(
            st.builds(
                TokenSignal, int32, single, single, single, st.lists(single, max_size=3).map(tuple)
            ),
            max_size=2,
        ).map(tuple),
    )
)
def test_a_chunk_survives_the_wire(chunk):
    event = chat_pb2.ChatEvent()
    convert.write_delta(chunk, event.delta)
    assert event.HasField("delta")
    assert convert.delta_to_chunk(event.delta) == chunk


@given(
    st.builds(Usage, int32, int32, int32, unit, unit, unit, int32, int32),
    st.sampled_from(list(FinishReason)),
)
def test_a_finish_survives_the_wire(usage, reason):
    finish = Finish(reason, usage, model="m", adapter=None)
    assert convert.final_to_finish(convert.finish_to_final(finish)) == finish


@given(st.builds(ModelCard, text, int32, text, skill_accuracy=st.dictionaries(text, unit)))
def test_a_card_survives_the_wire(card):
    assert convert.cards_from_bytes(convert.cards_to_bytes([card, card])) == (card, card)


@pytest.mark.parametrize(
    "error",
    [
        errors.ContextOverflow(900, 200, 1024, "brook"),
        errors.BusyError("Full.", retry_after_s=1.5),
        errors.InvalidRequest("Bad.", param="n", mend="Use 1."),
        errors.EvidenceRejected("wrong_nonce", "5", expected="a", actual="b"),
        errors.DeviceRejected("No.", reason="revoked"),
    ],
)
def test_an_error_keeps_its_type_and_numbers(error):
    over_the_wire = convert.error_from_proto(convert.error_to_proto(error))
    assert type(over_the_wire) is type(error)
    assert vars(over_the_wire) == vars(error)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def test_an_error_code_from_a_newer_version_is_still_an_error():
    error = convert.error_from_proto(chat_pb2.ErrorEvent(code="from_the_future", message="Hm."))
    assert isinstance(error, errors.EngineError)
    assert error.message == "Hm."


def test_unknown_words_and_broken_json_are_refused_by_name():
    for change in ({"tool_choice": "perhaps"}, {"json_schema": "{"}, {"privacy": "none"}):
        with pytest.raises(errors.InvalidRequest) as caught:
            convert.request_from_proto(chat_pb2.ChatRequest(**change))
        assert caught.value.param == next(iter(change))


def test_a_raw_prompt_is_no_message_to_a_peer_that_does_not_know_it():
    request = Request((Message("user", "Once upon a time"),), raw=True)
    sent = convert.request_to_proto(request)
    assert not sent.messages
    back = convert.request_from_proto(sent)
    assert back.raw
    assert back.messages == request.messages
