"""Chat requests. Decoding raises ``InvalidRequest`` on words and JSON that mean nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast, get_args

from overspill.types.budget import Left
from overspill.types.chat import (
    Grammar,
    Image,
    Lane,
    Message,
    Privacy,
    Request,
    Role,
    Sampling,
    Tool,
    ToolChoice,
    Watch,
)
from overspill.types.route import Grant
from overspill.wire.convert.tool_calls import tool_call_to_proto, tool_calls_from_proto
from overspill.wire.convert.words import dump, load_object, word
from overspill.wire.v1 import chat_pb2


def request_to_proto(request: Request, *, local: bool = False) -> chat_pb2.ChatRequest:
    """Encode a request. Only ``local`` ones name the app and the privacy floor."""
    out = chat_pb2.ChatRequest(
        id=request.id,
        model=request.model,
        # A peer that does not know raw prompts finds no message, and refuses.
        messages=[] if request.raw else [_message_to_proto(m) for m in request.messages],
        raw_prompt=request.messages[0].content if request.raw else None,
        max_tokens=request.max_tokens,
        sampling=_sampling_to_proto(request.sampling),
        stop=request.stop,
        tools=[
            chat_pb2.Tool(
                name=t.name,
                description=t.description,
                parameters_json=dump(t.parameters),
                strict=t.strict,
            )
            for t in request.tools
        ],
        tool_choice=request.tool_choice,
        tool_name=request.tool_name,
        json_schema=None if request.json_schema is None else dump(request.json_schema),
        top_logprobs=request.top_logprobs,
        deadline_s=request.deadline_s,
        first_token_s=request.first_token_s,
        attempt=request.attempt,
        prefix=request.prefix,
        lane=request.lane,
        adapter=request.adapter,
        draft=request.draft,
        draft_tokenizer=request.draft_tokenizer,
        grammar=_grammar_to_proto(request.grammar),
        single_tool_call=not request.parallel_tool_calls,
    )
    if local:
        out.app = request.app
        out.privacy = request.privacy.value
        out.redact = request.redact
        if request.cache_scope is not None:
            out.cache_scope = request.cache_scope
        if request.watch is not None:
            watch = chat_pb2.Watch(tokens=request.watch.tokens, state_ids=request.watch.state_ids)
            out.watch.CopyFrom(watch)
        if request.grant is not None:
            out.grant.CopyFrom(_grant_to_proto(request.grant))
        if request.left is not None:
            out.left.CopyFrom(_left_to_proto(request.left))
    return out


def request_from_proto(message: chat_pb2.ChatRequest, *, local: bool = False) -> Request:
    """Decode a request; raises ``InvalidRequest`` on words or JSON that mean nothing.

    Only ``local`` ones may say with whom computed prompts are shared.
    """
    request = Request(
        id=message.id,
        model=_given(message, "model"),
        app=message.app or "default",
        messages=_messages_from_proto(message),
        raw=message.HasField("raw_prompt"),
        max_tokens=_given(message, "max_tokens"),
        sampling=_sampling_from_proto(message),
        stop=tuple(message.stop),
        tools=tuple(
            Tool(t.name, t.description, load_object(t.parameters_json, "tools"), t.strict)
            for t in message.tools
        ),
        tool_choice=cast(
            ToolChoice, word(message.tool_choice or "auto", get_args(ToolChoice), "tool_choice")
        ),
        tool_name=_given(message, "tool_name"),
        json_schema=load_object(message.json_schema, "json_schema")
        if message.HasField("json_schema")
        else None,
        top_logprobs=_given(message, "top_logprobs"),
        privacy=Privacy(word(message.privacy or Privacy.ATTESTED.value, tuple(Privacy), "privacy")),
        deadline_s=_given(message, "deadline_s"),
        first_token_s=_given(message, "first_token_s"),
        attempt=message.attempt,
        prefix=message.prefix,
        lane=cast(Lane, word(message.lane or "interactive", get_args(Lane), "lane")),
        adapter=_given(message, "adapter"),
        draft=message.draft,
        draft_tokenizer=message.draft_tokenizer,
        grammar=_grammar_from_proto(message.grammar) if message.HasField("grammar") else None,
        parallel_tool_calls=not message.single_tool_call,
    )
    return _with_own(request, message) if local else request


def _with_own(request: Request, message: chat_pb2.ChatRequest) -> Request:
    """With what a device tells its own daemon, and no cloud."""
    return replace(
        request,
        cache_scope=_given(message, "cache_scope"),
        watch=_watch_from_proto(message.watch) if message.HasField("watch") else None,
        redact=message.redact,
        left=_left_from_proto(message.left) if message.HasField("left") else None,
        grant=_grant_from_proto(message.grant) if message.HasField("grant") else None,
    )


def _given(message: chat_pb2.ChatRequest, name: str) -> Any:
    """A scalar field's value, None where it was not set."""
    return getattr(message, name) if message.HasField(name) else None


def _grant_to_proto(grant: Grant) -> chat_pb2.Grant:
    return chat_pb2.Grant(
        provider=grant.provider,
        request_id=grant.request_id,
        expires_unix=grant.expires_unix,
        signature=grant.signature,
    )


def _grant_from_proto(message: chat_pb2.Grant) -> Grant:
    return Grant(message.provider, message.request_id, message.expires_unix, message.signature)


def _left_to_proto(left: Left) -> chat_pb2.Left:
    return chat_pb2.Left(seconds=left.seconds, cost=left.cost, tokens=left.tokens, calls=left.calls)


def _left_from_proto(message: chat_pb2.Left) -> Left:
    return Left(
        seconds=message.seconds if message.HasField("seconds") else None,
        cost=message.cost if message.HasField("cost") else None,
        tokens=message.tokens if message.HasField("tokens") else None,
        calls=message.calls,
    )


def _watch_from_proto(message: chat_pb2.Watch) -> Watch:
    return Watch(message.tokens, tuple(message.state_ids))


def _messages_from_proto(message: chat_pb2.ChatRequest) -> tuple[Message, ...]:
    if message.HasField("raw_prompt"):
        return (Message("user", message.raw_prompt),)
    return tuple(_message_from_proto(m) for m in message.messages)


def _grammar_to_proto(grammar: Grammar | None) -> chat_pb2.Grammar | None:
    if grammar is None:
        return None
    return chat_pb2.Grammar(syntax=grammar.syntax, text=grammar.text)


def _grammar_from_proto(message: chat_pb2.Grammar) -> Grammar:
    if message.syntax == "regex":
        return Grammar("regex", message.text)
    return Grammar(cast(Literal["lark"], word(message.syntax, ("lark",), "grammar")), message.text)


def _message_to_proto(message: Message) -> chat_pb2.Message:
    return chat_pb2.Message(
        role=message.role,
        content=message.content,
        tool_calls=[tool_call_to_proto(c) for c in message.tool_calls],
        tool_call_id=message.tool_call_id,
        name=message.name,
        images=[
            chat_pb2.Image(data=image.data, media_type=image.media_type, at=image.at)
            for image in message.images
        ],
    )


def _message_from_proto(message: chat_pb2.Message) -> Message:
    return Message(
        role=cast(Role, word(message.role, get_args(Role), "role")),
        content=message.content,
        tool_calls=tool_calls_from_proto(message.tool_calls),
        tool_call_id=message.tool_call_id if message.HasField("tool_call_id") else None,
        name=message.name if message.HasField("name") else None,
        images=tuple(Image(i.data, i.media_type, i.at) for i in message.images),
    )


def _sampling_to_proto(sampling: Sampling) -> chat_pb2.Sampling:
    return chat_pb2.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repeat_penalty=sampling.repeat_penalty,
        logit_bias=dict(sampling.logit_bias),
        seed=sampling.seed,
    )


def _sampling_from_proto(request: chat_pb2.ChatRequest) -> Sampling:
    if not request.HasField("sampling"):
        return Sampling()
    message = request.sampling
    return Sampling(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repeat_penalty=message.repeat_penalty,
        logit_bias=dict(message.logit_bias),
        seed=message.seed if message.HasField("seed") else None,
    )
