"""Anthropic's messages request, as one of ours.

Every parameter that the dialect defines is honoured, or harmless and passed over, or refused by
name with 400. An assistant's turn at the end is the beginning of the answer, which goes on from
it. Thoughts are told where ``thinking`` is ``adaptive``; they are not shown to a model again.

Source: the API reference of ``POST /v1/messages`` and the types of ``anthropic`` 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from overspill.errors import InvalidRequest
from overspill.types.chat import Image, Message, Request, Sampling, Tool, ToolCall
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

_PARAMETERS = Parameters(
    # Labels for a provider's own books and hints for its caches: prefixes are reused anyway.
    passed_over=frozenset(("cache_control", "metadata")),
    refused={
        "container": "Nothing is executed here; leave it out.",
        "context_management": "Nothing of a prompt is taken away; leave it out.",
        "diagnostics": "Leave it out.",
        "inference_geo": "Say where with overspill.privacy.",
        "mcp_servers": "Call them yourself, and offer their tools.",
        "service_tier": "Use auto or standard_only, or leave it out.",
        "speed": "Use standard, or leave it out.",
        "user_profile_id": "Leave it out.",
        "workspace_id": "Leave it out.",
    },
    harmless={"service_tier": ("auto", "standard_only"), "speed": ("standard",)},
)
NAMES: Mapping[str, str] = {
    "json_schema": "output_config.format",
    "output": "output_config.format",
    "grammar": "overspill.grammar",
    "tool_name": "tool_choice",
    "prompt": "messages",
    "adapter": "overspill.adapter",
    "stop": "stop_sequences",
}
"""The dialect's names for parameters that an engine refuses by ours."""

_CacheControl = dict[str, Any] | None
_Nothing = Annotated[list[Any], Field(max_length=0)] | None


class _Text(Strict):
    type: Literal["text"]
    text: str
    cache_control: _CacheControl = None
    citations: _Nothing = None


def _image(source: Any) -> Any:
    """An image's source as an image; nothing is fetched."""
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "base64":
        url: Any = f"data:{source.get('media_type')};base64,{source.get('data')}"
    elif kind == "url":
        url = source.get("url")
    else:
        raise unreadable("Only images in base64 are read")
    _, images = shown([{"type": "image_url", "image_url": {"url": url}}])
    return images[0]


class _Picture(Strict):
    type: Literal["image"]
    source: Annotated[Image, BeforeValidator(_image)]
    cache_control: _CacheControl = None
    transformations: None = None


class _ToolUse(Strict):
    type: Literal["tool_use"]
    id: NonEmpty
    name: NonEmpty
    input: dict[str, Any]
    cache_control: _CacheControl = None
    # An SDK hands blocks back as they came.
    caller: dict[str, Any] | None = None
    toolset_name: None = None


def _as_blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _ToolResult(Strict):
    type: Literal["tool_result"]
    tool_use_id: NonEmpty
    content: Annotated[list[_Text], BeforeValidator(_as_blocks)] | None = None
    is_error: bool | None = None
    cache_control: _CacheControl = None
    toolset_name: None = None

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, block: Any) -> Any:
        content = block.get("content") if isinstance(block, dict) else None
        if isinstance(content, list) and any(
            isinstance(part, dict) and part.get("type") == "image" for part in content
        ):
            raise unreadable("A tool's result is text; show an image in the turn after it")
        return block

    @property
    def message(self) -> Message:
        """The tool's turn; one that failed says so."""
        text = "".join(part.text for part in self.content or ())
        return Message(
            "tool", f"Error: {text}" if self.is_error else text, tool_call_id=self.tool_use_id
        )


class _Thinking(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None
    cache_control: _CacheControl = None


class _Redacted(Strict):
    type: Literal["redacted_thinking"]
    data: str


_UserBlock = Annotated[_Text | _Picture | _ToolResult, Field(discriminator="type")]
_AssistantBlock = Annotated[_Text | _ToolUse | _Thinking | _Redacted, Field(discriminator="type")]


class _User(Strict):
    role: Literal["user"]
    content: Annotated[list[_UserBlock], BeforeValidator(_as_blocks)]


class _Assistant(Strict):
    role: Literal["assistant"]
    content: Annotated[list[_AssistantBlock], BeforeValidator(_as_blocks)]

    @property
    def message(self) -> Message:
        """Text and calls; thoughts are not shown again."""
        calls = [block for block in self.content if isinstance(block, _ToolUse)]
        return Message(
            "assistant",
            "".join(block.text for block in self.content if isinstance(block, _Text)),
            tool_calls=tuple(
                ToolCall(call.id, call.name, json.dumps(call.input, ensure_ascii=False))
                for call in calls
            ),
        )


class _System(Strict):
    role: Literal["system"]
    content: Annotated[list[_Text], BeforeValidator(_as_blocks)]


_Turn = Annotated[_User | _Assistant | _System, Field(discriminator="role")]


class _Tool(Strict):
    name: FunctionName
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    type: Literal["custom"] | None = None
    cache_control: _CacheControl = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class _AutoChoice(Strict):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class _ToolChoice(Strict):
    type: Literal["tool"]
    name: NonEmpty
    disable_parallel_tool_use: bool | None = None


class _NoChoice(Strict):
    type: Literal["none"]


class _SchemaFormat(Strict):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class _OutputConfig(Strict):
    format: _SchemaFormat | None = None
    effort: None = None


class _ThinkingConfig(Strict):
    """A budget cannot be held to; ``adaptive`` leaves it to the model, as everywhere here."""

    type: Literal["adaptive", "disabled"]
    display: Literal["summarized"] | None = None


class _Prompt(Strict):
    """What a prompt is made of; bounds are the dialect's."""

    model: NonEmpty
    messages: Annotated[list[_Turn], Field(min_length=1)]
    system: Annotated[list[_Text], BeforeValidator(_as_blocks)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: (
        Annotated[_AutoChoice | _ToolChoice | _NoChoice, Field(discriminator="type")] | None
    ) = None
    output_config: _OutputConfig | None = None
    thinking: _ThinkingConfig | None = None
    overspill: OverspillOptions | None = None


class CountTokensRequest(_Prompt):
    """The body of a request for a count, checked."""

    @property
    def stream(self) -> bool:
        """Never: there is one number."""
        return False


class MessagesRequest(_Prompt):
    """The body of a request for an answer, checked."""

    max_tokens: Count
    stop_sequences: Annotated[list[NonEmpty], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stream: bool | None = None

    @property
    def tells_thoughts(self) -> bool:
        """Whether thoughts are a part of the answer."""
        return self.thinking is not None and self.thinking.type == "adaptive"


def parse_messages(body: bytes) -> MessagesRequest:
    """The body of a request, or ``InvalidRequest`` naming the parameter."""
    asked = checked(MessagesRequest, body, _PARAMETERS)
    _check_tools(asked)
    return asked


def parse_count_tokens(body: bytes) -> CountTokensRequest:
    """The body of a request for a count, or ``InvalidRequest`` naming the parameter."""
    asked = checked(CountTokensRequest, body, _PARAMETERS)
    _check_tools(asked)
    return asked


def _check_tools(asked: _Prompt) -> None:
    names = [tool.name for tool in asked.tools or ()]
    if len(set(names)) != len(names):
        raise InvalidRequest("Two tools have one name.", param="tools")
    choice = asked.tool_choice
    if isinstance(choice, _ToolChoice) and choice.name not in names:
        raise InvalidRequest("'tool_choice' names no tool that is given.", param="tool_choice")
    if choice is not None and choice.type == "any" and not names:
        raise InvalidRequest("'tool_choice' is 'any', but no tool is given.", param="tools")


def prompt_request(asked: _Prompt, source: Source) -> Request:
    """Our request, as far as its prompt goes."""
    ours = asked.overspill or NOTHING
    choice = asked.tool_choice
    form = asked.output_config and asked.output_config.format
    messages = tuple(_messages(asked))
    prefix = ""
    if len(messages) > 1 and messages[-1].role == "assistant" and not messages[-1].tool_calls:
        messages, prefix = messages[:-1], messages[-1].content
    single = isinstance(choice, _AutoChoice | _ToolChoice) and choice.disable_parallel_tool_use
    return Request(
        messages=messages,
        prefix=prefix,
        tools=tuple(_tool(tool) for tool in asked.tools or ()),
        tool_choice=_choice(asked),
        tool_name=choice.name if isinstance(choice, _ToolChoice) else None,
        parallel_tool_calls=not single,
        json_schema=form.schema_ if form else None,
        **ours.common(source, asked.model),
    )


def messages_request(asked: MessagesRequest, source: Source) -> Request:
    """Our request. Without ``temperature`` an answer is greedy, as everywhere here."""
    ours = asked.overspill or NOTHING
    sampling = {
        **ours.sampling(),
        **({"top_k": asked.top_k} if asked.top_k is not None else {}),
        "temperature": asked.temperature,
        "top_p": asked.top_p,
    }
    return replace(
        prompt_request(asked, source),
        max_tokens=asked.max_tokens,
        stop=tuple(asked.stop_sequences or ()),
        sampling=Sampling(**{k: v for k, v in sampling.items() if v is not None}),
    )


def _choice(asked: _Prompt) -> Literal["auto", "none", "required"]:
    if asked.tool_choice is None or asked.tool_choice.type == "auto":
        return "auto"
    return "none" if asked.tool_choice.type == "none" else "required"


def _tool(tool: _Tool) -> Tool:
    return Tool(tool.name, tool.description or "", tool.input_schema, bool(tool.strict))


def _messages(asked: _Prompt) -> Iterator[Message]:
    if asked.system:
        yield Message("system", "\n\n".join(block.text for block in asked.system))
    for turn in asked.messages:
        if isinstance(turn, _Assistant):
            yield turn.message
        elif isinstance(turn, _System):
            yield Message("system", "".join(block.text for block in turn.content))
        else:
            yield from _user_messages(turn.content)


def _user_messages(blocks: Sequence[_Text | _Picture | _ToolResult]) -> Iterator[Message]:
    """A turn for each tool's result, and one for what is said and shown beside them."""
    yield from (block.message for block in blocks if isinstance(block, _ToolResult))
    text, images, spoken = "", [], False
    for block in blocks:
        if isinstance(block, _Text):
            text, spoken = text + block.text, True
        elif isinstance(block, _Picture):
            images.append(replace(block.source, at=len(text)))
    if spoken or images or not blocks:
        yield Message("user", text, images=tuple(images))
