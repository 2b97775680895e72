"""A provider that speaks OpenAI's chat completions, as an engine.

It sends whatever it is asked to: consent is asked of ``granted.GrantedEngine``, which stands in
front of it. Redirects are not followed, and nothing is tried twice.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from overspill.engines.base import Engine
from overspill.errors import (
    BusyError,
    ConfigurationError,
    ConnectFailed,
    EngineError,
    InvalidRequest,
    MissingExtra,
    ModelNotFound,
    OverspillError,
    StreamBroken,
)
from overspill.providers.openai_answer import StreamReader
from overspill.providers.openai_body import chat_body
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request

if TYPE_CHECKING:
    import httpx2


_REMEMBERED_REQUESTS = 1_000


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """``base_url`` is what the provider's documentation says (".../v1"); https, but on loopback.

    ``card`` is what routing weighs: the model's name there, its context, tools, prices.
    """

    name: str
    base_url: str
    card: ModelCard
    api_key: str = field(repr=False)
    connect_timeout_s: float = 10.0
    silence_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.hostname)):
            raise ConfigurationError(
                f"The provider {self.name} has the address {self.base_url:.120}.",
                mend="Use https: whoever is on the way would read everything.",
            )


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


class OpenAIEngine(Engine):
    """Answers by a third party's API. Needs the extra ``providers`` (httpx2)."""

    def __init__(self, options: ProviderOptions) -> None:
        self._options = options
        self._sent: OrderedDict[str, int] = OrderedDict()

    @property
    def card(self) -> ModelCard:
        """The card that was configured, which nobody proves; its ``runtime`` is the provider."""
        return replace(self._options.card, runtime=self._options.name)

    def bytes_sent(self, request_id: str) -> int:
        """The body's bytes for one of the last requests, by its id; 0 for any other."""
        return self._sent.get(request_id, 0)

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """Unknown: its tokenizer is not here, and it is not asked."""
        return None

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        body = json.dumps(chat_body(request, self.card.name)).encode()
        reader = StreamReader(self.card.name)
        self._note(request.id, len(body))
        async with self._answer(body) as lines:
            async for line in lines:
                if line.startswith("data:"):
                    for chunk in reader.feed(line[5:].strip()):
                        if chunk.has_content:
                            yield chunk
                if reader.done:
                    break
        yield reader.finish()

    def _note(self, request_id: str, size_bytes: int) -> None:
        self._sent[request_id] = self._sent.get(request_id, 0) + size_bytes
        while len(self._sent) > _REMEMBERED_REQUESTS:
            self._sent.popitem(last=False)

    @asynccontextmanager
    async def _answer(self, body: bytes) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of the provider's answer, once it is one."""
        try:
            import httpx2
        except ImportError:
            raise MissingExtra("A third party's API", "providers") from None
        options = self._options
        timeout = httpx2.Timeout(options.silence_timeout_s, connect=options.connect_timeout_s)
        url = f"{options.base_url.rstrip('/')}/chat/completions"
        headers = {
            "Authorization": f"Bearer {options.api_key}",
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
        }
        try:
            async with (
                httpx2.AsyncClient(timeout=timeout, follow_redirects=False) as client,
                client.stream("POST", url, content=body, headers=headers) as response,
            ):
                if response.status_code != 200:
                    raise self._refusal(response)
                yield response.aiter_lines()
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ConnectFailed(f"{options.name} cannot be reached.", mend="Go online.") from error
        except httpx2.TransportError as error:
            kind = type(error).__name__
            raise StreamBroken(f"{options.name} was lost ({kind}).", mend="Try again.") from error

    def _refusal(self, response: httpx2.Response) -> OverspillError:
        """By status alone: what a provider writes beside it may quote the prompt."""
        name, status = self._options.name, response.status_code
        if status in (401, 403):
            return ConfigurationError(f"{name} refused its key ({status}).", mend="Set a good one.")
        if status == 404:
            return ModelNotFound(
                f"{name} has no model '{self.card.name}'.", mend="Name one that it serves."
            )
        if status in (429, 503):
            return BusyError(f"{name} is busy ({status}).", retry_after_s=_retry_after_s(response))
        if 400 <= status < 500:
            return InvalidRequest(f"{name} refused the request ({status}).")
        return EngineError(f"{name} failed ({status}).", mend="Try again later.")


def _retry_after_s(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:  # absent, or a date: then it is for the caller to choose
        return None
