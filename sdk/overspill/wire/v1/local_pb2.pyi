from overspill.wire.v1 import chat_pb2 as _chat_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectRequest(_message.Message):
    __slots__ = ("stream", "start", "cancel", "count_tokens", "embed", "get_status")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    COUNT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    GET_STATUS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    start: _chat_pb2.ChatRequest
    cancel: Cancel
    count_tokens: _chat_pb2.ChatRequest
    embed: EmbedRequest
    get_status: GetStatusRequest
    def __init__(self, stream: _Optional[int] = ..., start: _Optional[_Union[_chat_pb2.ChatRequest, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., count_tokens: _Optional[_Union[_chat_pb2.ChatRequest, _Mapping]] = ..., embed: _Optional[_Union[EmbedRequest, _Mapping]] = ..., get_status: _Optional[_Union[GetStatusRequest, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[StreamEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[StreamEvent, _Mapping]]] = ...) -> None: ...

class StreamEvent(_message.Message):
    __slots__ = ("stream", "event", "route", "receipt", "counted", "embed", "status")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    event: _chat_pb2.ChatEvent
    route: Told
    receipt: Told
    counted: CountTokensResponse
    embed: EmbedEvent
    status: Status
    def __init__(self, stream: _Optional[int] = ..., event: _Optional[_Union[_chat_pb2.ChatEvent, _Mapping]] = ..., route: _Optional[_Union[Told, _Mapping]] = ..., receipt: _Optional[_Union[Told, _Mapping]] = ..., counted: _Optional[_Union[CountTokensResponse, _Mapping]] = ..., embed: _Optional[_Union[EmbedEvent, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class Told(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class GetModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Models(_message.Message):
    __slots__ = ("cards",)
    CARDS_FIELD_NUMBER: _ClassVar[int]
    cards: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ModelCard]
    def __init__(self, cards: _Optional[_Iterable[_Union[_chat_pb2.ModelCard, _Mapping]]] = ...) -> None: ...

class GetAvailabilityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetReceiptsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class PullEvent(_message.Message):
    __slots__ = ("progress", "stored", "error", "heartbeat")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    progress: Told
    stored: Told
    error: _chat_pb2.ErrorEvent
    heartbeat: _chat_pb2.Heartbeat
    def __init__(self, progress: _Optional[_Union[Told, _Mapping]] = ..., stored: _Optional[_Union[Told, _Mapping]] = ..., error: _Optional[_Union[_chat_pb2.ErrorEvent, _Mapping]] = ..., heartbeat: _Optional[_Union[_chat_pb2.Heartbeat, _Mapping]] = ...) -> None: ...

class CountTokensResponse(_message.Message):
    __slots__ = ("prompt_tokens",)
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("id", "texts", "pooling", "normalize", "dimensions", "app")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    id: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    pooling: str
    normalize: bool
    dimensions: int
    app: str
    def __init__(self, id: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., pooling: _Optional[str] = ..., normalize: bool = ..., dimensions: _Optional[int] = ..., app: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("data", "dimensions", "tokens")
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    dimensions: int
    tokens: int
    def __init__(self, data: _Optional[bytes] = ..., dimensions: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class EmbedEnd(_message.Message):
    __slots__ = ("model", "pooling")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    model: str
    pooling: str
    def __init__(self, model: _Optional[str] = ..., pooling: _Optional[str] = ...) -> None: ...

class EmbedEvent(_message.Message):
    __slots__ = ("embedding", "heartbeat", "end", "error")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    embedding: Embedding
    heartbeat: _chat_pb2.Heartbeat
    end: EmbedEnd
    error: _chat_pb2.ErrorEvent
    def __init__(self, embedding: _Optional[_Union[Embedding, _Mapping]] = ..., heartbeat: _Optional[_Union[_chat_pb2.Heartbeat, _Mapping]] = ..., end: _Optional[_Union[EmbedEnd, _Mapping]] = ..., error: _Optional[_Union[_chat_pb2.ErrorEvent, _Mapping]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("ok", "detail", "active", "queued", "card", "version", "drafted_tokens", "accepted_tokens", "notes")
    OK_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    detail: str
    active: int
    queued: int
    card: _chat_pb2.ModelCard
    version: str
    drafted_tokens: int
    accepted_tokens: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ok: bool = ..., detail: _Optional[str] = ..., active: _Optional[int] = ..., queued: _Optional[int] = ..., card: _Optional[_Union[_chat_pb2.ModelCard, _Mapping]] = ..., version: _Optional[str] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...
