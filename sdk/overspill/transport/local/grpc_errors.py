"""Typed errors over a gRPC status, at both ends of the `Local` service."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
import grpc.aio

from overspill import errors
from overspill.transport.local.answers import broken
from overspill.wire import convert

_ERROR_KEY = "overspill-error-bin"


async def refuse(
    context: grpc.aio.ServicerContext[Any, Any], error: errors.OverspillError
) -> NoReturn:
    """End a call with a typed error, for :func:`mapped`."""
    detail = convert.error_to_bytes(error)
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.message, ((_ERROR_KEY, detail),))
    raise AssertionError("abort raises")


def mapped(error: grpc.aio.AioRpcError, address: str, *, begun: bool) -> errors.OverspillError:
    """The other side's own typed error, or a broken road."""
    for key, value in error.trailing_metadata() or ():
        if key == _ERROR_KEY and isinstance(value, bytes):
            return convert.error_from_bytes(value)
    detail = (error.details() or "no detail").splitlines()[0]
    return broken(address, f"{error.code().name}: {detail}", begun=begun)
