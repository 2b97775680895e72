"""Who answers for a client: engines of its own, or the daemon of its user."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Protocol

from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.types.reply import Availability, ReceiptRecord, ReplyChunk
from overspill.types.route import Plan

if TYPE_CHECKING:
    from overspill.models.files import OnProgress
    from overspill.models.store import StoredModel


class Answerer(Protocol):
    """What :class:`~overspill.client.AsyncOverspill` needs of whoever answers.

    Every method raises the typed errors of :mod:`overspill.errors`, the same ones on both sides.
    """

    def run(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """The answer in pieces; closing the generator cancels the work."""

    async def plan(self, request: Request) -> Plan:
        """Where the request would run; nothing is generated."""

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """The vectors, computed on this device."""

    async def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now."""

    async def priced(self, model: str) -> tuple[ModelCard, ...]:
        """Cards to settle an answer of ``model`` by; no cloud is asked for them."""

    async def availability(self) -> Availability:
        """The device's and the cloud's state."""

    async def receipts(self, limit: int) -> tuple[ReceiptRecord, ...]:
        """The newest receipts first."""

    async def pull(self, model: str | None, on_progress: OnProgress | None) -> StoredModel:
        """Fetch a model into the user's store, and load it where it was missing."""

    def queue_position(self, request_id: str) -> int | None:
        """How many requests wait ahead of this one on the device, as last told."""

    async def aclose(self) -> None:
        """Cancel what runs and free everything. May be called twice."""
