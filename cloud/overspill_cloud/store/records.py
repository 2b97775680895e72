"""What is stored, as values. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device.

    ``quota_tokens`` is its own quota a period, None for the node's default. ``quota_account`` is
    the key that it was first enrolled with, None for this very one: a rotation begins no new quota.
    """

    thumbprint: bytes
    public_der: bytes
    label: str
    enrolled_unix: int
    not_after_unix: int
    revoked_unix: int | None = None
    quota_tokens: int | None = None
    quota_account: bytes | None = None

    @property
    def account(self) -> bytes:
        """Whose quota this device spends."""
        return self.quota_account or self.thumbprint


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """One line of the ledger: what one attempt of one request took.

    ``account`` is charged for it (empty: the device itself) in the quota period that began at
    ``period_unix`` (0: none); ``lease`` is the lease that had set its tokens aside.
    """

    request_id: bytes
    attempt: int
    thumbprint: bytes
    unix_s: int
    model: str
    prompt_tokens: int
    completion_tokens: int
    outcome: str
    account: bytes = b""
    period_unix: int = 0
    lease: bytes | None = None

    @property
    def tokens(self) -> int:
        """What it counts in a quota."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Lease:
    """Tokens of an account's quota that one replica may spend until ``expires_unix``."""

    lease_id: bytes
    account: bytes
    period_unix: int
    tokens: int
    expires_unix: int
