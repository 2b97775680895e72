"""Answers: their pieces, and their ends."""

from __future__ import annotations

from overspill.types.chat import (
    Chunk,
    Finish,
    FinishReason,
    TokenLogprob,
    TokenSignal,
    ToolCallDelta,
)
from overspill.types.usage import Usage
from overspill.wire.convert.tool_calls import tool_call_to_proto, tool_calls_from_proto
from overspill.wire.convert.words import word
from overspill.wire.v1 import chat_pb2


def write_delta(chunk: Chunk, delta: chat_pb2.Delta) -> None:
    """Put the chunk's content, not its end, into an empty delta.

    In place, and what is there alone: most chunks are one token with its text, and whatever is
    spent here is spent for each token of each stream.
    """
    delta.SetInParent()
    if chunk.text:
        delta.text = chunk.text
    if chunk.token_ids:
        delta.token_ids.extend(chunk.token_ids)
    if chunk.logprobs:
        delta.logprobs.extend(map(_logprob_to_proto, chunk.logprobs))
    if chunk.tool_calls:
        delta.tool_calls.extend(map(tool_call_to_proto, chunk.tool_calls))
    if chunk.tool_call_deltas:
        delta.tool_call_deltas.extend(map(_tool_call_delta_to_proto, chunk.tool_call_deltas))
    if chunk.reasoning:
        delta.reasoning = chunk.reasoning
    if chunk.signals:
        delta.signals.extend(map(_signal_to_proto, chunk.signals))


def delta_to_chunk(delta: chat_pb2.Delta) -> Chunk:
    """Inverse of :func:`write_delta`."""
    if not (delta.logprobs or delta.tool_calls or delta.tool_call_deltas or delta.signals):
        return Chunk(delta.text, tuple(delta.token_ids), reasoning=delta.reasoning)
    return Chunk(
        text=delta.text,
        token_ids=tuple(delta.token_ids),
        logprobs=tuple(map(_logprob_from_proto, delta.logprobs)),
        tool_calls=tool_calls_from_proto(delta.tool_calls),
        tool_call_deltas=tuple(
            ToolCallDelta(d.index, d.id, d.name, d.arguments) for d in delta.tool_call_deltas
        ),
        reasoning=delta.reasoning,
        signals=tuple(
            TokenSignal(s.token_id, s.logprob, s.margin, s.entropy, tuple(s.state))
            for s in delta.signals
        ),
    )


def _tool_call_delta_to_proto(delta: ToolCallDelta) -> chat_pb2.ToolCallDelta:
    return chat_pb2.ToolCallDelta(
        index=delta.index, id=delta.id, name=delta.name, arguments=delta.arguments
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
        reason=FinishReason(word(final.finish_reason, tuple(FinishReason), "finish_reason")),
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
