from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestHead(_message.Message):
    __slots__ = ("nkc_sha256", "sealed_key", "bundles")
    NKC_SHA256_FIELD_NUMBER: _ClassVar[int]
    SEALED_KEY_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    nkc_sha256: bytes
    sealed_key: bytes
    bundles: bool
    def __init__(self, nkc_sha256: _Optional[bytes] = ..., sealed_key: _Optional[bytes] = ..., bundles: bool = ...) -> None: ...

class SealedFrame(_message.Message):
    __slots__ = ("head", "response_nonce", "frame", "error", "more")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_NONCE_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    head: RequestHead
    response_nonce: bytes
    frame: bytes
    error: PublicError
    more: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, head: _Optional[_Union[RequestHead, _Mapping]] = ..., response_nonce: _Optional[bytes] = ..., frame: _Optional[bytes] = ..., error: _Optional[_Union[PublicError, _Mapping]] = ..., more: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PublicError(_message.Message):
    __slots__ = ("code",)
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[PublicError.Code]
        UNKNOWN_KEY: _ClassVar[PublicError.Code]
        BAD_REQUEST: _ClassVar[PublicError.Code]
        BUSY: _ClassVar[PublicError.Code]
    UNSPECIFIED: PublicError.Code
    UNKNOWN_KEY: PublicError.Code
    BAD_REQUEST: PublicError.Code
    BUSY: PublicError.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    code: PublicError.Code
    def __init__(self, code: _Optional[_Union[PublicError.Code, str]] = ...) -> None: ...

class RequestAuth(_message.Message):
    __slots__ = ("request_id", "unix_ms", "device_thumbprint", "flags", "grant", "signature")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_THUMBPRINT_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    unix_ms: int
    device_thumbprint: bytes
    flags: int
    grant: bytes
    signature: bytes
    def __init__(self, request_id: _Optional[bytes] = ..., unix_ms: _Optional[int] = ..., device_thumbprint: _Optional[bytes] = ..., flags: _Optional[int] = ..., grant: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class EnrollRequest(_message.Message):
    __slots__ = ("public_key", "code", "not_after_unix", "label", "rotation")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_UNIX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    code: str
    not_after_unix: int
    label: str
    rotation: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., code: _Optional[str] = ..., not_after_unix: _Optional[int] = ..., label: _Optional[str] = ..., rotation: _Optional[bytes] = ...) -> None: ...

class EnrollResponse(_message.Message):
    __slots__ = ("device_thumbprint", "not_after_unix")
    DEVICE_THUMBPRINT_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_UNIX_FIELD_NUMBER: _ClassVar[int]
    device_thumbprint: bytes
    not_after_unix: int
    def __init__(self, device_thumbprint: _Optional[bytes] = ..., not_after_unix: _Optional[int] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("stream_id", "mac")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    stream_id: bytes
    mac: bytes
    def __init__(self, stream_id: _Optional[bytes] = ..., mac: _Optional[bytes] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("stream_id", "mac", "next_frame")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    NEXT_FRAME_FIELD_NUMBER: _ClassVar[int]
    stream_id: bytes
    mac: bytes
    next_frame: int
    def __init__(self, stream_id: _Optional[bytes] = ..., mac: _Optional[bytes] = ..., next_frame: _Optional[int] = ...) -> None: ...
