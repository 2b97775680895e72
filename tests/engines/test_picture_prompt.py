"""Prompts with pictures, without a runtime: marks in messages, and rows in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.backend import Picture, PictureSpan
from overspill.engines.control_guard import ControlGuard
from overspill.engines.picture_prompt import ImageMarks, PicturePrompt
from overspill.errors import UnsupportedOption
from overspill.types.chat import Image, Message

GUARD = ControlGuard(["<|end|>"])


def _image(number, at) -> Image:
    return Image(bytes([number]), "image/png", at)


def _rendered(marks) -> str:
    return "".join(f"[{m.role}]{GUARD.mark(m.content)}" for m in marks.messages)


texts = st.text(st.sampled_from("ab <|end>\ufdd0\ufdd2\ufdd3:0"), max_size=30)


@given(st.lists(st.tuples(texts, st.lists(st.integers(0, 40), max_size=3)), max_size=3))
def test_images_come_out_where_they_stood_and_texts_unchanged(turns):
    messages, expected, count = [], "", 0
    for text, places in turns:
        images = []
        for at in sorted(places):
            images.append(_image(count, at))
            count += 1
        messages.append(Message("user", text, images=tuple(images)))
        done = 0
        expected += "[user]"
        for image in images:
            expected += text[done : image.at] + f"({image.data[0]})"
            done = max(done, min(image.at, len(text)))
        expected += text[done:]
    marks = ImageMarks(messages)
    parts = marks.split(_rendered(marks), GUARD, "m")
    assert "".join(f"({p.data[0]})" if isinstance(p, Image) else p[0] for p in parts) == expected


def test_a_control_token_beside_an_image_stays_text():
    marks = ImageMarks([Message("user", "a<|end|>b", images=(_image(0, 1), _image(1, 8)))])
    parts = marks.split(f"<|end|>{_rendered(marks)}", GUARD, "m")
    spelled = [part for part in parts if not isinstance(part, Image) and "<|end|>" in part[0]]
    assert [special for _, special in spelled] == [True, False]
    assert [part.data[0] for part in parts if isinstance(part, Image)] == [0, 1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text + text,
        lambda text: text[len(text) // 2 :] + text[: len(text) // 2],
    ],
    ids=["dropped", "repeated", "moved"],
)
def test_a_template_that_loses_images_is_named(spoil):
    marks = ImageMarks([Message("user", "ab", images=(_image(0, 0), _image(1, 2)))])
    mark = marks.messages[0].content
    with pytest.raises(UnsupportedOption, match="template of m"):
        marks.split(spoil(mark), GUARD, "m")


@st.composite
def prompts(draw):
    """Tokens and spans: pieces of text and pictures in turn, the last a text."""
    tokens, spans = [], []
    for image in range(draw(st.integers(1, 4))):
        tokens += [1] * draw(st.integers(0, 5))
        length = draw(st.integers(1, 9))
        spans.append(PictureSpan(len(tokens), length, image, draw(st.booleans())))
        tokens += [-1 - image] * length
    return tokens + [1] * draw(st.integers(1, 5)), tuple(spans)


@given(prompts(), st.integers(1, 12), st.data())
def test_rows_cover_a_prompt_in_order_and_wait_for_what_is_not_there(prompt, limit, data):
    tokens, spans = prompt
    pictures = PicturePrompt((), spans, shares=True)
    computed = data.draw(st.integers(0, len(tokens) - 1))
    inside = [s for s in spans if s.whole and s.start < computed < s.start + s.tokens]
    computed = inside[0].start if inside else computed
    for number in pictures.missing(computed):
        pictures.ready[number] = Picture(np.zeros((spans[number].tokens, 1)), None, 1)
    while computed < len(tokens):
        assert not pictures.waits(computed)
        row = pictures.row(0, tokens, computed, limit)
        assert list(row.tokens) == tokens[computed : computed + len(row.tokens)]
        assert row.position == computed
        assert len({token < 0 for token in row.tokens}) == 1
        span = next((s for s in spans if s.start <= computed < s.start + s.tokens), None)
        assert (row.picture is None) == (span is None)
        if span is None or not span.whole:
            assert len(row.tokens) <= limit
        else:
            assert len(row.tokens) == span.tokens
        if span is not None:
            assert row.picture_from == computed - span.start
            assert computed + len(row.tokens) <= span.start + span.tokens
        computed += len(row.tokens)
        assert row.wants_logits == (computed == len(tokens))
    assert not pictures.ready


def test_a_picture_that_is_not_there_is_waited_for():
    pictures = PicturePrompt((), (PictureSpan(2, 3, 0, False),), shares=True)
    assert [pictures.waits(at) for at in range(6)] == [False, False, True, True, True, False]
    assert pictures.missing(4) == [0]
    assert pictures.missing(5) == []
