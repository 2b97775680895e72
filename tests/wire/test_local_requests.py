"""Nothing that an app asks is lost on its way to the daemon."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from overspill.types.budget import Left
from overspill.types.chat import Grammar, Image, Message, Privacy, Request, Sampling, Tool, Watch
from overspill.types.route import Grant
from overspill.wire import convert

ASKED = {
    "messages": (Message("user", "hi", images=(Image(b"\x89PNG", "image/png", 1),)),),
    "id": "r1",
    "model": "brook",
    "app": "notes",
    "max_tokens": 3,
    "sampling": Sampling(temperature=0.5, seed=7),
    "stop": ("end",),
    "tools": (Tool("f", "does", {"type": "object"}, True),),
    "tool_choice": "required",
    "tool_name": "f",
    "json_schema": {"type": "object"},
    "top_logprobs": 2,
    "privacy": Privacy.DEVICE,
    "deadline_s": 4.0,
    "first_token_s": 1.0,
    "attempt": 1,
    "prefix": "So ",
    "lane": "batch",
    "adapter": "legal",
    "draft": "maybe",
    "draft_tokenizer": "of another",
    "cache_scope": "app",
    "grammar": Grammar("regex", "a+"),
    "parallel_tool_calls": False,
    "watch": Watch(3, (1, 2)),
    "grant": Grant("maker", "r1", 9, b"sig"),
    "redact": True,
    "left": Left(4.0, None, 900, 3),
    "raw": True,
}
BARE = {"messages": (Message("user", "hi"),), "id": "r0"}
STAYS = {"app", "privacy", "cache_scope", "watch", "grant", "redact", "left"}
"""What a device tells its own daemon, and no cloud."""


def test_every_field_is_tried_with_a_value_that_is_not_its_own():
    assert {f.name for f in fields(Request)} == set(ASKED)
    for field in fields(Request):
        if field.default is not MISSING:
            assert ASKED[field.name] != field.default, field.name


@pytest.mark.parametrize("name", sorted(ASKED))
def test_each_field_goes_to_the_daemon(name):
    request = Request(**{**BARE, name: ASKED[name]})
    assert _there_and_back(request, local=True) == request


@pytest.mark.parametrize("name", sorted(STAYS))
def test_what_is_the_devices_own_goes_to_no_cloud(name):
    request = Request(**{**BARE, name: ASKED[name]})
    bare = Request(**BARE)
    assert convert.request_to_proto(request) == convert.request_to_proto(bare)


def _there_and_back(request: Request, *, local: bool) -> Request:
    message = convert.request_to_proto(request, local=local)
    return convert.request_from_proto(message, local=local)
