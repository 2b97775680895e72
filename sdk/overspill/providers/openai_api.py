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
from urllib.parse import urlsplit

from overspill.engines.base import Engine
from overspill.errors import ConfigurationError
from overspill.providers.openai_answer import StreamReader
from overspill.providers.openai_body import chat_body
from overspill.providers.openai_http import Endpoint, answer_lines, is_loopback, open_client
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request

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
        if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname)):
            raise ConfigurationError(
                f"The provider {self.name} has the address {self.base_url:.120}.",
                mend="Use https: whoever is on the way would read everything.",
            )


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
        options = self._options
        endpoint = Endpoint(
            name=options.name,
            base_url=options.base_url,
            model=self.card.name,
            api_key=options.api_key,
            connect_timeout_s=options.connect_timeout_s,
            silence_timeout_s=options.silence_timeout_s,
        )
        async with (
            open_client(endpoint) as client,
            answer_lines(client, endpoint, "/chat/completions", body) as lines,
        ):
            yield lines
