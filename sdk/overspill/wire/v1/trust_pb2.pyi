from overspill.wire.v1 import chat_pb2 as _chat_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetBundleRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChallengeRequest(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("type", "data", "collateral")
    class CollateralEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    COLLATERAL_FIELD_NUMBER: _ClassVar[int]
    type: str
    data: bytes
    collateral: _containers.ScalarMap[str, bytes]
    def __init__(self, type: _Optional[str] = ..., data: _Optional[bytes] = ..., collateral: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class EvidenceBundle(_message.Message):
    __slots__ = ("node_key_config", "evidence", "release", "release_proof", "measured_log", "gpu_claims_digest", "freshness_anchor", "bundles")
    NODE_KEY_CONFIG_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_PROOF_FIELD_NUMBER: _ClassVar[int]
    MEASURED_LOG_FIELD_NUMBER: _ClassVar[int]
    GPU_CLAIMS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_ANCHOR_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    node_key_config: bytes
    evidence: _containers.RepeatedCompositeFieldContainer[Evidence]
    release: bytes
    release_proof: bytes
    measured_log: _containers.RepeatedScalarFieldContainer[bytes]
    gpu_claims_digest: bytes
    freshness_anchor: bytes
    bundles: bool
    def __init__(self, node_key_config: _Optional[bytes] = ..., evidence: _Optional[_Iterable[_Union[Evidence, _Mapping]]] = ..., release: _Optional[bytes] = ..., release_proof: _Optional[bytes] = ..., measured_log: _Optional[_Iterable[bytes]] = ..., gpu_claims_digest: _Optional[bytes] = ..., freshness_anchor: _Optional[bytes] = ..., bundles: bool = ...) -> None: ...

class GetCardsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CardList(_message.Message):
    __slots__ = ("cards",)
    CARDS_FIELD_NUMBER: _ClassVar[int]
    cards: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ModelCard]
    def __init__(self, cards: _Optional[_Iterable[_Union[_chat_pb2.ModelCard, _Mapping]]] = ...) -> None: ...

class SignedCards(_message.Message):
    __slots__ = ("cards", "signature")
    CARDS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    cards: bytes
    signature: bytes
    def __init__(self, cards: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Replica(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class ReplicaList(_message.Message):
    __slots__ = ("replicas", "issued_unix", "valid_s")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_FIELD_NUMBER: _ClassVar[int]
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    issued_unix: int
    valid_s: int
    def __init__(self, replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., issued_unix: _Optional[int] = ..., valid_s: _Optional[int] = ...) -> None: ...

class SignedReplicas(_message.Message):
    __slots__ = ("replicas", "signature")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    replicas: bytes
    signature: bytes
    def __init__(self, replicas: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...
