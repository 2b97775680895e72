"""Deadlines hold whatever an answer waits for."""

from __future__ import annotations

import anyio
import pytest

from overspill.errors import DeadlineExceeded
from overspill.in_time import in_time
from overspill.types.chat import Message, Request
from overspill.types.reply import ReplyChunk

pytestmark = pytest.mark.anyio


class Pieces:
    """Gives its texts, then stands still; notes that it was left."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self.left = False

    async def __call__(self):
        try:
            for text in self._texts:
                yield ReplyChunk(route=None, text=text)
            await anyio.sleep_forever()
        finally:
            self.left = True


def request(**limits):
    return Request((Message("user", "x"),), **limits)


@pytest.mark.parametrize("limits", [{"deadline_s": 0.05}, {"first_token_s": 0.05}])
async def test_what_stands_still_before_its_first_piece_ends(limits):
    pieces = Pieces()
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        _ = [piece async for piece in in_time(request(**limits), pieces())]
    assert pieces.left


async def test_what_stands_still_later_ends_with_its_text():
    pieces = Pieces("one", " two")
    with pytest.raises(DeadlineExceeded) as caught:
        _ = [piece async for piece in in_time(request(deadline_s=0.05), pieces())]
    assert caught.value.partial == "one two"


async def test_the_first_pieces_limit_holds_for_the_first_alone():
    async def slow():
        yield ReplyChunk(route=None, text="one")
        await anyio.sleep(0.1)
        yield ReplyChunk(route=None, text=" two")

    told = [piece.text async for piece in in_time(request(first_token_s=0.05), slow())]
    assert told == ["one", " two"]


async def test_a_timeout_that_is_not_ours_is_passed_on():
    async def failing():
        raise TimeoutError("the disk")
        yield

    with pytest.raises(TimeoutError, match="the disk"):
        _ = [piece async for piece in in_time(request(deadline_s=60), failing())]


async def test_leaving_it_leaves_the_work():
    pieces = Pieces("one")
    stream = in_time(request(deadline_s=60), pieces())
    assert (await anext(stream)).text == "one"
    await stream.aclose()
    assert pieces.left
