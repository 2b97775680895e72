"""OpenAI's responses request, as one of ours.

Every parameter that the dialect defines is honoured, or harmless and passed over, or refused by
name with 400. Nothing is stored: ``store`` true, ``previous_response_id`` and ``conversation`` are
refused, so that no client believes that a later request could build on an earlier one; hand the
items back as ``input``. Thoughts among them are not shown to a model again.

Source: the API reference of ``POST /v1/responses``, the Open Responses specification and the
types of ``openai`` 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from overspill.errors import InvalidRequest
from overspill.types.chat import Image, Message, Request, Role, Sampling, Tool, ToolCall
from overspill_edge.body import (
    Count,
    FunctionName,
    NonEmpty,
    Parameters,
    Strict,
    checked,
    shown,
    unreadable,
)
from overspill_edge.dialect import NOTHING, OverspillOptions, Source
from overspill_edge.openai_common import Penalty

_STATELESS = "Nothing is stored here: hand the earlier items back as input."
_PARAMETERS = Parameters(
    passed_over=frozenset(("prompt_cache_options", "prompt_cache_retention")),
    refused={
        "access_programs": "Leave it out.",
        "background": "Keep the connection; a stream says at once how far it is.",
        "context_management": "Nothing of a prompt is taken away; leave it out.",
        "conversation": _STATELESS,
        "image": "Leave it out.",
        "max_tool_calls": "Use parallel_tool_calls: false for one call at most.",
        "moderation": "Leave it out.",
        "previous_response_id": _STATELESS,
        "prompt": "Nothing is stored here: send the prompt itself.",
        "service_tier": "Use auto, default, or leave it out.",
        "store": "Nothing is stored here; say false, or leave it out.",
        "truncation": "No prompt is ever cut; use disabled, or leave it out.",
    },
    harmless={
        "background": (False,),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "truncation": ("disabled",),
    },
)
NAMES: Mapping[str, str] = {
    "json_schema": "text.format",
    "output": "text.format",
    "grammar": "overspill.grammar",
    "tool_name": "tool_choice",
    "prompt": "input",
    "messages": "input",
    "adapter": "overspill.adapter",
    "max_tokens": "max_output_tokens",
}
"""The dialect's names for parameters that an engine refuses by ours."""

LOGPROBS = "message.output_text.logprobs"
_Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True)
class Content:
    """What a message says and shows."""

    text: str
    images: tuple[Image, ...] = ()


def _content(value: Any) -> Any:
    """Text or parts as :class:`Content`; nothing is fetched."""
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, list):
        return value
    return Content(*shown([_part(part) for part in value]))


def _part(part: Any) -> dict[str, Any]:
    """One of its parts as chat completions would have it."""
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            image = {"url": url, "detail": part.get("detail")}
            return {"type": "image_url", "image_url": image}
    raise unreadable(
        "Only parts of the types input_text, input_image with an image_url, and output_text are "
        "read"
    )


class _MessageItem(Strict):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Content, BeforeValidator(_content)]
    id: str | None = None
    status: _Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="after")
    def _shown_by_users(self) -> _MessageItem:
        if self.content.images and self.role != "user":
            raise unreadable("Only a user's message may show an image")
        return self

    @property
    def message(self) -> Message:
        """As one of ours."""
        role: Role = "system" if self.role == "developer" else self.role
        return Message(role, self.content.text, images=self.content.images)


class _CallItem(Strict):
    type: Literal["function_call"]
    call_id: NonEmpty
    name: NonEmpty
    arguments: str
    id: str | None = None
    status: _Status | None = None
    caller: dict[str, Any] | None = None
    namespace: None = None
    async_: Annotated[Literal[False] | None, Field(alias="async")] = None


class _OutputItem(Strict):
    type: Literal["function_call_output"]
    call_id: NonEmpty
    output: Annotated[Content, BeforeValidator(_content)]
    id: str | None = None
    status: _Status | None = None
    caller: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _text_only(self) -> _OutputItem:
        if self.output.images:
            raise unreadable("A function's output is text; show an image in a message after it")
        return self


class _ReasoningItem(Strict):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[dict[str, Any]] = Field(default_factory=list)
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None
    status: _Status | None = None


_Item = Annotated[
    _MessageItem | _CallItem | _OutputItem | _ReasoningItem, Field(discriminator="type")
]


def _as_items(value: Any) -> Any:
    """A prompt as a message; a message may leave its type out."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    return [
        {"type": "message", **item}
        if isinstance(item, dict) and "role" in item and "type" not in item
        else item
        for item in value
    ]


class _Function(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None


class _NamedFunction(Strict):
    type: Literal["function"]
    name: NonEmpty


class _AllowedTools(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[_NamedFunction], Field(min_length=1)]


class _TextFormat(Strict):
    type: Literal["text", "json_object"]


class _SchemaFormat(Strict):
    type: Literal["json_schema"]
    name: NonEmpty
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class _TextConfig(Strict):
    format: Annotated[_TextFormat | _SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class _Reasoning(Strict):
    """A model thinks as it does; how much cannot be chosen."""

    effort: None = None
    summary: None = None
    generate_summary: None = None
    context: None = None
    mode: None = None


class _StreamOptions(Strict):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Strict):
    """The body, checked. Bounds are the dialect's."""

    model: NonEmpty
    input: Annotated[list[_Item], BeforeValidator(_as_items), Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    tools: list[_Function] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[_NamedFunction | _AllowedTools, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: _TextConfig | None = None
    reasoning: _Reasoning | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    overspill: OverspillOptions | None = None

    @property
    def tells_logprobs(self) -> bool:
        """Whether tokens are told with their log-probabilities."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    @property
    def chosen(self) -> frozenset[str]:
        """The names that ``tool_choice`` picks out."""
        if isinstance(self.tool_choice, _AllowedTools):
            return frozenset(tool.name for tool in self.tool_choice.tools)
        if isinstance(self.tool_choice, _NamedFunction):
            return frozenset((self.tool_choice.name,))
        return frozenset()


def parse_responses(body: bytes) -> ResponsesRequest:
    """The body of a request, or ``InvalidRequest`` naming the parameter."""
    asked = checked(ResponsesRequest, body, _PARAMETERS)
    names = [tool.name for tool in asked.tools or ()]
    if len(set(names)) != len(names):
        raise InvalidRequest("Two tools have one name.", param="tools")
    if not asked.chosen.issubset(names):
        raise InvalidRequest("'tool_choice' names no tool that is given.", param="tool_choice")
    if asked.tool_choice == "required" and not names:
        raise InvalidRequest("'tool_choice' is 'required', but no tool is given.", param="tools")
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequest("'stream_options' is for streams.", param="stream_options")
    return asked


def responses_request(asked: ResponsesRequest, source: Source) -> Request:
    """Our request. Without ``temperature`` an answer is greedy, as everywhere here."""
    ours = asked.overspill or NOTHING
    sampling: dict[str, Any] = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        **ours.sampling(),
    }
    return Request(
        messages=tuple(_messages(asked)),
        max_tokens=asked.max_output_tokens,
        sampling=Sampling(**{k: v for k, v in sampling.items() if v is not None}),
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        json_schema=_json_schema(asked),
        top_logprobs=(asked.top_logprobs or 0) if asked.tells_logprobs else None,
        **_tools(asked),
        **ours.common(source, asked.model),
    )


def _messages(asked: ResponsesRequest) -> Iterator[Message]:
    if asked.instructions:
        yield Message("system", asked.instructions)
    waiting: Message | None = None
    for turn in (_turn(item) for item in asked.input if not isinstance(item, _ReasoningItem)):
        joined = _joined(waiting, turn)
        if joined is None and waiting is not None:
            yield waiting
        waiting = joined or turn
    if waiting is not None:
        yield waiting


def _turn(item: _MessageItem | _CallItem | _OutputItem) -> Message:
    if isinstance(item, _OutputItem):
        return Message("tool", item.output.text, tool_call_id=item.call_id)
    if isinstance(item, _CallItem):
        call = ToolCall(item.call_id, item.name, item.arguments)
        return Message("assistant", "", tool_calls=(call,))
    return item.message


def _joined(before: Message | None, turn: Message) -> Message | None:
    """Calls are items of their own here, and elsewhere a part of the assistant's turn before."""
    if before is None or before.role != "assistant" or not turn.tool_calls:
        return None
    return replace(before, tool_calls=(*before.tool_calls, *turn.tool_calls))


def _tools(asked: ResponsesRequest) -> dict[str, Any]:
    """The tools that may be called, and whether one must."""
    choice, functions = asked.tool_choice, asked.tools or []
    if isinstance(choice, _AllowedTools):
        functions = [function for function in functions if function.name in asked.chosen]
        choice = choice.mode
    required = choice == "required" or isinstance(choice, _NamedFunction)
    return {
        "tools": tuple(_tool(function) for function in functions),
        "tool_choice": "required" if required else choice or "auto",
        "tool_name": choice.name if isinstance(choice, _NamedFunction) else None,
    }


def _tool(function: _Function) -> Tool:
    return Tool(
        function.name, function.description or "", function.parameters or {}, bool(function.strict)
    )


def _json_schema(asked: ResponsesRequest) -> Mapping[str, Any] | None:
    form = asked.text.format if asked.text else None
    if isinstance(form, _SchemaFormat):
        return form.schema_
    return {"type": "object"} if form is not None and form.type == "json_object" else None


def told_back(asked: ResponsesRequest, request: Request) -> dict[str, Any]:
    """What an answer repeats of its request: the settings that were in force."""
    sampling = request.sampling
    return {
        "background": False,
        "frequency_penalty": sampling.frequency_penalty,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls,
        "presence_penalty": sampling.presence_penalty,
        "previous_response_id": None,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": _format(asked)},
        "tool_choice": _choice(asked),
        "tools": _told_tools(asked.tools or ()),
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "user": asked.user,
    }


def _format(asked: ResponsesRequest) -> dict[str, Any]:
    form = asked.text.format if asked.text else None
    if not isinstance(form, _SchemaFormat):
        return {"type": "text" if form is None else form.type}
    return {
        "type": "json_schema",
        "name": form.name,
        "description": form.description,
        "schema": form.schema_,
        # Held to in any case.
        "strict": True,
    }


def _choice(asked: ResponsesRequest) -> str | dict[str, Any]:
    choice = asked.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return choice.model_dump(exclude_none=True)


def _told_tools(functions: Sequence[_Function]) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "name": function.name,
            "description": function.description,
            "parameters": function.parameters or {},
            "strict": bool(function.strict),
        }
        for function in functions
    ]
