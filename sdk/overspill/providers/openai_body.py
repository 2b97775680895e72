"""A request as the JSON body of OpenAI's chat completions, or a refusal: nothing is left out."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from typing import Any

from overspill.errors import UnsupportedOption
from overspill.types.chat import Message, Request, Sampling, Tool, ToolCall

_PLAIN = Sampling()


def chat_body(
    request: Request,
    model: str,
    *,
    who: str = "A third party's API",
    spoken: Collection[str] = (),
) -> dict[str, Any]:
    """The body of a streamed completion.

    ``spoken`` names the options beyond the protocol that the caller adds a word for by itself.
    Raises ``UnsupportedOption``, in the name of ``who``, for what there is no word for.
    """
    _refuse_unspoken(request, who, spoken)
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(request.sampling),
    }
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.tools:
        body |= _tools(request)
    if request.json_schema is not None:
        schema = {"name": "answer", "strict": True, "schema": dict(request.json_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _refuse_unspoken(request: Request, who: str, spoken: Collection[str]) -> None:
    sampling = request.sampling
    unspoken = {
        "grammar": request.grammar is not None,
        "raw": request.raw,
        "prefix": bool(request.prefix),
        "adapter": request.adapter is not None,
        "top_logprobs": request.top_logprobs is not None,
        "top_k": sampling.top_k != _PLAIN.top_k,
        "min_p": sampling.min_p != _PLAIN.min_p,
        "repeat_penalty": sampling.repeat_penalty != _PLAIN.repeat_penalty,
        "logit_bias": bool(sampling.logit_bias),  # by tokens that are another tokenizer's
    }
    for option, asked in unspoken.items():
        if asked and option not in spoken:
            raise UnsupportedOption(
                f"{who} cannot honour {option}.",
                param=option,
                mend="Leave it out, or allow another route.",
            )


def _sampling(sampling: Sampling) -> dict[str, Any]:
    chosen = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    # Temperature is always said: its default there is another one than here.
    body: dict[str, Any] = {
        name: value
        for name, value in chosen.items()
        if name == "temperature" or value != getattr(_PLAIN, name)
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body


def _message(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.name is not None:
        body["name"] = message.name
    if message.tool_calls:
        body["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    return body


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.content
    parts: list[dict[str, Any]] = []
    start = 0
    for image in message.images:
        parts += _text(message.content[start : image.at])
        data = base64.b64encode(image.data).decode()
        url = f"data:{image.media_type};base64,{data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
        start = image.at
    return [*parts, *_text(message.content[start:])]


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []


def _call(call: ToolCall) -> Mapping[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tools(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {"tools": [_tool(tool) for tool in request.tools]}
    if request.tool_name is not None:
        body["tool_choice"] = {"type": "function", "function": {"name": request.tool_name}}
    else:
        body["tool_choice"] = request.tool_choice
    if not request.parallel_tool_calls:
        body["parallel_tool_calls"] = False
    return body


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}
