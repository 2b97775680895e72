"""OpenAI's chat completions request, as one of ours.

Every parameter that the dialect defines is honoured, or harmless and passed over
(:data:`PASSED_OVER`), or refused by name with 400: nothing is dropped in silence. What is ours
and not the dialect's rides in an ``overspill`` object (``extra_body`` in OpenAI's clients).

Source: the API reference of ``POST /v1/chat/completions`` and the types of ``openai`` 2 and 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from overspill.content import read_content
from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.types.chat import (
    Grammar,
    Image,
    Message,
    Privacy,
    Request,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    new_request_id,
)

AUTO_MODEL = "auto"
"""The model name that leaves the choice to the policy."""

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

_HARMLESS: Mapping[str, tuple[Any, ...]] = {
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


DIALECT_NAMES: Mapping[str, str] = {
    "json_schema": "response_format",
    "output": "response_format",
    "grammar": "overspill.grammar",
    "tool_name": "tool_choice",
    "prompt": "messages",
    "adapter": "overspill.adapter",
}
"""The dialect's names for parameters that an engine refuses by ours."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _text_of_parts(content: Any) -> Any:
    """Text parts joined; a part of another kind is refused by its type."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        if _shows_image(part):
            raise _unreadable(part)
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise PydanticCustomError("unsupported_part", "Only parts of the type 'text' are read")
        texts.append(text)
    return "".join(texts)


def _shows_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _unreadable(part: Any) -> PydanticCustomError:
    """Why an image is not read; one that could be is nobody's to show but the user's."""
    try:
        read_content([part])
    except InvalidRequest as error:
        return PydanticCustomError("unsupported_part", error.message.rstrip("."))
    return PydanticCustomError("unsupported_part", "Only a user's message may show an image")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_text_of_parts)]
NonEmpty = Annotated[str, Field(min_length=1)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class _Instruction(_Strict):
    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class _User(_Strict):
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
            text, images = read_content(parts)
        except InvalidRequest:
            # Told where it stands: by the check of the content.
            return turn
        return {**turn, "content": text, "images": images}


class _CalledFunction(_Strict):
    name: NonEmpty
    arguments: str


class _MadeCall(_Strict):
    id: NonEmpty
    type: Literal["function"] = "function"
    function: _CalledFunction


class _Assistant(_Strict):
    role: Literal["assistant"]
    content: Text | None = None
    name: str | None = None
    tool_calls: list[_MadeCall] | None = None
    # Clients hand an answer's message back as it came; only empty ones have nothing to say.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class _ToolResult(_Strict):
    role: Literal["tool"]
    content: Text
    tool_call_id: NonEmpty


_Turn = Annotated[_Instruction | _User | _Assistant | _ToolResult, Field(discriminator="role")]


class _Function(_Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(_Strict):
    type: Literal["function"]
    function: _Function


class _NamedFunction(_Strict):
    name: NonEmpty


class _NamedTool(_Strict):
    type: Literal["function"]
    function: _NamedFunction


class _Schema(_Strict):
    name: NonEmpty
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class _TextFormat(_Strict):
    type: Literal["text"]


class _ObjectFormat(_Strict):
    type: Literal["json_object"]


class _SchemaFormat(_Strict):
    type: Literal["json_schema"]
    json_schema: _Schema


_Format = Annotated[_TextFormat | _ObjectFormat | _SchemaFormat, Field(discriminator="type")]


class StreamOptions(_Strict):
    """``include_obfuscation`` pads against eavesdroppers on a network; there is none here."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Prediction(_Strict):
    type: Literal["content"]
    content: Text


class _Grammar(_Strict):
    syntax: Literal["regex", "lark"]
    text: NonEmpty


class OverspillOptions(_Strict):
    """What the dialect has no word for. ``privacy`` can only tighten the daemon's floor;
    ``adapter`` names one that the daemon was started with."""

    privacy: Literal["device", "attested", "any"] | None = None
    deadline_s: Annotated[float, Field(gt=0, le=86400)] | None = None
    first_token_s: Annotated[float, Field(gt=0, le=86400)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    lane: Literal["interactive", "batch"] | None = None
    adapter: NonEmpty | None = None
    grammar: _Grammar | None = None


class ChatCompletionRequest(_Strict):
    """The body, checked. Bounds are the dialect's."""

    model: NonEmpty
    messages: Annotated[list[_Turn], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[NonEmpty], Field(max_length=4), BeforeValidator(_as_list)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    prediction: _Prediction | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    overspill: OverspillOptions | None = None

    @property
    def include_usage(self) -> bool:
        """True where the stream is to end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def parse_chat(body: bytes) -> ChatCompletionRequest:
    """The body of a request, or ``InvalidRequest`` naming the parameter."""
    document = read_document(body)
    honoured = {k: v for k, v in document.items() if not _is_passed_over(k, v)}
    try:
        chat = ChatCompletionRequest.model_validate(honoured)
    except ValidationError as error:
        raise first_error(error, honoured) from None
    _check_together(chat)
    return chat


def read_document(body: bytes) -> dict[str, Any]:
    """A body's JSON object, or ``InvalidRequest``.

    The parser refuses what is not JSON in UTF-8 and nesting over 200 levels.
    """
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False)
        json.dumps(document, allow_nan=False)  # 1e999 is JSON, but infinite when read
    except ValueError as error:
        raise InvalidRequest(
            f"The body is not JSON that can be read: {error}.", mend="Send one JSON object."
        ) from None
    if not isinstance(document, dict):
        raise InvalidRequest("The body is not a JSON object.", mend="Send one JSON object.")
    return document


def _is_passed_over(name: str, value: Any) -> bool:
    """True for what has no effect; raises for what would have one that cannot be had."""
    if name in PASSED_OVER or (name in _REFUSED and value is None):
        return True
    if name not in _REFUSED:
        return False
    if any(value == fine and type(value) is type(fine) for fine in _HARMLESS.get(name, ())):
        return True
    known = f"this value of '{name}'" if name in _HARMLESS else f"'{name}'"
    raise UnsupportedOption(
        f"{known.capitalize()} is not supported.", param=name, mend=_REFUSED[name]
    )


def first_error(error: ValidationError, document: dict[str, Any]) -> InvalidRequest:
    """The first thing wrong, without the value: that could be content."""
    found = error.errors(include_url=False, include_input=False)[0]
    path = _path(found["loc"], document)
    if found["type"].startswith("union_tag"):
        member = found["ctx"]["discriminator"].strip("'")
        known = found["ctx"].get("expected_tags", "one that the API reference names")
        return InvalidRequest(
            f"'{path}.{member}' is missing or unknown.",
            param=f"{path}.{member}",
            mend=f"Use {known}.",
        )
    if found["type"] == "extra_forbidden":
        return UnsupportedOption(f"'{path}' is not known.", param=path, mend="Leave it out.")
    if found["type"] == "unsupported_part":
        return UnsupportedOption(f"'{path}': {found['msg']}.", param=path)
    return InvalidRequest(f"'{path}': {found['msg']}.", param=path, mend="See the API reference.")


def _path(location: tuple[int | str, ...], document: Any) -> str:
    """``messages[0].content``: the part of pydantic's location that is also in the document.

    The rest names members of unions; the last step may be a key that is missing.
    """
    path = ""
    for index, step in enumerate(location):
        inside = (isinstance(document, dict) and step in document) or (
            isinstance(document, list) and isinstance(step, int) and step < len(document)
        )
        if not inside and index != len(location) - 1:
            continue
        if isinstance(document, list | dict):
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
        document = document[step] if inside else None
    return path.removeprefix(".")


def _check_together(chat: ChatCompletionRequest) -> None:
    """What is right on its own and wrong beside the rest."""
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequest("'stream_options' is for streams.", param="stream_options")
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
    choice = chat.tool_choice
    if isinstance(choice, _NamedTool) and choice.function.name not in names:
        raise InvalidRequest("'tool_choice' names no tool that is given.", param="tool_choice")
    if choice == "required" and not names:
        raise InvalidRequest("'tool_choice' is 'required', but no tool is given.", param="tools")


def to_request(
    chat: ChatCompletionRequest, *, app: str, floor: Privacy, header_privacy: str | None = None
) -> Request:
    """Our request. ``floor`` is the daemon's; header and body can only tighten it."""
    ours = chat.overspill or OverspillOptions()
    choice, tool_name = _choice(chat.tool_choice)
    return Request(
        messages=tuple(_message(turn) for turn in chat.messages),
        id=new_request_id(),
        model=None if chat.model == AUTO_MODEL else chat.model,
        app=app,
        cache_scope="app",
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        sampling=_sampling(chat, ours),
        stop=tuple(chat.stop or ()),
        tools=tuple(_tool(tool.function) for tool in chat.tools or ()),
        tool_choice=choice,
        tool_name=tool_name,
        json_schema=_json_schema(chat),
        grammar=None if ours.grammar is None else Grammar(ours.grammar.syntax, ours.grammar.text),
        parallel_tool_calls=chat.parallel_tool_calls is not False,
        top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        privacy=_privacy(floor, header_privacy, ours.privacy),
        deadline_s=ours.deadline_s,
        first_token_s=ours.first_token_s,
        lane=ours.lane or "interactive",
        adapter=ours.adapter,
        draft="" if chat.prediction is None else chat.prediction.content,
    )


def _privacy(floor: Privacy, *asked: str | None) -> Privacy:
    for value in asked:
        if value is not None and value not in tuple(Privacy):
            raise InvalidRequest(
                "The privacy that is asked for is none.",
                param="privacy",
                mend="Use device, attested or any.",
            )
        if value is not None:
            floor = floor.tightened_by(Privacy(value))
    return floor


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


def _sampling(chat: ChatCompletionRequest, ours: OverspillOptions) -> Sampling:
    """What was asked for over the SDK's defaults: the same request gives the same answer."""
    asked: dict[str, Any] = {
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "presence_penalty": chat.presence_penalty,
        "frequency_penalty": chat.frequency_penalty,
        "seed": chat.seed,
        "top_k": ours.top_k,
        "min_p": ours.min_p,
        "repeat_penalty": ours.repeat_penalty,
        "logit_bias": {int(key): bias for key, bias in (chat.logit_bias or {}).items()},
    }
    return Sampling(**{name: value for name, value in asked.items() if value is not None})


def _tool(function: _Function) -> Tool:
    strict = bool(function.strict)
    return Tool(function.name, function.description or "", function.parameters or {}, strict)


def _choice(choice: str | _NamedTool | None) -> tuple[ToolChoice, str | None]:
    if isinstance(choice, _NamedTool):
        return "required", choice.function.name
    if choice == "none":
        return "none", None
    return ("required", None) if choice == "required" else ("auto", None)


def _json_schema(chat: ChatCompletionRequest) -> Mapping[str, Any] | None:
    if isinstance(chat.response_format, _ObjectFormat):
        return {"type": "object"}
    if isinstance(chat.response_format, _SchemaFormat):
        return chat.response_format.json_schema.schema_
    return None
