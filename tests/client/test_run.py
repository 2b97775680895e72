"""The tool loop: schemas from signatures, checked arguments, errors told to the model."""

from __future__ import annotations

import json
import threading
from typing import Annotated, Literal

import anyio
import pytest
from pydantic import Field

from overspill import AsyncOverspill, Overspill, tool
from overspill.config import load_settings
from overspill.errors import (
    BudgetExhausted,
    DeadlineExceeded,
    InvalidRequest,
    StepsExhausted,
)
from overspill.testing import Answer, FakeEngine, call
from overspill.tools import bound
from overspill.types.chat import FinishReason, Privacy, Tool

pytestmark = pytest.mark.anyio


def weather(city: str, unit: Literal["c", "f"] = "c", days: int = 1) -> dict:
    """Tell the weather.

    Args:
        city: The city's name.
        days (int): How many days ahead.
    """
    return {"city": city, "degrees": 21, "unit": unit, "days": days}


@pytest.fixture
def client(tmp_path):
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    return lambda engine: AsyncOverspill("t", settings=settings, device=engine)


def test_a_signature_is_a_schema():
    tools, _ = bound([weather])
    assert tools[0].name == "weather"
    assert tools[0].description == "Tell the weather."
    assert tools[0].parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The city's name."},
            "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
            "days": {"type": "integer", "default": 1, "description": "How many days ahead."},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_parameters_may_be_called_like_a_models_own_methods():
    def odd(schema: str, _private: int, copy: bool = False) -> str:
        return f"{schema} {_private} {copy}"

    made = tool(odd)
    assert set(made.tool.parameters["properties"]) == {"schema", "_private", "copy"}
    assert made.read('{"schema": "s", "_private": 3}') == {
        "schema": "s",
        "_private": 3,
        "copy": False,
    }


@pytest.mark.parametrize(
    "function",
    [lambda x: x, lambda *numbers: None, lambda **named: None, print, int],
    ids=["no name", "args", "kwargs", "builtin", "class"],
)
def test_a_function_that_cannot_be_described_is_refused(function):
    with pytest.raises(InvalidRequest) as caught:
        bound([function])
    assert caught.value.param == "tools"


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(InvalidRequest, match="Two tools"):
        bound([weather, Tool("weather")])


async def test_a_call_is_made_and_its_result_told(client):
    model = FakeEngine([call("weather", city="Rome", days=2), "21 degrees in Rome."])
    async with client(model) as ai:
        reply = await ai.run("Weather in Rome?", tools=[weather])
    assert reply.text == "21 degrees in Rome."
    (result,) = reply.steps[0].results
    assert json.loads(result.content) == {"city": "Rome", "degrees": 21, "unit": "c", "days": 2}
    told = model.requests[1].messages[-1]
    assert (told.role, told.tool_call_id, told.content) == ("tool", result.call.id, result.content)
    assert [m.role for m in reply.messages] == ["user", "assistant", "tool", "assistant"]
    assert reply.steps[-1].results == ()
    assert len({request.id for request in model.requests}) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"city": 3}', "city"),
        ('{"town": "Rome"}', "town"),
        ('{"city": "Rome", "unit": "k"}', "unit"),
        ('{"city": ', "JSON"),
    ],
)
async def test_bad_arguments_are_told_to_the_model_and_nothing_is_called(client, arguments, said):
    made = []

    def weather(city: str, unit: Literal["c", "f"] = "c") -> str:
        made.append(city)
        return "fine"

    wrong = call("weather")
    wrong = type(wrong)(wrong.id, wrong.name, arguments)
    async with client(FakeEngine([wrong, "Sorry."])) as ai:
        reply = await ai.run("?", tools=[weather])
    (result,) = reply.steps[0].results
    assert not made
    assert said in result.error
    assert json.loads(result.content) == {"error": result.error}


async def test_what_a_tool_raises_is_told_to_the_model(client):
    def broken() -> str:
        raise KeyError("no such row")

    async with client(FakeEngine([call("broken"), "It failed."])) as ai:
        reply = await ai.run("?", tools=[broken])
    assert reply.steps[0].results[0].error == "KeyError: 'no such row'"
    assert reply.text == "It failed."


async def test_a_refusal_inside_a_tool_ends_the_run(client):
    def spend() -> str:
        raise BudgetExhausted("Nothing left.")

    async with client(FakeEngine([call("spend"), "never"])) as ai:
        with pytest.raises(BudgetExhausted):
            await ai.run("?", tools=[spend])


async def test_calls_of_one_answer_run_at_once_and_keep_their_order(client):
    both = threading.Barrier(2, timeout=20)

    def first() -> str:
        both.wait()
        return "1"

    async def second() -> str:
        await anyio.to_thread.run_sync(both.wait)
        return "2"

    script = [Answer(calls=(call("first"), call("second"))), "done"]
    async with client(FakeEngine(script)) as ai:
        reply = await ai.run("?", tools=[first, second])
    assert [result.content for result in reply.steps[0].results] == ["1", "2"]


async def test_a_tool_without_a_function_is_the_callers_to_call(client):
    async with client(FakeEngine([call("theirs", x=1)])) as ai:
        reply = await ai.run("?", tools=[weather, Tool("theirs")])
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    assert reply.tool_calls[0].name == "theirs"
    assert reply.steps[-1].results == ()


async def test_steps_are_bounded_and_kept(client):
    async with client(FakeEngine(lambda request: call("weather", city="Rome"))) as ai:
        with pytest.raises(StepsExhausted, match="3 answers") as caught:
            await ai.run("?", tools=[weather], max_steps=3)
    assert len(caught.value.steps) == 3


async def test_a_choice_that_was_required_holds_for_the_first_answer_only(client):
    model = FakeEngine([call("weather", city="Rome"), "done"], json_schema=True)
    async with client(model) as ai:
        await ai.run("?", tools=[weather], tool_choice="required")
    assert [request.tool_choice for request in model.requests] == ["required", "auto"]


async def test_the_chain_shares_one_deadline(client):
    model = FakeEngine([call("weather", city="Rome"), "done"])
    async with client(model) as ai:
        await ai.run("?", tools=[weather], deadline_s=60)
    first, second = (request.deadline_s for request in model.requests)
    assert second < first <= 60


async def test_a_tool_that_takes_too_long_ends_at_the_deadline(client):
    async def slow() -> None:
        await anyio.sleep_forever()

    async with client(FakeEngine([call("slow"), call("slow")])) as ai:
        with pytest.raises(DeadlineExceeded):
            await ai.run("?", tools=[slow], deadline_s=0.3)
        with pytest.raises(BudgetExhausted), ai.budget(seconds=0.3):
            await ai.run("?", tools=[slow])


async def test_leaving_a_run_cancels_the_answer_and_the_calls(client):
    begun, ended = anyio.Event(), anyio.Event()

    async def waiting() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with client(FakeEngine([call("waiting"), "never"])) as ai:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: ai.run("?", tools=[waiting]))
            await begun.wait()
            group.cancel_scope.cancel()
        assert ended.is_set()


async def test_a_private_conversation_stays_private_through_the_run(client):
    model = FakeEngine([call("weather", city="Rome"), "done"])
    async with client(model) as ai:
        reply = await ai.run("?", tools=[weather], privacy="device")
    assert {request.privacy for request in model.requests} == {Privacy.DEVICE}
    assert {step.reply.route.bytes_sent for step in reply.steps} == {0}


async def test_output_types_the_last_answer(client):
    model = FakeEngine([call("weather", city="Rome"), '{"degrees": 21}'], json_schema=True)
    async with client(model) as ai:
        schema = {"type": "object", "properties": {"degrees": {"type": "integer"}}}
        reply = await ai.run("?", tools=[weather], output=schema)
    assert reply.output == {"degrees": 21}


def test_the_blocking_client_runs_too(tmp_path):
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    model = FakeEngine([call("weather", city="Rome"), "fine"])
    with Overspill("t", settings=settings, device=model) as ai:
        assert ai.run("?", tools=[weather]).text == "fine"


async def test_a_schema_of_ones_own_needs_no_type_hints(client):
    def find(**named):
        return named

    described = tool(find, name="find", parameters={"type": "object"}, description="Finds.")
    async with client(FakeEngine([call("find", a=1), "ok"])) as ai:
        reply = await ai.run("?", tools=[described])
    assert reply.steps[0].results[0].content == '{"a": 1}'


def test_annotated_limits_reach_the_schema_and_the_check():
    def book(seats: Annotated[int, Field(ge=1, le=4)]) -> str:
        return "ok"

    made = tool(book)
    assert made.tool.parameters["properties"]["seats"]["maximum"] == 4
    with pytest.raises(ValueError, match="seats"):
        made.read('{"seats": 9}')
