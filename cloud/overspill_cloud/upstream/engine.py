"""A server beside the node as an engine: same requests, same chunks, same refusals."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from overspill.engines.base import Engine, EngineHealth
from overspill.errors import (
    ContextOverflow,
    EngineDied,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    TransportError,
    UnsupportedOption,
)
from overspill.providers.openai_answer import StreamReader
from overspill.providers.openai_http import Endpoint, answer_lines, open_client
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Finish, Request
from overspill_cloud.upstream.address import UpstreamAddress
from overspill_cloud.upstream.deadlines import Deadlines
from overspill_cloud.upstream.logprobs import logprobs_of
from overspill_cloud.upstream.probe import Found, probe
from overspill_cloud.upstream.schema import check_schema

if TYPE_CHECKING:
    import httpx2

TOKENS_A_MESSAGE = 32
"""More than any chat template lays around a message."""


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """In seconds. Running answers may stand still, all of them, for ``stuck_after_s`` before the
    engine counts as stuck; each of them is given up after ``silence_timeout_s``."""

    connect_timeout_s: float = 5.0
    silence_timeout_s: float = 300.0
    stuck_after_s: float = 120.0
    health_timeout_s: float = 2.0


class UpstreamEngine(Engine):
    """Answers by an OpenAI-compatible server on this machine. Needs the extra ``upstream``.

    Closing a generator closes its connection, at which all of these servers stop the sequence.
    """

    def __init__(
        self, address: UpstreamAddress, *, name: str, limits: UpstreamLimits | None = None
    ) -> None:
        self._address = address
        self._limits = limits or UpstreamLimits()
        self._name = name
        self._endpoint = Endpoint(
            name=f"The upstream of {name}",
            base_url=address.base_url,
            model=address.model,
            uds=address.uds,
            connect_timeout_s=self._limits.connect_timeout_s,
            silence_timeout_s=self._limits.silence_timeout_s,
            feature="An upstream engine",
            extra="upstream",
        )
        self._client: httpx2.AsyncClient | None = None
        self._found: Found | None = None
        self._active = 0
        self._moved_s = time.monotonic()

    @property
    def card(self) -> ModelCard:
        """What the upstream said about itself; before it was asked, the name alone."""
        return self._found.card if self._found else ModelCard(self._name, 0, "upstream")

    @property
    def sequences(self) -> int | None:
        """How many it runs at once; None where it does not say."""
        return self._found.sequences if self._found else None

    async def start(self) -> None:
        """Ask the upstream what it is; it has to be up already.

        Raises ``ConnectFailed``, ``ModelNotFound``, ``ConfigurationError`` or ``MissingExtra``.
        """
        if self._client is not None:
            return
        client = open_client(self._endpoint)
        try:
            self._found = await probe(client, self._address, self._name)
        except BaseException:
            await client.aclose()
            raise
        self._client = client

    async def aclose(self) -> None:
        """Close every connection, and with them what runs on them."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def health(self) -> EngineHealth:
        """``ok`` when its own health check passes and running answers are not all standing still.

        vLLM's check asks its engine; llama-server's only that its model is loaded.
        """
        detail = await self._trouble()
        return EngineHealth(not detail, detail, active=self._active)

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """By the upstream's own tokenizer and template; None where it does not count."""
        found, client = await self._ready()
        if found.dialect.counter is None:
            return None
        body = found.dialect.body(request, self._address.model, self._endpoint.name)
        said = await self._post(client, found.dialect.counter, body)
        count = said.get("input_tokens", said.get("count"))
        return count if isinstance(count, int) else None

    async def _post(
        self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What it answers; nothing where it refuses. Raises ``EngineDied``."""
        import httpx2

        try:
            response = await client.post(f"{self._address.base_url}{path}", json=body)
            said = response.json() if response.status_code == 200 else {}
        except (httpx2.HTTPError, ValueError) as error:
            raise EngineDied(
                f"{self._endpoint.name} was lost ({type(error).__name__}).", mend="Try again."
            ) from error
        return said if isinstance(said, Mapping) else {}

    # In calling order -------------------------------------------------------------------------

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        found, client = await self._ready()
        check_request(request, found.card)
        body = found.dialect.body(request, self._address.model, self._endpoint.name)
        await self._check_room(request, found.card)
        reader = StreamReader(self._address.model)
        async with (
            self._working(),
            self._overflow_named(request, found.card),
            aclosing(self._events(client, body, Deadlines(request))) as events,
        ):
            async for data in events:
                for chunk in _read(reader, data, request):
                    yield chunk
                if reader.done:
                    break
        yield self._end(reader)

    async def _events(
        self, client: httpx2.AsyncClient, body: Mapping[str, Any], deadlines: Deadlines
    ) -> AsyncGenerator[str]:
        """The data of each event, in time; closing it closes the connection."""
        sent = json.dumps(body).encode()
        async with AsyncExitStack() as stack:
            opening = answer_lines(client, self._endpoint, "/v1/chat/completions", sent)
            lines = await deadlines.keep(stack.enter_async_context(opening))
            while (line := await deadlines.keep(anext(lines, None))) is not None:
                self._moved_s = time.monotonic()
                if line.startswith("data:"):
                    deadlines.has_begun = True
                    yield line[5:].strip()

    def _end(self, reader: StreamReader) -> Chunk:
        last = reader.finish()
        if last.finish is None or reader.model != self._address.model:
            raise EngineError(
                f"{self._endpoint.name} answered by '{reader.model:.60}', another model.",
                mend="Serve one model by each upstream.",
            )
        finish = Finish(last.finish.reason, last.finish.usage, self.card.name)
        return replace(last, finish=finish)

    async def _ready(self) -> tuple[Found, httpx2.AsyncClient]:
        await self.start()
        if self._found is None or self._client is None:
            raise EngineDied(f"{self._endpoint.name} was closed.", mend="Start it again.")
        return self._found, self._client

    async def _check_room(self, request: Request, card: ModelCard) -> None:
        """Raises ``ContextOverflow`` before anything is sent; counts only what may be too long."""
        wanted = request.max_tokens or 1
        if most_tokens(request) + wanted <= card.context:
            return
        prompt = await self.count_prompt_tokens(request)
        if prompt is not None and prompt + wanted > card.context:
            raise ContextOverflow(prompt, wanted, card.context, card.name)

    @asynccontextmanager
    async def _overflow_named(self, request: Request, card: ModelCard) -> AsyncIterator[None]:
        """A refusal of the upstream's with what it is known to be about, or as it came."""
        try:
            yield
        except InvalidRequest as error:
            prompt = await self.count_prompt_tokens(request)
            wanted = request.max_tokens or 1
            if prompt is not None and prompt + wanted > card.context:
                raise ContextOverflow(prompt, wanted, card.context, card.name) from error
            raise
        except ModelNotFound as error:
            raise EngineError(f"{self._endpoint.name} serves its model no more.") from error
        except TransportError as error:
            raise EngineDied(
                error.message, mend="The node's operator has to look at it."
            ) from error

    @asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        if not self._active:
            self._moved_s = time.monotonic()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    async def _trouble(self) -> str:
        if self._client is None:
            return "not started"
        import httpx2

        timeout_s = self._limits.health_timeout_s
        try:
            url = f"{self._address.base_url}/health"
            response = await self._client.get(url, timeout=timeout_s)
        except httpx2.HTTPError as error:
            return f"the upstream does not answer ({type(error).__name__})"
        if response.status_code != 200:
            return f"the upstream says {response.status_code}"
        still_s = time.monotonic() - self._moved_s
        if self._active and still_s > self._limits.stuck_after_s:
            return f"the upstream has said nothing for {still_s:.0f} s"
        return ""


def _read(reader: StreamReader, data: str, request: Request) -> Iterator[Chunk]:
    most = request.top_logprobs
    logprobs = () if most is None else logprobs_of(data, most)
    ids = tuple(one.token_id for one in logprobs)
    for chunk in reader.feed(data):
        if chunk.has_content or logprobs:
            yield replace(chunk, logprobs=logprobs, token_ids=ids) if logprobs else chunk


def check_request(request: Request, card: ModelCard) -> None:
    """What is refused by name before anything is sent. Raises ``UnsupportedOption``."""
    who = f"The upstream of {card.name}"
    if request.json_schema is not None:
        check_schema(request.json_schema, who, "json_schema")
    if request.offers_tools and request.top_logprobs is not None:
        raise UnsupportedOption(
            f"{who} cannot honour top_logprobs beside tools.", param="top_logprobs"
        )
    if request.offers_tools and not card.tools:
        raise UnsupportedOption(f"{who} cannot honour tools.", param="tools")
    for tool in request.tools if request.offers_tools and request.needs_constraint else ():
        check_schema(tool.parameters, who, "tools")


def most_tokens(request: Request) -> int:
    """No fewer tokens than the prompt will have: no tokenizer makes more tokens than bytes."""
    said: Iterable[str] = (
        text
        for message in request.messages
        for text in (message.content, *(call.arguments for call in message.tool_calls))
    )
    offered: list[Mapping[str, Any]] = [dict(tool.parameters) for tool in request.tools]
    extra = sum(len(json.dumps(one)) for one in offered)
    extra += sum(len(f"{tool.name}{tool.description}".encode()) for tool in request.tools)
    spoken = sum(len(text.encode()) for text in said) + len(request.prefix.encode())
    count = len(request.messages) + len(request.tools) + 2
    return spoken + extra + TOKENS_A_MESSAGE * count
