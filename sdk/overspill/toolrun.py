"""``run``: ask, make the calls that the model wants, tell it their results, ask again.

Each answer is a request like any other: it is routed by itself, it shares the budget around it,
and a conversation that has become private stays so (its requests begin alike, see
:mod:`overspill.conversations`). Leaving a run cancels the answer and the calls that run.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from overspill.budget import Budget, current_budget
from overspill.errors import DeadlineExceeded, OverspillError, StepsExhausted
from overspill.tools import BadArguments, BoundTool
from overspill.types.chat import Message, Request, ToolCall, ToolChoice, new_request_id
from overspill.types.reply import Reply, Step, ToolResult

Collect = Callable[[Request], Awaitable[Reply]]


async def run_tools(
    collect: Collect, request: Request, tools: Mapping[str, BoundTool], *, max_steps: int
) -> tuple[list[Step], tuple[Message, ...]]:
    """All steps, and the conversation with the last answer.

    It ends with an answer that calls nothing, or one that calls a tool that is not among
    ``tools``: that call is the caller's to make. ``tool_choice`` holds for the first answer only,
    or a required call would be required for ever. ``deadline_s`` is that of the whole run.

    Raises ``StepsExhausted`` after ``max_steps`` answers that all call tools, with the steps;
    ``DeadlineExceeded``; and what the answers raise.
    """
    ends = None if request.deadline_s is None else time.monotonic() + request.deadline_s
    steps: list[Step] = []
    while len(steps) < max_steps:
        reply = await collect(_within(request, ends))
        said = Message("assistant", reply.text, tool_calls=reply.tool_calls)
        messages = (*request.messages, said)
        if not reply.tool_calls or any(call.name not in tools for call in reply.tool_calls):
            return [*steps, Step(reply)], messages
        results = await _made(reply.tool_calls, tools, ends)
        steps.append(Step(reply, results))
        request = _next(request, messages, results)
    raise StepsExhausted(max_steps, tuple(steps))


def _within(request: Request, ends: float | None) -> Request:
    if ends is None:
        return request
    left = ends - time.monotonic()
    if left <= 0:
        raise _too_late()
    return replace(request, deadline_s=left)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The run's deadline has passed.", mend="Give it more deadline_s.")


def _next(
    request: Request, messages: tuple[Message, ...], results: tuple[ToolResult, ...]
) -> Request:
    told = tuple(
        Message("tool", result.content, tool_call_id=result.call.id, name=result.call.name)
        for result in results
    )
    choice: ToolChoice = "none" if request.tool_choice == "none" else "auto"
    return replace(
        request,
        id=new_request_id(),
        messages=(*messages, *told),
        tool_choice=choice,
        tool_name=None,
    )


async def _made(
    calls: tuple[ToolCall, ...], tools: Mapping[str, BoundTool], ends: float | None
) -> tuple[ToolResult, ...]:
    """All calls of one answer at once; the first error that is no tool's own ends the others."""
    import anyio

    found: dict[int, ToolResult] = {}
    failure: OverspillError | None = None
    budget = current_budget() or Budget()
    left = None if ends is None else max(0.0, ends - time.monotonic())

    async def make(index: int, call: ToolCall) -> None:
        nonlocal failure
        try:
            found[index] = await call_tool(call, tools[call.name])
        except OverspillError as error:
            # Kept for after the group, which would wrap it.
            failure = failure or error
            group.cancel_scope.cancel()

    async with budget.deadline():
        with anyio.move_on_after(left) as limit:
            async with anyio.create_task_group() as group:
                for index, call in enumerate(calls):
                    group.start_soon(make, index, call)
    if limit.cancelled_caught:
        raise _too_late()
    if failure is not None:
        raise failure
    return tuple(found[index] for index in range(len(calls)))


async def call_tool(call: ToolCall, tool: BoundTool) -> ToolResult:
    """Make one call. What the arguments or the function got wrong is told to the model.

    Raises ``OverspillError`` that the function raised: a refusal or an empty purse inside a tool
    is not the model's to talk away. A plain function runs in a thread of its own; when the run is
    left it is no longer waited for.
    """
    started = time.perf_counter()
    content, failed = "", None
    try:
        content = _told(await called(tool.function, **tool.read(call.arguments)))
    except BadArguments as error:
        failed = f"Bad arguments: {error}"
    except OverspillError:
        raise
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    if failed is not None:
        content = json.dumps({"error": failed}, ensure_ascii=False)
    return ToolResult(call, content, failed, time.perf_counter() - started)


async def called(function: Callable[..., Any], **arguments: Any) -> Any:
    """What an app's own function gives, async or plain; a plain one runs in a thread."""
    from anyio.to_thread import run_sync

    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    value = await run_sync(lambda: function(**arguments), abandon_on_cancel=True)
    return await value if inspect.isawaitable(value) else value


def _told(value: Any) -> str:
    """Text as it is; everything else as JSON, and what JSON cannot say as its own text."""
    if isinstance(value, str):
        return value
    dump = getattr(value, "model_dump_json", None)
    if callable(dump):
        return str(dump())
    return json.dumps(value, ensure_ascii=False, default=str)
