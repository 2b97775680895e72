"""What an attester owes the node that it vouches for."""

from __future__ import annotations

from typing import Protocol

from overspill.types.evidence import Assurance, Evidence


class Attester(Protocol):
    """Makes evidence of one kind. Called from one thread at a time; a quote may take milliseconds.

    To add a kind: one module here, its verifier in ``overspill.trust``, one row in
    ``tests/attester/test_attesters.py``.
    """

    @property
    def evidence_type(self) -> str:
        """The registered name of the evidence, as verifiers know it."""

    @property
    def mode(self) -> int:
        """The node key configuration's mode: ``PRODUCTION`` or ``DEV``."""

    @property
    def assurance(self) -> Assurance:
        """What a verifier can make of this evidence at best, for the node's own display."""

    def evidence(
        self, nkc_bytes: bytes, nonce: bytes | None, measured_log: tuple[bytes, ...]
    ) -> Evidence:
        """Evidence that this node runs what ``measured_log`` says under ``nkc_bytes``.

        ``nonce`` is a client's 32-byte challenge, or None for the bundle that everybody gets.
        Raises ``ConfigurationError`` when the root of trust cannot be used.
        """

    def close(self) -> None:
        """Lets go of whatever the evidence comes from."""
