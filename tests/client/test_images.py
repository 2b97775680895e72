"""Pictures in messages: read from parts, never fetched, and refused where nobody can see them."""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill import AsyncOverspill
from overspill.config import load_settings
from overspill.content import MAX_IMAGE_BYTES, image_of, read_content
from overspill.engines.registry import open_engine
from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.testing import FakeEngine
from overspill.types.chat import Image, Message, Request
from overspill.types.route import Route
from overspill.wire import convert

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
JPEG = b"\xff\xd8\xff\xe0" + bytes(16)


def _url(data, media_type="image/png"):
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def test_parts_become_text_and_images_in_their_places():
    parts = [
        {"type": "text", "text": "Before "},
        _part(_url(PNG)),
        {"type": "text", "text": "after"},
        _part(JPEG),
    ]
    text, images = read_content(parts)
    assert text == "Before after"
    assert images == (Image(PNG, "image/png", 7), Image(JPEG, "image/jpeg", 12))


@pytest.mark.parametrize(
    ("part", "kind", "words"),
    [
        (_part("https://example.com/cat.png"), UnsupportedOption, "nothing is fetched"),
        (_part("file:///etc/passwd"), UnsupportedOption, "nothing is fetched"),
        (_part("data:image/png;base64,!!!"), InvalidRequest, "malformed"),
        (_part(_url(JPEG)), InvalidRequest, "is image/jpeg"),
        (_part(_url(b"<svg/>", "image/svg+xml")), InvalidRequest, "no known type"),
        (_part(None), InvalidRequest, "no url"),
        ({"type": "input_audio"}, UnsupportedOption, "input_audio"),
        (7, UnsupportedOption, "int"),
    ],
)
def test_what_is_no_picture_of_ours_is_refused(part, kind, words):
    with pytest.raises(kind, match=words) as caught:
        read_content([part])
    assert caught.value.param == "messages"


def test_a_picture_that_is_too_large_is_refused():
    with pytest.raises(InvalidRequest, match="limit"):
        image_of(PNG + bytes(MAX_IMAGE_BYTES))


@given(st.binary(max_size=40))
def test_any_bytes_are_an_image_or_refused(data):
    with suppress(InvalidRequest):
        assert image_of(data).data == data


def test_pictures_cross_the_wire():
    request = Request((Message("user", "look", images=(Image(PNG, "image/png", 2),)),))
    again = convert.request_from_proto(convert.request_to_proto(request))
    assert again.messages == request.messages


@pytest.fixture
def settings(tmp_path):
    return replace(load_settings(environ={"OVERSPILL_HOME": str(tmp_path)}), model="echo")


async def test_a_model_without_eyes_is_named_before_any_token(settings):
    fake = FakeEngine("I see")
    look = [{"role": "user", "content": [{"type": "text", "text": "?"}, _part(_url(PNG))]}]
    async with AsyncOverspill("t", settings=settings, device=fake) as ai:
        with pytest.raises(UnsupportedOption, match=r"fake cannot read images.*mmproj") as caught:
            await ai.chat(look)
    assert caught.value.param == "messages"
    assert not fake.requests


async def test_a_picture_spills_to_a_cloud_that_can_see_it(
    cloud_at, made_gguf, made_mmproj, tmp_path
):
    pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")
    model, projector = made_mmproj.pair(made_gguf, tmp_path)
    fake = FakeEngine("I see")
    look = [
        {"role": "user", "content": [_part(made_mmproj.noise(1)), {"type": "text", "text": "?"}]}
    ]
    async with (
        cloud_at(str(model), str(projector)) as cloud,
        AsyncOverspill("t", settings=cloud.settings, device=fake) as ai,
    ):
        await ai.enroll(cloud.code())
        assert (await ai.chat("Hello")).route.route is Route.DEVICE
        reply = await ai.chat(look, max_tokens=4)
        assert (reply.route.route, reply.model) == (Route.CLOUD, "river")
        assert reply.usage.prompt_tokens > 16
        with pytest.raises(UnsupportedOption, match="fake cannot read images"):
            await ai.chat(look, privacy="device")


async def test_a_picture_alone_is_a_message(made_gguf, made_mmproj, settings, tmp_path):
    pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")
    model, projector = made_mmproj.pair(made_gguf, tmp_path)
    seeing = replace(settings, model=str(model), mmproj=projector)
    look = [{"role": "user", "content": [_part(made_mmproj.noise(1))]}]
    async with AsyncOverspill("t", settings=seeing) as ai:
        assert (await ai.chat(look, max_tokens=2)).usage.completion_tokens == 2


async def test_pictures_that_are_too_large_together_are_refused(settings):
    large = image_of(PNG + bytes(MAX_IMAGE_BYTES - len(PNG)))
    look = [{"role": "user", "content": [_part(large.data)] * 3}]
    async with AsyncOverspill("t", settings=settings, device=FakeEngine()) as ai:
        with pytest.raises(InvalidRequest, match="together"):
            await ai.chat(look)


async def test_an_engine_refuses_by_itself_too():
    picture = Message("user", "look", images=(Image(PNG, "image/png"),))
    async with open_engine("echo") as engine:
        with pytest.raises(UnsupportedOption, match="echo cannot read images"):
            [chunk async for chunk in engine.generate(Request((picture,)))]
