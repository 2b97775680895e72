"""Every error that overspill raises, in one tree.

::

    OverspillError
    ├── UsageError                 the call or the command is wrong                       exit 2
    │   ├── InvalidRequest         a message, option or schema that cannot be honoured
    │   │   └── UnsupportedOption  valid elsewhere; this engine cannot honour it
    │   ├── ConfigurationError     a settings or policy file that cannot be used
    │   │   ├── VersionMismatch    SDK and daemon do not understand each other
    │   │   └── DaemonRefused      a daemon runs, and does not accept this app
    │   ├── MissingExtra           an optional dependency is not installed
    │   └── NotOpen                a client outside its block, its event loop or its process
    ├── ModelError                 a model cannot be used                                 exit 3
    │   ├── ModelNotFound          no such model or file
    │   ├── ModelInvalid           truncated, foreign or malformed model file
    │   └── PullFailed             a model could not be fetched; what came is kept
    ├── PolicyRefusal              the rules leave no route                               exit 4
    │   ├── ConsentRequired        only a third party is left and nobody granted it
    │   ├── BudgetExhausted        the purse or the deadline of a chain is used up
    │   └── StepsExhausted         a run of tools went on beyond its steps
    ├── DoesNotFit                 too large for what is there                            exit 5
    │   └── ContextOverflow        the prompt (and its answer) exceed the context
    ├── BusyError                  try again later                                        exit 7
    │   └── DeadlineExceeded       would be, or was, too late
    ├── EngineError                an engine failed while it worked                       exit 1
    │   ├── EngineDied             its process or thread is gone
    │   └── OutputInvalid          an answer that is not what ``output`` asks for
    ├── TrustError                 THE PEER IS WRONG: never retried, never swallowed      exit 6
    │   ├── EvidenceRejected       a numbered verification step refused the evidence
    │   │   └── SplitView          a log showed two histories: kept, until a person decides
    │   ├── LogInvalid             a log's checkpoint, proof or folder is malformed, cut or false
    │   ├── KeyUnknown             the node no longer holds the key that was used
    │   ├── DeviceRejected         the node refused this device or its signature
    │   ├── StreamCorrupt          a frame was altered, repeated, reordered or added
    │   ├── StreamTruncated        the stream ended well, but without FINAL
    │   └── ReceiptInvalid         a receipt does not verify
    ├── TransportError             THE ROAD IS BAD: another try or route may work         exit 6
    │   ├── ConnectFailed          nobody answered
    │   └── StreamBroken           the connection was lost in mid-stream
    └── Cancelled                  the caller left                                        exit 130

A trust error is never a kind of transport error: a retry would swallow it.
Each error says in one line what is wrong (``message``) and how to mend it (``mend``);
``code`` is stable and machine-readable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Self


class OverspillError(Exception):
    """Base of all errors. ``str(error)`` is one line: the message, then the mend."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, mend: str = "", partial: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.partial = partial
        """Text received before the failure; unconfirmed, never dropped."""

    def __str__(self) -> str:
        return f"{self.message} {self.mend}".strip()

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape shared by the command line and the HTTP endpoints."""
        return {"code": self.code, "message": self.message, "mend": self.mend}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuild an error from :func:`vars` of another, across a process or a wire."""
        error = cls.__new__(cls)
        Exception.__init__(error, fields.get("message", ""))
        error.message, error.mend, error.partial = "", "", ""
        error.__dict__.update(fields)
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), vars(self).copy()))


def error_of(code: str, fields: Mapping[str, Any]) -> OverspillError:
    """The typed error of a code; one from a newer version becomes an ``EngineError``."""

    def find(cls: type[OverspillError]) -> type[OverspillError] | None:
        if cls.code == code:
            return cls
        return next((found for sub in cls.__subclasses__() if (found := find(sub))), None)

    return (find(OverspillError) or EngineError).from_fields(fields)


def _rebuild(cls: type[OverspillError], fields: dict[str, Any]) -> OverspillError:
    return cls.from_fields(fields)


class UsageError(OverspillError):
    """The call or the command line is wrong."""

    code = "usage"
    exit_code = 2


class InvalidRequest(UsageError):
    """A message, option or schema that cannot be honoured."""

    code = "invalid_request"
    param: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, mend: str = "", partial: str = ""
    ) -> None:
        super().__init__(message, mend=mend, partial=partial)
        self.param = param


class UnsupportedOption(InvalidRequest):
    """An option that this engine cannot honour; nothing is dropped in silence."""

    code = "unsupported_option"


class ConfigurationError(UsageError):
    """A settings or policy file that cannot be used."""

    code = "configuration"


class VersionMismatch(ConfigurationError):
    """SDK and daemon do not understand each other; ``mend`` says which one to upgrade."""

    code = "version_mismatch"


class DaemonRefused(ConfigurationError):
    """A daemon runs, and does not accept this app, or does other work than was asked for."""

    code = "daemon_refused"


class MissingExtra(UsageError):
    """An optional dependency is not installed."""

    code = "missing_extra"
    extra: str = ""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the extra '{extra}', which is not installed.",
            mend=f'Run: pip install "overspill[{extra}]"',
        )
        self.extra = extra


class NotOpen(UsageError):
    """A client is used before or after its ``with`` block, or where it was not opened: from another
    event loop, or in a process that was forked from its own."""

    code = "not_open"


class ModelError(OverspillError):
    """A model cannot be used."""

    code = "model"
    exit_code = 3


class ModelNotFound(ModelError):
    """No such model or file."""

    code = "model_not_found"

    @classmethod
    def among(cls, wanted: str, known: Iterable[str]) -> Self:
        """For a name that is none of ``known``, with the ones that it may have meant."""
        names = sorted(known)
        close = get_close_matches(wanted, names, n=3, cutoff=0.5)
        if close:
            mend = f"Did you mean {' or '.join(close)}?"
        else:
            mend = f"Use one of: {', '.join(names)}." if names else "See: overspill models catalog"
        return cls(f"There is no model '{wanted[:80]}'.", mend=mend)


class ModelInvalid(ModelError):
    """A truncated, foreign or malformed model file."""

    code = "model_invalid"


class PullFailed(ModelError):
    """A model could not be fetched. What has come is kept: another pull goes on from there."""

    code = "pull_failed"


class PolicyRefusal(OverspillError):
    """The rules leave no route."""

    code = "refused"
    exit_code = 4


class ConsentRequired(PolicyRefusal):
    """Only a third party is left, and nobody granted this one interaction.

    ``reason`` says what is wrong with a grant that there is: ``grant_expired``, ``grant_spent`` ...
    ``plan_id`` names the plan that a person is to see: its ``request_id``, and the grant's.
    """

    code = "consent_required"
    reason: str = ""
    plan_id: str = ""


class BudgetExhausted(PolicyRefusal):
    """The purse or the deadline of a chain of calls is used up."""

    code = "budget_exhausted"


class StepsExhausted(PolicyRefusal):
    """A run went on calling tools beyond its steps; ``steps`` has what was done, in order."""

    code = "steps_exhausted"
    steps: tuple[Any, ...] = ()

    def __init__(self, max_steps: int, steps: tuple[Any, ...] = ()) -> None:
        super().__init__(
            f"After {max_steps} answers the model still calls tools.", mend="Raise max_steps."
        )
        self.steps = steps


class DoesNotFit(OverspillError):
    """Too large for the memory or the limits that are there."""

    code = "does_not_fit"
    exit_code = 5


class ContextOverflow(DoesNotFit):
    """Prompt plus answer exceed the context. Nothing is ever cut off."""

    code = "context_length_exceeded"
    prompt_tokens: int = 0
    max_tokens: int = 0
    context: int = 0

    def __init__(self, prompt_tokens: int, max_tokens: int, context: int, model: str = "") -> None:
        where = f" of {model}" if model else ""
        super().__init__(
            f"The prompt has {prompt_tokens} tokens and asks for {max_tokens} more; "
            f"the context{where} holds {context}.",
            mend="Shorten the prompt, lower max_tokens, or allow a route with a larger context.",
        )
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.context = context


class BusyError(OverspillError):
    """No room now; try again after ``retry_after_s`` seconds.

    ``reason`` says what is full, where that is told: QUEUE_FULL, KV_FULL or QUOTA.
    """

    code = "busy"
    exit_code = 7
    retry_after_s: float | None = None
    reason: str = ""

    def __init__(
        self,
        message: str,
        *,
        mend: str = "",
        partial: str = "",
        retry_after_s: float | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message, mend=mend, partial=partial)
        self.retry_after_s = retry_after_s
        self.reason = reason


class DeadlineExceeded(BusyError):
    """The request would be, or was, too late for its deadline."""

    code = "deadline_exceeded"


class EngineError(OverspillError):
    """An engine failed while it worked."""

    code = "engine"


class EngineDied(EngineError):
    """The engine's process or thread is gone."""

    code = "engine_died"


class OutputInvalid(EngineError):
    """An answer that is not of the type that ``output`` asks for; ``partial`` holds its text."""

    code = "output_invalid"


class TrustError(OverspillError):
    """The peer is wrong. Never retried, never a kind of transport error."""

    code = "trust"
    exit_code = 6


class EvidenceRejected(TrustError):
    """A numbered verification step refused the evidence.

    ``reason`` names the refusal (stable, e.g. ``dev_evidence``), ``step`` the numbered step,
    ``expected`` and ``actual`` what was demanded and what was found.
    """

    code = "evidence_rejected"
    reason: str = ""
    step: str = ""
    expected: str = ""
    actual: str = ""

    def __init__(
        self, reason: str, step: str, *, expected: str, actual: str, mend: str = ""
    ) -> None:
        super().__init__(
            f"Evidence rejected at step {step} ({reason}): expected {expected}, found {actual}.",
            mend=mend,
        )
        self.reason = reason
        self.step = step
        self.expected = expected
        self.actual = actual


class SplitView(EvidenceRejected):
    """A log showed this client two histories that cannot both be true.

    ``remembered`` and ``shown`` are the two signed checkpoints: the evidence. It is kept, and
    blocks everything under ``origin`` until a person decides.
    """

    code = "split_view"
    origin: str = ""
    remembered: bytes = b""
    shown: bytes = b""

    def __init__(self, step: str, *, origin: str, remembered: bytes, shown: bytes) -> None:
        super().__init__(
            "split_view",
            step,
            expected=f"one history of the log {origin}",
            actual="two signed checkpoints that contradict each other",
            mend="Find out who lied, then: overspill trust log decide",
        )
        self.origin = origin
        self.remembered = remembered
        self.shown = shown


class LogInvalid(TrustError):
    """A transparency log's checkpoint, proof, tile or folder is malformed, truncated or false.

    ``reason`` names the refusal (stable), ``expected`` and ``actual`` what was demanded and found.
    """

    code = "log_invalid"
    reason: str = ""
    expected: str = ""
    actual: str = ""

    def __init__(self, reason: str, *, expected: str, actual: str, mend: str = "") -> None:
        super().__init__(
            f"The log is refused ({reason}): expected {expected}, found {actual}.", mend=mend
        )
        self.reason = reason
        self.expected = expected
        self.actual = actual


class KeyUnknown(TrustError):
    """The node no longer holds the key that the request was sealed to: fetch the bundle again."""

    code = "key_unknown"


class DeviceRejected(TrustError):
    """The node refused this device or its signature. ``reason`` says which check failed."""

    code = "device_rejected"
    reason: str = ""

    def __init__(
        self, message: str, *, reason: str = "", mend: str = "", partial: str = ""
    ) -> None:
        super().__init__(message, mend=mend, partial=partial)
        self.reason = reason


class StreamCorrupt(TrustError):
    """A frame was altered, dropped, repeated, reordered, or came after FINAL."""

    code = "stream_corrupt"


class StreamTruncated(TrustError):
    """The stream ended in good order but without FINAL: the text is unconfirmed."""

    code = "stream_truncated"


class ReceiptInvalid(TrustError):
    """A receipt does not verify."""

    code = "receipt_invalid"


class TransportError(OverspillError):
    """The road is bad: another try or another route may work."""

    code = "transport"
    exit_code = 6


class ConnectFailed(TransportError):
    """Nobody answered at the address."""

    code = "connect_failed"


class StreamBroken(TransportError):
    """The connection was lost in mid-stream; ``partial`` holds the unconfirmed text."""

    code = "stream_broken"


class Cancelled(OverspillError):
    """The caller left before the answer was complete."""

    code = "cancelled"
    exit_code = 130
