"""From bytes to text: whatever the split, the same text, no half characters, no part of a stop."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overspill.engines.answer_text import AnswerForm, AnswerText
from overspill.engines.control_guard import ControlGuard
from overspill.engines.dialects.json_calls import TaggedJson
from overspill.engines.text_stream import StopStrings, Utf8Stream
from overspill.types.chat import Message, Request, Tool

small_text = st.text(alphabet="abAB<>|é", max_size=24)
stops = st.lists(st.text(alphabet="abAB<", min_size=1, max_size=5), min_size=1, max_size=3)


@st.composite
def split(draw, values):
    """A value, and the same in pieces."""
    whole = draw(values)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    ends = [*cuts, len(whole)]
    return whole, [whole[a:b] for a, b in zip([0, *cuts], ends, strict=True)]


def _cut_by_hand(text, stops):
    """The specification: read character by character, stop at the first complete stop string."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(split(small_text), stops)
@example(("aab", ["a", "a", "b"]), ["ab", "aab"])
def test_stop_strings_cut_the_same_text_however_it_is_split(parts, stops):
    whole, pieces = parts
    filter_ = StopStrings(stops)
    released = [filter_.feed(piece) for piece in pieces]
    text = "".join(released) + ("" if filter_.stopped else filter_.flush())
    assert (text, filter_.stopped) == _cut_by_hand(whole, stops)


@given(split(small_text), stops)
def test_what_was_released_never_has_to_be_taken_back(parts, stops):
    whole, pieces = parts
    filter_ = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += filter_.feed(piece)
        assert _cut_by_hand(whole, stops)[0].startswith(shown)


@given(split(st.text(max_size=20).map(str.encode)))
def test_characters_come_whole_from_any_split(parts):
    data, pieces = parts
    stream = Utf8Stream()
    shown = [stream.feed(piece) for piece in pieces]
    assert "".join(shown) + stream.flush() == data.decode()
    assert not any("\ufffd" in text for text in shown if "\ufffd" not in data.decode())


@given(split(st.binary(max_size=20)))
def test_bytes_that_are_no_text_are_shown_as_such_and_never_raise(parts):
    data, pieces = parts
    stream = Utf8Stream()
    shown = "".join(stream.feed(piece) for piece in pieces) + stream.flush()
    assert shown == data.decode("utf-8", "replace")


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "s": "é"}}\n</tool_call>'


def _parse(pieces, names=("add",)):
    parser = TaggedJson().parser([Tool(name) for name in names], id_prefix="t")
    parsed = [parser.feed(piece) for piece in pieces] + [parser.flush()]
    return "".join(p.text for p in parsed), [call for p in parsed for call in p.calls]


@given(split(st.just(f"Let me see. {CALL}\n{CALL}")))
def test_calls_are_found_in_any_split(parts):
    text, calls = _parse(parts[1])
    assert text == "Let me see. "
    assert [call.name for call in calls] == ["add", "add"]
    assert [json.loads(call.arguments) for call in calls] == [{"a": 1, "s": "é"}] * 2
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{broken</tool_call>",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>["add"]</tool_call>',
        '<tool_call>{"name": ["add"]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {}}',
        "a < b and <tool_cal",
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
    ],
)
def test_what_only_looks_like_a_call_stays_text(text):
    assert _parse([text]) == (text, [])
    assert _parse([*text[:200], text[200:]]) == (text, [])


@given(split(small_text))
def test_text_without_calls_passes_through(parts):
    assert _parse(parts[1]) == (parts[0], [])


FORM = AnswerForm(TaggedJson())


def _answer(pieces, **options):
    answer = AnswerText(Request(messages=(Message("user", "x"),), **options), FORM)
    parsed = []
    for piece in pieces:
        parsed.append(answer.feed(piece))
        if answer.stopped:
            break
    parsed.append(answer.flush())
    shown = "".join(p.text for p in parsed)
    assert answer.released == shown
    return shown, [call for p in parsed for call in p.calls]


@given(split(st.just(f"é {CALL} END tail".encode())))
def test_bytes_stops_and_calls_together(parts):
    text, calls = _answer(parts[1], stop=("END",), tools=(Tool("add"),))
    assert text == "é "
    assert [call.name for call in calls] == ["add"]


def test_tools_that_may_not_be_used_leave_the_text_alone():
    text, calls = _answer([CALL.encode()], tools=(Tool("add"),), tool_choice="none")
    assert (text, calls) == (CALL, [])


# --- messages cannot write control tokens -------------------------------------------------------

MARKS = ("<|im_start|>", "<|im_end|>", "<|im_start|>x")


pieces_of_text = st.sampled_from([*MARKS, "a", "\ufdd0", "<", "|im_end|>", "<|"])


@given(st.lists(pieces_of_text, max_size=8).map("".join))
def test_a_guarded_text_is_unchanged_and_holds_no_control_token(text):
    guard = ControlGuard(MARKS)
    pieces = list(guard.split(guard.mark(text)))
    assert "".join(piece for piece, _ in pieces) == text
    for piece, special in pieces:
        assert not (special and any(mark in piece for mark in MARKS))


def test_the_templates_own_control_tokens_count():
    guard = ControlGuard(MARKS)
    prompt = f"<|im_start|>user\n{guard.mark('a<|im_end|>b')}<|im_end|>"
    assert list(guard.split(prompt)) == [
        ("<|im_start|>user\na", True),
        ("<|im_end|>", False),
        ("b<|im_end|>", True),
    ]


@pytest.mark.parametrize("written", [repr, ascii, json.dumps, lambda text: text[1:], str.split])
def test_what_a_template_makes_of_a_text_spells_no_control_token_either(written):
    guard = ControlGuard(MARKS)
    shown = list(guard.split(f"<|im_start|>{written(guard.mark('a<|im_end|>b'))}<|im_end|>"))
    assert "".join(piece for piece, special in shown if special).count("<|im_end|>") == 1
    expected = f"<|im_start|>{written('a<|im_end|>b')}<|im_end|>"
    assert "".join(piece for piece, _ in shown) == expected


def test_a_control_token_that_a_template_cut_open_stays_so():
    guard = ControlGuard(MARKS)
    cut = guard.mark("a<|im_end|>b").replace("|>", "|")
    assert [special for _, special in guard.split(cut)] == [True]
    assert "<|im_end" not in cut


def test_a_vocabulary_without_control_tokens_needs_no_guard():
    guard = ControlGuard(())
    assert list(guard.split(guard.mark("<|im_end|>"))) == [("<|im_end|>", True)]
