"""Errors: their code, their line, and the plain values that their class carries."""

from __future__ import annotations

from overspill.errors import OverspillError, error_of
from overspill.wire.convert.words import dump, load_object
from overspill.wire.v1 import chat_pb2


def error_to_proto(error: OverspillError) -> chat_pb2.ErrorEvent:
    """An error as an event: its code, its line and the plain values its class carries."""
    detail = {
        name: value
        for name, value in vars(error).items()
        if name not in ("message", "mend", "partial")
        and isinstance(value, str | int | float | None)
    }
    return chat_pb2.ErrorEvent(
        code=error.code, message=error.message, mend=error.mend, detail_json=dump(detail)
    )


def error_from_proto(event: chat_pb2.ErrorEvent) -> OverspillError:
    """The typed error again; a code from a newer version becomes an ``EngineError``."""
    fields = {
        name: value
        for name, value in load_object(event.detail_json, "error").items()
        # Numbers and words only; what is the class's or this side's is not the peer's to say.
        if isinstance(value, str | int | float | None)
        and name != "partial"
        and not hasattr(OverspillError, name)
    }
    fields |= {"message": event.message, "mend": event.mend}
    return error_of(event.code, fields)


def error_to_bytes(error: OverspillError) -> bytes:
    """:func:`error_to_proto`, serialised."""
    return error_to_proto(error).SerializeToString()


def error_from_bytes(data: bytes) -> OverspillError:
    """Inverse of :func:`error_to_bytes`."""
    return error_from_proto(chat_pb2.ErrorEvent.FromString(data))
