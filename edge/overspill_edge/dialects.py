"""The dialects that the daemon speaks: for each how a body is read and an answer is shaped.

Another one is a module like ``openai_dialect.py`` with its answers, a row here and a route in
``http.py``.
"""

from __future__ import annotations

from overspill.types.chat import Request
from overspill_edge import anthropic_dialect, completions_dialect, openai_dialect, responses_dialect
from overspill_edge.anthropic_answers import MessageShape
from overspill_edge.anthropic_dialect import MessagesRequest, messages_request, parse_messages
from overspill_edge.completions_answers import TextCompletionShape
from overspill_edge.completions_dialect import (
    CompletionRequest,
    completion_request,
    parse_completion,
)
from overspill_edge.dialect import Dialect, Source
from overspill_edge.openai_answers import CompletionShape
from overspill_edge.openai_dialect import ChatCompletionRequest, parse_chat
from overspill_edge.responses_answers import ResponseShape
from overspill_edge.responses_dialect import (
    ResponsesRequest,
    parse_responses,
    responses_request,
    told_back,
)


def _chat_request(chat: ChatCompletionRequest, source: Source) -> Request:
    return openai_dialect.to_request(
        chat, app=source.app, floor=source.floor, header_privacy=source.header_privacy
    )


def _chat_shape(chat: ChatCompletionRequest, request: Request) -> CompletionShape:
    with_route = chat.overspill is not None
    return CompletionShape(request, with_usage=chat.include_usage, with_route=with_route)


def _text_shape(asked: CompletionRequest, request: Request) -> TextCompletionShape:
    with_route = asked.overspill is not None
    return TextCompletionShape(request, with_usage=asked.include_usage, with_route=with_route)


def _response_shape(asked: ResponsesRequest, request: Request) -> ResponseShape:
    with_route = asked.overspill is not None
    return ResponseShape(request, told_back(asked, request), with_route=with_route)


def _message_shape(asked: MessagesRequest, request: Request) -> MessageShape:
    with_route = asked.overspill is not None
    return MessageShape(request, tells_thoughts=asked.tells_thoughts, with_route=with_route)


CHAT = Dialect(parse_chat, _chat_request, _chat_shape, names=openai_dialect.DIALECT_NAMES)
COMPLETIONS = Dialect(
    parse_completion, completion_request, _text_shape, names=completions_dialect.NAMES
)
RESPONSES = Dialect(
    parse_responses, responses_request, _response_shape, names=responses_dialect.NAMES
)
MESSAGES = Dialect(
    parse_messages,
    messages_request,
    _message_shape,
    names=anthropic_dialect.NAMES,
    fills_window=True,
)
