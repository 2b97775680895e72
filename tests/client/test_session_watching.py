"""What is held back of a device's answer, piece by piece: nothing lost, doubled or out of order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.monitor import Monitor
from overspill.routing.monitor_policy import MonitorPolicy
from overspill.types.chat import (
    Chunk,
    Finish,
    FinishReason,
    Message,
    Request,
    TokenSignal,
    Tool,
    ToolCall,
    ToolCallDelta,
)
from overspill.types.route import Verdict
from overspill.types.usage import Usage
from overspill.watching import Watcher

CALC = Tool("calc", parameters={"type": "object", "required": ["n"]})
REQUEST = Request((Message("user", "How many?"),), tools=(CALC,))
BARE = Monitor(REQUEST, None, 0.5, 0.9, knows_cloud=False, threshold=0.2, may_leave=True)
HEADS = MonitorPolicy(
    "fake",
    "unknown",
    "fake",
    heads={name: {"bias": (0.9, 0.9), "mean_logprob": (0.3, 0.0)} for name in ("8", "32", "end")},
)
CERTIFIED = replace(BARE, heads=HEADS)
STAYS = replace(BARE, may_leave=False)
END = Chunk(finish=Finish(FinishReason.STOP, Usage(3, 4), "fake"))


def words(text, logprob=-0.1):
    """A chunk for each word, as one token of its own."""
    return [
        Chunk(
            text=word if n == 0 else f" {word}",
            token_ids=(n,),
            signals=(TokenSignal(n, logprob, 1.0, 1.0),),
        )
        for n, word in enumerate(text.split(" "))
    ]


def watch(monitor, chunks):
    """The watcher, and what it let out after each chunk, as the number of chunks."""
    watcher, shown = Watcher(monitor), []
    for chunk in chunks:
        shown.append(len(watcher.take(chunk)))
        if watcher.escalates:
            break
    return watcher, shown


def test_a_usual_beginning_is_let_out_with_its_first_token():
    watcher, shown = watch(BARE, [*words("Twelve apples"), END])
    assert shown == [1, 1, 1]
    assert not watcher.doubts


def test_what_may_become_a_refusal_waits_until_it_is_none():
    _, shown = watch(BARE, [*words("I'm sorry to hear that you had a very bad day and"), END])
    assert shown[0] == 0
    assert sum(shown) == len(shown)


def test_what_becomes_a_refusal_is_never_let_out():
    watcher, shown = watch(BARE, words("I'm sorry, but I can't help with that."))
    assert watcher.escalates
    assert sum(shown) == 0
    assert (watcher.draft, watcher.usage(3)) == ("", Usage(3, 5))


def test_where_nothing_may_leave_nothing_waits():
    watcher, shown = watch(STAYS, [*words("I'm sorry, but I can't help with that."), END])
    assert shown == [1] * 9
    assert watcher.doubts


def test_certified_signals_hold_so_many_tokens_and_no_more():
    watcher, shown = watch(CERTIFIED, [*words("w " * 39 + "w"), END])
    assert shown == [0] * 31 + [32] + [1] * 9
    assert [check.check for check in watcher.checks] == ["0", "1", "8", "32", "end"]


def test_an_unsure_answer_leaves_at_its_first_check_with_its_text_as_a_draft():
    watcher, shown = watch(CERTIFIED, words("w " * 39 + "w", logprob=-1.5))
    assert shown == [0] * 8
    assert watcher.checks[-1].check == "8"
    assert watcher.draft == "w w w w w w w w"
    assert watcher.usage(3) == Usage(3, 8)


def test_checks_that_pass_within_one_chunk_are_all_looked_at():
    whole = Chunk(
        text="w " * 40,
        token_ids=tuple(range(40)),
        signals=tuple(TokenSignal(n, -0.1, 1.0, 1.0) for n in range(40)),
    )
    watcher, shown = watch(CERTIFIED, [whole, END])
    assert shown == [1, 1]
    assert [check.check for check in watcher.checks] == ["0", "1", "8", "32", "end"]


def call_pieces(arguments):
    """A call as it is written: pieces without text, then the whole."""
    pieces = [Chunk(token_ids=(0,), tool_call_deltas=(ToolCallDelta(0, "1", "calc"),))]
    pieces += [
        Chunk(token_ids=(n,), tool_call_deltas=(ToolCallDelta(0, arguments=letter),))
        for n, letter in enumerate(arguments, 1)
    ]
    return [*pieces, Chunk(tool_calls=(ToolCall("1", "calc", arguments),)), END]


def test_a_call_is_held_until_it_can_be_read():
    pieces = call_pieces('{"n": 12345678901234567890}')
    watcher, shown = watch(BARE, pieces)
    assert len(pieces) > 20
    assert shown[:-2] == [0] * (len(pieces) - 2)
    assert sum(shown) == len(pieces)
    assert not watcher.doubts


@pytest.mark.parametrize(
    ("arguments", "code"),
    [('{"m": 1234567890}', "invalid_arguments"), ('{"n": 1234567890', "malformed_call")],
)
def test_a_call_that_nobody_can_make_is_never_seen(arguments, code):
    watcher, shown = watch(BARE, call_pieces(arguments))
    assert watcher.escalates
    assert sum(shown) == 0
    assert watcher.checks[-1].code == code
    assert watcher.draft == ""


def test_a_call_is_handed_on_piece_by_piece_where_nothing_may_leave():
    pieces = call_pieces('{"m": 1}')
    watcher, shown = watch(STAYS, pieces)
    assert shown == [1] * len(pieces)
    assert (watcher.checks[-1].verdict, watcher.checks[-1].code) == (
        Verdict.DOUBT, "invalid_arguments",
    )  # fmt: skip


answers = st.lists(
    st.builds(
        lambda text, tokens, logprob: Chunk(
            text=text,
            token_ids=tuple(range(tokens)),
            signals=tuple(TokenSignal(n, logprob, 1.0, 1.0) for n in range(tokens)),
        ),
        st.text(max_size=8),
        st.integers(0, 5),
        st.floats(-2, 0),
    ),
    max_size=40,
)


@given(answers, st.sampled_from([BARE, CERTIFIED, STAYS]))
def test_everything_is_let_out_once_and_in_order_or_nothing_at_all(chunks, monitor):
    chunks = [*chunks, END]
    watcher, out = Watcher(monitor), []
    for chunk in chunks:
        out += watcher.take(chunk)
        if watcher.escalates:
            break
    assert out == ([] if watcher.escalates else chunks)


@given(answers)
def test_what_may_not_leave_never_does_and_never_waits(chunks):
    watcher = Watcher(STAYS)
    for chunk in [*chunks, END]:
        assert watcher.take(chunk) == [chunk]
        assert not watcher.escalates
