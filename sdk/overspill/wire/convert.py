"""Between overspill's types and the wire's messages; the only translation there is.

Decoding checks what protobuf cannot: unknown words and malformed JSON raise
:class:`~overspill.errors.InvalidRequest`. Unknown fields and events are ignored, as version 1
promises.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast, get_args

from overspill import errors
from overspill.types.budget import Left
from overspill.types.card import ModelCard
from overspill.types.chat import (
    Chunk,
    Finish,
    FinishReason,
    Grammar,
    Image,
    Lane,
    Message,
    Privacy,
    Request,
    Role,
    Sampling,
    TokenLogprob,
    TokenSignal,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Watch,
)
from overspill.types.embedding import Embedding, EmbedReply, EmbedRequest, Pooling
from overspill.types.evidence import Evidence, EvidenceBundle
from overspill.types.replicas import ReplicaList
from overspill.types.route import Grant
from overspill.types.usage import Usage
from overspill.wire.v1 import chat_pb2, local_pb2, trust_pb2

# Requests -------------------------------------------------------------------------------------


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
                parameters_json=_dump(t.parameters),
                strict=t.strict,
            )
            for t in request.tools
        ],
        tool_choice=request.tool_choice,
        tool_name=request.tool_name,
        json_schema=None if request.json_schema is None else _dump(request.json_schema),
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
            Tool(t.name, t.description, _load_object(t.parameters_json, "tools"), t.strict)
            for t in message.tools
        ),
        tool_choice=cast(
            ToolChoice, _word(message.tool_choice or "auto", get_args(ToolChoice), "tool_choice")
        ),
        tool_name=_given(message, "tool_name"),
        json_schema=_load_object(message.json_schema, "json_schema")
        if message.HasField("json_schema")
        else None,
        top_logprobs=_given(message, "top_logprobs"),
        privacy=Privacy(
            _word(message.privacy or Privacy.ATTESTED.value, tuple(Privacy), "privacy")
        ),
        deadline_s=_given(message, "deadline_s"),
        first_token_s=_given(message, "first_token_s"),
        attempt=message.attempt,
        prefix=message.prefix,
        lane=cast(Lane, _word(message.lane or "interactive", get_args(Lane), "lane")),
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
    return Grammar(cast(Literal["lark"], _word(message.syntax, ("lark",), "grammar")), message.text)


def _message_to_proto(message: Message) -> chat_pb2.Message:
    return chat_pb2.Message(
        role=message.role,
        content=message.content,
        tool_calls=[_tool_call_to_proto(c) for c in message.tool_calls],
        tool_call_id=message.tool_call_id,
        name=message.name,
        images=[
            chat_pb2.Image(data=image.data, media_type=image.media_type, at=image.at)
            for image in message.images
        ],
    )


def _message_from_proto(message: chat_pb2.Message) -> Message:
    return Message(
        role=cast(Role, _word(message.role, get_args(Role), "role")),
        content=message.content,
        tool_calls=_tool_calls(message.tool_calls),
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


# Answers --------------------------------------------------------------------------------------


def chunk_to_delta(chunk: Chunk) -> chat_pb2.Delta | None:
    """The chunk's content as an event; None when it carries only the end."""
    if not chunk.has_content:
        return None
    return chat_pb2.Delta(
        text=chunk.text,
        token_ids=chunk.token_ids,
        logprobs=[_logprob_to_proto(p) for p in chunk.logprobs],
        tool_calls=[_tool_call_to_proto(c) for c in chunk.tool_calls],
        tool_call_deltas=[
            chat_pb2.ToolCallDelta(index=d.index, id=d.id, name=d.name, arguments=d.arguments)
            for d in chunk.tool_call_deltas
        ],
        reasoning=chunk.reasoning,
        signals=[_signal_to_proto(s) for s in chunk.signals],
    )


def delta_to_chunk(delta: chat_pb2.Delta) -> Chunk:
    """Inverse of :func:`chunk_to_delta`."""
    return Chunk(
        text=delta.text,
        token_ids=tuple(delta.token_ids),
        logprobs=tuple(_logprob_from_proto(p) for p in delta.logprobs),
        tool_calls=_tool_calls(delta.tool_calls),
        tool_call_deltas=tuple(
            ToolCallDelta(d.index, d.id, d.name, d.arguments) for d in delta.tool_call_deltas
        ),
        reasoning=delta.reasoning,
        signals=tuple(
            TokenSignal(s.token_id, s.logprob, s.margin, s.entropy, tuple(s.state))
            for s in delta.signals
        ),
    )


def _signal_to_proto(signal: TokenSignal) -> chat_pb2.TokenSignal:
    return chat_pb2.TokenSignal(
        token_id=signal.token_id,
        logprob=signal.logprob,
        margin=signal.margin,
        entropy=signal.entropy,
        state=signal.state,
    )


def finish_to_final(finish: Finish) -> chat_pb2.Final:
    """The end of a stream; transcript hash and receipt are added by who seals it."""
    usage = finish.usage
    return chat_pb2.Final(
        finish_reason=finish.reason.value,
        model=finish.model,
        adapter=finish.adapter,
        stop_sequence=finish.stop_sequence,
        usage=chat_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            queue_s=usage.queue_s,
            prefill_s=usage.prefill_s,
            decode_s=usage.decode_s,
            drafted_tokens=usage.drafted_tokens,
            accepted_tokens=usage.accepted_tokens,
        ),
    )


def final_to_finish(final: chat_pb2.Final) -> Finish:
    """Inverse of :func:`finish_to_final`."""
    usage = final.usage
    return Finish(
        reason=FinishReason(_word(final.finish_reason, tuple(FinishReason), "finish_reason")),
        model=final.model,
        adapter=final.adapter if final.HasField("adapter") else None,
        receipt=final.receipt or None,
        stop_sequence=final.stop_sequence if final.HasField("stop_sequence") else None,
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            queue_s=usage.queue_s,
            prefill_s=usage.prefill_s,
            decode_s=usage.decode_s,
            drafted_tokens=usage.drafted_tokens,
            accepted_tokens=usage.accepted_tokens,
        ),
    )


def _logprob_to_proto(logprob: TokenLogprob) -> chat_pb2.TokenLogprob:
    return chat_pb2.TokenLogprob(
        token_id=logprob.token_id,
        token=logprob.token,
        logprob=logprob.logprob,
        top=[chat_pb2.Alternative(token_id=i, token=t, logprob=p) for i, t, p in logprob.top],
    )


def _logprob_from_proto(message: chat_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        token_id=message.token_id,
        token=message.token,
        logprob=message.logprob,
        top=tuple((a.token_id, a.token, a.logprob) for a in message.top),
    )


def _tool_call_to_proto(call: ToolCall) -> chat_pb2.ToolCall:
    return chat_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments)


def _tool_calls(messages: Iterable[chat_pb2.ToolCall]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(m.id, m.name, m.arguments) for m in messages)


# Embeddings -----------------------------------------------------------------------------------


def embed_request_to_proto(request: EmbedRequest) -> local_pb2.EmbedRequest:
    """Encode a request for embeddings; the model is the one that is asked."""
    return local_pb2.EmbedRequest(
        id=request.id,
        texts=request.texts,
        pooling=request.pooling,
        normalize=request.normalize,
        dimensions=request.dimensions,
        app=request.app,
    )


def embed_request_from_proto(message: local_pb2.EmbedRequest) -> EmbedRequest:
    """Decode it; raises ``InvalidRequest`` on a pooling that means nothing."""
    return EmbedRequest(
        id=message.id,
        texts=tuple(message.texts),
        pooling=_pooling(message.pooling or "model"),
        normalize=message.normalize,
        dimensions=message.dimensions if message.HasField("dimensions") else None,
        app=message.app or "default",
    )


def embedding_to_proto(embedding: Embedding) -> local_pb2.Embedding:
    """Encode one text's vectors."""
    return local_pb2.Embedding(
        data=embedding.data, dimensions=embedding.dimensions, tokens=embedding.tokens
    )


def embed_reply_from_proto(
    embeddings: Iterable[local_pb2.Embedding], end: local_pb2.EmbedEnd
) -> EmbedReply:
    """Put the pieces of an answer together."""
    return EmbedReply(
        tuple(Embedding(e.data, e.dimensions, e.tokens) for e in embeddings),
        end.model,
        _pooling(end.pooling),
    )


def _pooling(word: str) -> Pooling:
    return cast(Pooling, _word(word, get_args(Pooling), "pooling"))


# Errors ---------------------------------------------------------------------------------------


def error_to_proto(error: errors.OverspillError) -> chat_pb2.ErrorEvent:
    """An error as an event: its code, its line and the plain values its class carries."""
    detail = {
        name: value
        for name, value in vars(error).items()
        if name not in ("message", "mend", "partial")
        and isinstance(value, str | int | float | None)
    }
    return chat_pb2.ErrorEvent(
        code=error.code, message=error.message, mend=error.mend, detail_json=_dump(detail)
    )


def error_from_proto(event: chat_pb2.ErrorEvent) -> errors.OverspillError:
    """The typed error again; a code from a newer version becomes an ``EngineError``."""
    fields = {
        name: value
        for name, value in _load_object(event.detail_json, "error").items()
        # Numbers and words only; what is the class's or this side's is not the peer's to say.
        if isinstance(value, str | int | float | None)
        and name != "partial"
        and not hasattr(errors.OverspillError, name)
    }
    fields |= {"message": event.message, "mend": event.mend}
    return errors.error_of(event.code, fields)


def error_to_bytes(error: errors.OverspillError) -> bytes:
    """:func:`error_to_proto`, serialised."""
    return error_to_proto(error).SerializeToString()


def error_from_bytes(data: bytes) -> errors.OverspillError:
    """Inverse of :func:`error_to_bytes`."""
    return error_from_proto(chat_pb2.ErrorEvent.FromString(data))


# Cards and evidence ---------------------------------------------------------------------------


def card_to_proto(card: ModelCard, *, local: bool = False) -> chat_pb2.ModelCard:
    """Encode a model card. Only ``local`` ones tell of the machine's memory."""
    return chat_pb2.ModelCard(
        name=card.name,
        context=card.context,
        runtime=card.runtime,
        quantization=card.quantization,
        parameters=card.parameters,
        size_bytes=card.size_bytes,
        sha256=card.sha256,
        tools=card.tools,
        json_schema=card.json_schema,
        modalities=card.modalities,
        languages=card.languages,
        skill_accuracy=dict(card.skill_accuracy),
        price_prompt_per_mtok=card.price_prompt_per_mtok,
        price_completion_per_mtok=card.price_completion_per_mtok,
        memory_bytes=card.memory_bytes if local else 0,
        notes=card.notes if local else (),
        tokenizer=card.tokenizer,
    )


def card_from_proto(message: chat_pb2.ModelCard) -> ModelCard:
    """Decode a model card."""
    return ModelCard(
        name=message.name,
        context=message.context,
        runtime=message.runtime,
        quantization=message.quantization,
        parameters=message.parameters,
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        tools=message.tools,
        json_schema=message.json_schema,
        modalities=tuple(message.modalities),
        languages=tuple(message.languages),
        skill_accuracy=dict(message.skill_accuracy),
        price_prompt_per_mtok=message.price_prompt_per_mtok,
        price_completion_per_mtok=message.price_completion_per_mtok,
        memory_bytes=message.memory_bytes,
        notes=tuple(message.notes),
        tokenizer=message.tokenizer,
    )


def cards_to_bytes(cards: Iterable[ModelCard]) -> bytes:
    """A serialised list of cards: the bytes that the node signs."""
    return trust_pb2.CardList(cards=[card_to_proto(c) for c in cards]).SerializeToString(
        deterministic=True
    )


def replicas_to_bytes(replicas: ReplicaList) -> bytes:
    """A serialised list of replicas: the bytes that a node signs."""
    return trust_pb2.ReplicaList(
        replicas=[trust_pb2.Replica(address=address) for address in replicas.addresses],
        issued_unix=replicas.issued_unix,
        valid_s=replicas.valid_s,
    ).SerializeToString(deterministic=True)


def cards_from_bytes(data: bytes) -> tuple[ModelCard, ...]:
    """Inverse of :func:`cards_to_bytes`."""
    return tuple(card_from_proto(m) for m in trust_pb2.CardList.FromString(data).cards)


def bundle_to_proto(bundle: EvidenceBundle) -> trust_pb2.EvidenceBundle:
    """Encode an evidence bundle."""
    return trust_pb2.EvidenceBundle(
        node_key_config=bundle.node_key_config,
        evidence=[
            trust_pb2.Evidence(type=e.type, data=e.data, collateral=dict(e.collateral))
            for e in bundle.evidence
        ],
        release=bundle.release,
        release_proof=bundle.release_proof,
        measured_log=bundle.measured_log,
        gpu_claims_digest=bundle.gpu_claims_digest,
        freshness_anchor=bundle.freshness_anchor,
    )


def bundle_from_proto(message: trust_pb2.EvidenceBundle) -> EvidenceBundle:
    """Decode an evidence bundle; nothing in it is believed yet."""
    return EvidenceBundle(
        node_key_config=message.node_key_config,
        evidence=tuple(Evidence(e.type, e.data, dict(e.collateral)) for e in message.evidence),
        release=message.release,
        release_proof=message.release_proof,
        measured_log=tuple(message.measured_log),
        gpu_claims_digest=message.gpu_claims_digest,
        freshness_anchor=message.freshness_anchor,
    )


# JSON and words -------------------------------------------------------------------------------


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _load_object(text: str, param: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise errors.InvalidRequest(f"'{param}' is not valid JSON.", param=param) from error
    if not isinstance(value, dict):
        raise errors.InvalidRequest(f"'{param}' must be a JSON object.", param=param)
    return value


def _word(value: str, known: tuple[str, ...], param: str) -> str:
    if value not in known:
        raise errors.InvalidRequest(
            f"'{param}' is {value!r}.", param=param, mend=f"Use one of: {', '.join(known)}."
        )
    return value
