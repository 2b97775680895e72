"""google.rpc's details of a refusal, as gRPC carries them.

Said in clear is only what is full before anybody is known; whose quota is spent, or how full a
model's cache is, travels sealed, with the same words.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration

from overspill.errors import BusyError
from overspill.wire.v1 import status_pb2

DETAILS_KEY: Final = "grpc-status-details-bin"
DOMAIN: Final = "overspill"
_TYPES: Final = "type.googleapis.com/google.rpc."


def busy_details(error: BusyError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata with a ``google.rpc.Status``: RetryInfo and ErrorInfo."""
    info = status_pb2.ErrorInfo(reason=error.reason or "QUEUE_FULL", domain=DOMAIN)
    details = [AnyMessage(type_url=f"{_TYPES}ErrorInfo", value=info.SerializeToString())]
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        retry = status_pb2.RetryInfo(retry_delay=delay)
        details.append(AnyMessage(type_url=f"{_TYPES}RetryInfo", value=retry.SerializeToString()))
    code: int = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    status = status_pb2.RpcStatus(code=code, message=error.message, details=details)
    return ((DETAILS_KEY, status.SerializeToString()),)
