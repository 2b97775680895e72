"""OpenAI's chat completions request, as one of ours.

Every parameter that the dialect defines is honoured, or harmless and passed over
(:data:`PASSED_OVER`), or refused by name with 400: nothing is dropped in silence. What is ours
and not the dialect's rides in an ``overspill`` object (``extra_body`` in OpenAI's clients).

Source: the API reference of ``POST /v1/chat/completions`` and the types of ``openai`` 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from overspill.errors import InvalidRequest
from overspill.types.chat import (
    Image,
    Message,
    Privacy,
    Request,
    Role,
    Tool,
    ToolCall,
)
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
from overspill_edge.dialect import Source
from overspill_edge.openai_common import TextRequest

PASSED_OVER = frozenset(
    (
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    )
)
"""Accepted without effect: labels for a provider's own books and hints for its caches. Nothing
is stored here and prefixes are reused anyway."""

HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
}
"""Parameters that are accepted with these values, which say what happens anyway."""

_REFUSED: Mapping[str, str] = {
    "n": "Ask again for another answer.",
    "store": "Nothing is stored here; leave it out.",
    "service_tier": "Use auto, default, or leave it out.",
    "modalities": 'Use ["text"], or leave it out.',
    "audio": "Text is all that is answered with.",
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
    "moderation": "Leave it out.",
    "reasoning_effort": "Leave it out.",
    "verbosity": "Leave it out, and say it in the prompt.",
    "web_search_options": "Leave it out, and give a tool that searches.",
}
_PARAMETERS = Parameters(PASSED_OVER, _REFUSED, HARMLESS)

DIALECT_NAMES: Mapping[str, str] = {
    "json_schema": "response_format",
    "output": "response_format",
    "grammar": "overspill.grammar",
    "tool_name": "tool_choice",
    "prompt": "messages",
    "adapter": "overspill.adapter",
}
"""The dialect's names for parameters that an engine refuses by ours."""


def _text_of_parts(content: Any) -> Any:
    """Text parts joined; a part of another kind is refused by its type."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        if _shows_image(part):
            shown([part])  # one that could be read is nobody's to show but the user's
            raise unreadable("Only a user's message may show an image")
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise unreadable("Only parts of the type 'text' are read")
        texts.append(text)
    return "".join(texts)


def _shows_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


Text = Annotated[str, BeforeValidator(_text_of_parts)]


class _Instruction(Strict):
    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class _User(Strict):
    role: Literal["user"]
    content: Text
    name: str | None = None
    images: tuple[Image, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _see(cls, turn: Any) -> Any:
        """Images out of the parts; whether a model can see them is the engine's to say."""
        parts = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(parts, list) or not any(map(_shows_image, parts)):
            return turn
        try:
            text, images = shown(parts)
        except PydanticCustomError:
            # Told where it stands: by the check of the content.
            return turn
        return {**turn, "content": text, "images": images}


class _CalledFunction(Strict):
    name: NonEmpty
    arguments: str


class _MadeCall(Strict):
    id: NonEmpty
    type: Literal["function"] = "function"
    function: _CalledFunction


class _Assistant(Strict):
    role: Literal["assistant"]
    content: Text | None = None
    name: str | None = None
    tool_calls: list[_MadeCall] | None = None
    # Clients hand an answer's message back as it came; only empty ones have nothing to say.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    # Thoughts are not shown to a model again.
    reasoning_content: str | None = None


class _ToolResult(Strict):
    role: Literal["tool"]
    content: Text
    tool_call_id: NonEmpty


_Turn = Annotated[_Instruction | _User | _Assistant | _ToolResult, Field(discriminator="role")]


class _Function(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(Strict):
    type: Literal["function"]
    function: _Function


class _NamedFunction(Strict):
    name: NonEmpty


class _NamedTool(Strict):
    type: Literal["function"]
    function: _NamedFunction


class _Allowed(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[_NamedTool], Field(min_length=1)]


class _AllowedTools(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: _Allowed


class _Schema(Strict):
    name: NonEmpty
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class _TextFormat(Strict):
    type: Literal["text"]


class _ObjectFormat(Strict):
    type: Literal["json_object"]


class _SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: _Schema


_Format = Annotated[_TextFormat | _ObjectFormat | _SchemaFormat, Field(discriminator="type")]


_Choice = (
    Literal["none", "auto", "required"]
    | Annotated[_NamedTool | _AllowedTools, Field(discriminator="type")]
)


class _Prediction(Strict):
    type: Literal["content"]
    content: Text


class ChatCompletionRequest(TextRequest):
    """The body, checked. Bounds are the dialect's."""

    messages: Annotated[list[_Turn], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    prediction: _Prediction | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


def parse_chat(body: bytes) -> ChatCompletionRequest:
    """The body of a request, or ``InvalidRequest`` naming the parameter."""
    chat = checked(ChatCompletionRequest, body, _PARAMETERS)
    _check_together(chat)
    return chat


def _check_together(chat: ChatCompletionRequest) -> None:
    """What is right on its own and wrong beside the rest."""
    chat.check_stream_options()
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    if None not in (chat.max_tokens, chat.max_completion_tokens) and (
        chat.max_tokens != chat.max_completion_tokens
    ):
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ.",
            param="max_tokens",
            mend="Give one of them.",
        )
    _check_tools(chat)


def _check_tools(chat: ChatCompletionRequest) -> None:
    names = [tool.function.name for tool in chat.tools or ()]
    if len(set(names)) != len(names):
        raise InvalidRequest("Two tools have one name.", param="tools")
    if not _chosen(chat).issubset(names):
        raise InvalidRequest("'tool_choice' names no tool that is given.", param="tool_choice")
    if chat.tool_choice == "required" and not names:
        raise InvalidRequest("'tool_choice' is 'required', but no tool is given.", param="tools")


def _chosen(chat: ChatCompletionRequest) -> set[str]:
    """The names that ``tool_choice`` picks out."""
    choice = chat.tool_choice
    if isinstance(choice, _AllowedTools):
        return {tool.function.name for tool in choice.allowed_tools.tools}
    return {choice.function.name} if isinstance(choice, _NamedTool) else set()


def to_request(
    chat: ChatCompletionRequest, *, app: str, floor: Privacy, header_privacy: str | None = None
) -> Request:
    """Our request. ``floor`` is the daemon's; header and body can only tighten it."""
    return Request(
        messages=tuple(_message(turn) for turn in chat.messages),
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        sampling=chat.sampling(),
        stop=tuple(chat.stop or ()),
        json_schema=_json_schema(chat),
        parallel_tool_calls=chat.parallel_tool_calls is not False,
        top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        draft="" if chat.prediction is None else chat.prediction.content,
        **_tools(chat),
        **chat.ours.common(Source(app, floor, header_privacy), chat.model),
    )


def _message(turn: _Instruction | _User | _Assistant | _ToolResult) -> Message:
    if isinstance(turn, _ToolResult):
        return Message("tool", turn.content, tool_call_id=turn.tool_call_id)
    if isinstance(turn, _Assistant):
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in turn.tool_calls or ()
        )
        return Message("assistant", turn.content or "", tool_calls=calls, name=turn.name)
    role: Role = "user" if isinstance(turn, _User) else "system"
    images = turn.images if isinstance(turn, _User) else ()
    return Message(role, turn.content, name=turn.name, images=images)


def _tools(chat: ChatCompletionRequest) -> dict[str, Any]:
    """The tools that may be called, and whether one must."""
    choice, only = chat.tool_choice, _chosen(chat)
    functions = [tool.function for tool in chat.tools or ()]
    if isinstance(choice, _AllowedTools):
        functions = [function for function in functions if function.name in only]
        choice = choice.allowed_tools.mode
    required = choice == "required" or isinstance(choice, _NamedTool)
    return {
        "tools": tuple(map(_tool, functions)),
        "tool_choice": "required" if required else choice or "auto",
        "tool_name": choice.function.name if isinstance(choice, _NamedTool) else None,
    }


def _tool(function: _Function) -> Tool:
    strict = bool(function.strict)
    return Tool(function.name, function.description or "", function.parameters or {}, strict)


def _json_schema(chat: ChatCompletionRequest) -> Mapping[str, Any] | None:
    if isinstance(chat.response_format, _ObjectFormat):
        return {"type": "object"}
    if isinstance(chat.response_format, _SchemaFormat):
        return chat.response_format.json_schema.schema_
    return None
