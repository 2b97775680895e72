"""An engine made of a backend, a scheduler and the model's chat format."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from overspill.engines.answer_stream import AnswerStream
from overspill.engines.answer_text import AnswerForm, AnswerText
from overspill.engines.backend import Backend
from overspill.engines.base import Engine, EngineHealth, no_vision
from overspill.engines.chat_format import ChatTemplate, ChatTemplates
from overspill.engines.constraint import Constrainer, Constraint, is_available
from overspill.engines.constraint_grammar import request_grammar
from overspill.engines.control_guard import ControlGuard
from overspill.engines.drafts import PromptLookup, tokenizer_fingerprint
from overspill.engines.generation import Generation
from overspill.engines.loading import telling_loaded
from overspill.engines.options import EngineOptions
from overspill.engines.picture_prompt import ImageMarks, PicturePrompt
from overspill.engines.sampling import MAX_TOP_LOGPROBS, TokenSampler, check_sampling
from overspill.engines.scheduler import Scheduler, SchedulerStatus
from overspill.errors import (
    ContextOverflow,
    EngineDied,
    InvalidRequest,
    ModelInvalid,
    OverspillError,
)
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Message, Request, Tool

MAX_STOPS = 16


@dataclass(frozen=True, slots=True)
class _Loaded:
    scheduler: Scheduler
    backend: Backend
    templates: ChatTemplates
    guard: ControlGuard
    forms: Mapping[ChatTemplate, AnswerForm]
    constrainer: Constrainer
    card: ModelCard

    def template(self, request: Request) -> ChatTemplate:
        """The one that writes this request's prompt."""
        return self.templates.choose(request.messages, _offered(request))

    def form(self, request: Request) -> AnswerForm:
        """How its answer is written."""
        return self.forms[self.template(request)]

    def render(self, request: Request, messages: Sequence[Message]) -> str:
        """The prompt of a request, its messages as given; control tokens in it are marked."""
        template = self.template(request)
        text = template.render(messages, _offered(request), self.guard.mark)
        return text + self.guard.mark(request.prefix)


class ScheduledEngine(Engine):
    """Opens its backend on ``start`` (or on the first request) and serves many streams at once.

    ``open_backend`` runs on the scheduler's thread, and so does ``open_draft``, which opens a
    smaller model for drafts; ``name`` is what cards and answers say.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        *,
        name: str,
        runtime: str,
        options: EngineOptions | None = None,
        open_draft: Callable[[], Backend] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_backend = open_backend
        self._open_draft = open_draft
        self._clock = clock
        self._options = options or EngineOptions()
        sees = self._options.mmproj is not None
        modalities = ("text", "image") if sees else ("text",)
        self._card = ModelCard(name=name, context=0, runtime=runtime, modalities=modalities)
        self._loading: asyncio.Future[_Loaded] | None = None
        self._loaded: _Loaded | None = None
        self._scheduler: Scheduler | None = None
        # Nobody keeps an app from using one id twice.
        self._generations: dict[str, list[Generation]] = {}
        self._share: float | None = None

    @property
    def card(self) -> ModelCard:
        """Facts about the model; before ``start`` only its name and runtime, and context 0."""
        return self._card

    async def start(self) -> None:
        """Load the model; concurrent calls share one loading."""
        await self._ready()

    async def aclose(self) -> None:
        """End all streams and free the model."""
        scheduler, self._scheduler = self._scheduler, None
        self._loaded = self._loading = None
        if scheduler is not None:
            await asyncio.to_thread(scheduler.close)

    async def health(self) -> EngineHealth:
        """``ok`` when loaded and the scheduler's thread moved in the last seconds."""
        if self._scheduler is None or self._loaded is None:
            return EngineHealth(ok=False, detail="not loaded")
        status = self._scheduler.status()
        detail = "" if status.alive else "the scheduler's thread has ended"
        if status.alive and self._scheduler.is_stuck():
            detail = f"the scheduler's thread has not moved for {status.moved_s_ago:.0f} s"
        return EngineHealth(
            not detail,
            detail,
            status.active,
            status.queued,
            status.drafted_tokens,
            status.accepted_tokens,
            (status.draft_problem,) if status.draft_problem else (),
        )

    async def count_prompt_tokens(self, request: Request) -> int:
        """Tokens of the prompt as the model's template and tokenizer make it."""
        loaded = await self._ready()
        prompt, _ = await asyncio.to_thread(_prompt, loaded, request)
        return len(prompt)

    def status(self) -> SchedulerStatus | None:
        """What the scheduler does now; None while nothing is loaded."""
        return None if self._scheduler is None else self._scheduler.status()

    @property
    def loading(self) -> float | None:
        """As the backend tells while it opens."""
        return self._share

    def queue_position(self, request_id: str) -> int | None:
        """How many requests wait ahead of this one; None when it isn't queued (any more)."""
        if self._scheduler is None:
            return None
        same = self._generations.get(request_id, ())
        positions = (self._scheduler.queue_position(generation) for generation in same)
        return next((position for position in positions if position is not None), None)

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        loaded = await self._ready()
        stream = AnswerStream(asyncio.get_running_loop())
        with loaded.scheduler.expecting():
            generation = await asyncio.to_thread(self._prepare, loaded, request, stream)
        loaded.scheduler.submit(generation)
        same = self._generations.setdefault(request.id, [])
        same.append(generation)
        try:
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            same.remove(generation)
            if not same:
                self._generations.pop(request.id, None)
            loaded.scheduler.cancel(generation)

    def _prepare(self, loaded: _Loaded, request: Request, stream: AnswerStream) -> Generation:
        submitted_s = self._clock()
        _check_options(request, loaded.backend.vocabulary.size)
        _check_adapter(request, loaded)
        prompt, pictures = _prompt(loaded, request)
        return Generation(
            request=request,
            prompt=prompt,
            max_tokens=self._answer_limit(loaded, request, len(prompt)),
            sampler=TokenSampler(
                request.sampling,
                vocabulary_size=loaded.backend.vocabulary.size,
                top_logprobs=request.top_logprobs,
                constraint=_constraint(loaded, request),
                watch=request.watch,
            ),
            text=AnswerText(request, loaded.form(request)),
            stream=stream,
            submitted_s=submitted_s,
            pictures=pictures,
            # A guess may be no part of a picture, which has no tokens to copy.
            lookup=self._lookup(loaded, request, prompt) if pictures is None else None,
        )

    def _lookup(self, loaded: _Loaded, request: Request, prompt: list[int]) -> PromptLookup | None:
        backend = loaded.backend
        if self._options.scheduler.speculation == "off" or not backend.abilities.cuts:
            return None
        # Without speculation a client's draft has no use, and never was to change a token.
        # One by another tokenizer's model cuts words elsewhere: it would miss, and cost steps.
        foreign = request.draft_tokenizer not in ("", loaded.card.tokenizer)
        draft: Sequence[int] = ()
        if request.draft and not foreign:
            draft = backend.tokenize(request.draft, special=False)
        return PromptLookup(prompt, draft)

    def _answer_limit(self, loaded: _Loaded, request: Request, prompt_tokens: int) -> int:
        context = loaded.backend.context_per_sequence
        room = context - prompt_tokens
        wanted = request.max_tokens
        if room < (wanted or 1):
            raise ContextOverflow(prompt_tokens, wanted or 1, context, loaded.card.name)
        return wanted or min(room, self._options.default_max_tokens)

    async def _ready(self) -> _Loaded:
        if self._loaded is None:
            if self._loading is None or self._loading.cancelled():
                self._loading = asyncio.ensure_future(self._load())
            loading = self._loading
            try:
                # Whoever leaves while it loads leaves alone: others may wait for it too.
                loaded = await asyncio.shield(loading)
            except Exception:
                self._loading = None
                raise
            if loaded.scheduler is not self._scheduler:
                raise EngineDied("The engine was closed while it loaded.", mend="Start it again.")
            self._loaded, self._card = loaded, loaded.card
        return self._loaded

    async def _load(self) -> _Loaded:
        self._share = 0.0
        try:
            return await self._load_all()
        finally:
            self._share = None

    def _open_telling(self) -> Backend:
        def told(share: float) -> None:
            self._share = share

        with telling_loaded(told):
            return self._open_backend()

    async def _load_all(self) -> _Loaded:
        scheduler = Scheduler(
            self._open_telling,
            self._options.scheduler,
            open_draft=self._open_draft,
            clock=self._clock,
        )
        self._scheduler = scheduler
        try:
            backend = await asyncio.wrap_future(scheduler.start())
        except OverspillError:
            raise
        except Exception as error:
            raise ModelInvalid(
                f"{self._card.name} does not load: {type(error).__name__}: {error}",
                mend="Check the file, or try another model.",
            ) from error
        name = self._card.name
        try:
            templates = await asyncio.to_thread(lambda: ChatTemplates(backend, model=name))
            forms = await asyncio.to_thread(_forms, templates, backend)
        except Exception:
            await asyncio.to_thread(scheduler.close)
            raise
        card = dataclasses.replace(
            backend.card,
            name=name,
            tools=forms[templates.for_tools].dialect is not None,
            json_schema=is_available(),
            memory_bytes=backend.card.memory_bytes + scheduler.draft_bytes,
            notes=backend.card.notes + scheduler.notes,
            tokenizer=tokenizer_fingerprint(backend),
        )
        guard = ControlGuard(backend.vocabulary.control_texts)
        return _Loaded(scheduler, backend, templates, guard, forms, Constrainer(backend), card)


def _forms(templates: ChatTemplates, backend: Backend) -> dict[ChatTemplate, AnswerForm]:
    return {
        template: AnswerForm.of(template.abilities, backend)
        for template in (templates.plain, templates.for_tools)
    }


def _offered(request: Request) -> Sequence[Tool]:
    return request.tools if request.offers_tools else ()


def _prompt(loaded: _Loaded, request: Request) -> tuple[list[int], PicturePrompt | None]:
    """The prompt's tokens, and the pictures among them."""
    if request.raw or not request.has_images:
        return _prompt_tokens(loaded, request), None
    vision = loaded.backend.abilities.vision
    if vision is None:
        raise no_vision(loaded.card.name)
    marks = ImageMarks(request.messages)
    text = loaded.render(request, marks.messages)
    parts = tuple(marks.split(text, loaded.guard, loaded.card.name))
    tokens, spans = vision.measure(parts)
    if tokens[-1] < 0:
        raise InvalidRequest(
            f"The prompt of {loaded.card.name} ends with an image.",
            param="messages",
            mend="Write a word behind it: the answer goes on from text.",
        )
    return tokens, PicturePrompt(parts, spans, vision.shares)


def _prompt_tokens(loaded: _Loaded, request: Request) -> list[int]:
    tokens = _raw_tokens(loaded, request) if request.raw else _chat_tokens(loaded, request)
    bos_id = loaded.backend.vocabulary.bos_id
    if bos_id is not None and tokens[:1] != [bos_id]:
        tokens.insert(0, bos_id)
    if not tokens:
        raise InvalidRequest("The prompt is empty.", param="messages", mend="Send some text.")
    return tokens


def _raw_tokens(loaded: _Loaded, request: Request) -> list[int]:
    if len(request.messages) != 1 or request.tools or request.has_images:
        raise InvalidRequest("A raw prompt is one text without tools.", param="messages")
    return loaded.backend.tokenize(request.messages[0].content + request.prefix)


def _chat_tokens(loaded: _Loaded, request: Request) -> list[int]:
    text = loaded.render(request, request.messages)
    return [
        token
        for piece, special in loaded.guard.split(text)
        for token in loaded.backend.tokenize(piece, special=special)
    ]


def _check_options(request: Request, vocabulary_size: int) -> None:
    """Refuse, before any token, what can't be honoured."""
    check_sampling(request.sampling, vocabulary_size)
    if not request.messages:
        raise InvalidRequest("There are no messages.", param="messages", mend="Send at least one.")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InvalidRequest(
            f"max_tokens is {request.max_tokens}; it must be at least 1.", param="max_tokens"
        )
    if len(request.stop) > MAX_STOPS or "" in request.stop:
        raise InvalidRequest(
            f"stop takes up to {MAX_STOPS} strings, none of them empty.", param="stop"
        )
    if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs is {request.top_logprobs}; it goes from 0 to {MAX_TOP_LOGPROBS}.",
            param="top_logprobs",
        )


def _constraint(loaded: _Loaded, request: Request) -> Constraint | None:
    demand = request_grammar(request, loaded.form(request))
    if demand is None:
        return None
    grammar, param = demand
    # What an app asks for is kept for its own next request alone, as its prompts are.
    scope = None if request.cache_scope is None else (request.app, request.cache_scope)
    return loaded.constrainer.constrain(grammar, param=param, prefix=request.prefix, scope=scope)


def _check_adapter(request: Request, loaded: _Loaded) -> None:
    known = loaded.backend.abilities.adapters
    if request.adapter is not None and request.adapter not in known:
        raise InvalidRequest(
            f"{loaded.card.name} has no adapter {request.adapter!r:.80}.",
            param="adapter",
            mend=f"Known: {', '.join(known)}." if known else "Start the engine with adapters.",
        )
