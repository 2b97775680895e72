"""What may be seen from outside of an error, whatever the method and whoever raised it.

gRPC's own answer would be the exception's text, and a traceback in the log: paths, settings, and
whatever it quotes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from overspill.errors import BusyError, InvalidRequest
from overspill_cloud import events
from overspill_cloud.answer import Displaced
from overspill_cloud.status import busy_details
from overspill_cloud.writing import Unread

_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]
_Work = Callable[[Any, _Context], Awaitable[_T]]
_Parse = Callable[[bytes], Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_Code = grpc.StatusCode
INTERNAL: Final = "internal error"


class Guard(grpc.aio.ServerInterceptor):
    """Around every method of a server."""

    def __init__(self, log: events.EventLog) -> None:
        self._log = log
        self._guarded: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """The method's handler within the guard; made once, for there are only so many."""
        method = handler_call_details.method
        guarded = self._guarded.get(method)
        if guarded is not None:
            return guarded
        handler = await continuation(handler_call_details)
        if handler is not None:
            handler = self._guarded[method] = self._around(handler, method.rpartition("/")[2])
        return handler

    def _around(self, handler: Any, name: str) -> _Handler:
        # Bytes come as they are: gRPC would tell of one that is no message in its parser's words.
        parse, coding = handler.request_deserializer, (None, handler.response_serializer)
        if handler.unary_unary is not None:
            work = self._guard(_reading(handler.unary_unary, parse), name)
            return grpc.unary_unary_rpc_method_handler(work, *coding)
        if handler.unary_stream is not None:
            work = self._guard(_reading(handler.unary_stream, parse), name)
            return grpc.unary_stream_rpc_method_handler(work, *coding)
        work = self._guard(_reading_each(handler.stream_stream, parse), name)
        return grpc.stream_stream_rpc_method_handler(work, *coding)

    def _guard(self, work: _Work[_T], name: str) -> _Work[_T]:
        async def guarded(request: Any, context: _Context) -> _T:
            try:
                return await work(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                status = self._status(error, name)
            # Not in the handler: who does not read keeps this waiting, and the error what it had.
            await context.abort(*status)
            raise AssertionError("abort always raises")

        return guarded

    def _status(self, error: Exception, name: str) -> tuple[grpc.StatusCode, str, Any]:
        if isinstance(error, BusyError):
            return _Code.RESOURCE_EXHAUSTED, error.message, busy_details(error)
        if isinstance(error, InvalidRequest):
            return _Code.INVALID_ARGUMENT, error.message, ()
        if isinstance(error, Displaced):
            return _Code.ABORTED, "read over another connection", ()
        if isinstance(error, Unread):
            return _Code.ABORTED, "nothing was read for too long", ()
        self._log.write(events.InternalError(type(error).__name__, name))
        return _Code.INTERNAL, INTERNAL, ()


class _Messages:
    """A call's messages, each parsed as it comes. No generator: whoever waits for the next may
    give up, and another may read on."""

    def __init__(self, data: AsyncIterator[bytes], parse: _Parse) -> None:
        self._data = data
        self._parse = parse

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return _message(self._parse, await anext(self._data))


def _reading(work: _Work[_T], parse: _Parse) -> _Work[_T]:
    return lambda data, context: work(_message(parse, data), context)


def _reading_each(work: _Work[_T], parse: _Parse) -> _Work[_T]:
    return lambda data, context: work(_Messages(aiter(data), parse), context)


def _message(parse: _Parse, data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise InvalidRequest("These bytes are no message of this method.") from None
