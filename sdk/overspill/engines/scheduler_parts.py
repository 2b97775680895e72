"""What a scheduler's thread works with once its backend is open, and how it comes to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from overspill.engines.answer_stream import AnswerStream
from overspill.engines.backend import Backend
from overspill.engines.drafts import DraftModel
from overspill.engines.live_memory import available_memory
from overspill.engines.machine_load import LoadMeter, ThreadControl
from overspill.engines.memory import store_room
from overspill.engines.options import SchedulerOptions
from overspill.engines.picture_encoder import PictureEncoder
from overspill.engines.prefix_cache import PrefixCache
from overspill.engines.speculation import Speculator
from overspill.engines.step_costs import StepCosts
from overspill.engines.step_plan import StepPlanner
from overspill.engines.step_runner import StepRunner
from overspill.types.chat import Chunk


@dataclass(frozen=True, slots=True)
class Parts:
    """``threads`` is None where CPU threads are not chosen by load, ``encoder`` without images.

    ``draft_problem`` says why a draft model that was asked for was not even opened, ``notes`` what
    else was not had as asked for.
    """

    backend: Backend
    prefixes: PrefixCache
    planner: StepPlanner
    runner: StepRunner
    speculator: Speculator | None
    threads: ThreadControl | None
    encoder: PictureEncoder | None
    draft_problem: str
    notes: tuple[str, ...] = ()

    @property
    def draft_bytes(self) -> int:
        """What the draft model was estimated to take; 0 without one."""
        draft_model = None if self.speculator is None else self.speculator.draft_model
        return 0 if draft_model is None else draft_model.memory_bytes

    def status(self) -> dict[str, Any]:
        """Their share of a ``SchedulerStatus``. *Any thread.*"""
        speculator = self.speculator
        return {
            "prefix_cache_bytes": self.prefixes.host_bytes,
            "drafted_tokens": 0 if speculator is None else speculator.drafted,
            "accepted_tokens": 0 if speculator is None else speculator.accepted,
            "threads": 0 if self.threads is None else self.threads.threads,
            "draft_problem": self.draft_problem
            or ("" if speculator is None else speculator.draft_problem),
        }

    def close(self) -> None:
        """Free the backend, the draft model, and the thread that encodes images."""
        if self.encoder is not None:
            self.encoder.close()
        if self.speculator is not None:
            self.speculator.close()
        self.backend.close()


def open_parts(
    open_backend: Callable[[], Backend],
    open_draft: Callable[[], Backend] | None,
    options: SchedulerOptions,
    costs: StepCosts,
    *,
    deliver: Callable[[AnswerStream, Chunk], None],
    wake: Callable[[], None],
    clock: Callable[[], float],
    free_memory: Callable[[], int | None] = available_memory,
) -> Parts:
    """Open the backend, and the draft model where it is of use; raises what opening raises.

    Computed prompts are kept in host memory as long as model and copies leave some of it free.
    ``wake`` is called, on a thread of its own, when a picture is encoded.
    """
    free_bytes = free_memory()
    backend = open_backend()
    try:
        speculator, draft_problem = _open_speculator(backend, open_draft, options, costs, clock)
    except BaseException:
        backend.close()
        raise
    abilities = backend.abilities
    threads = None
    if abilities.most_threads > 1:
        threads = ThreadControl(backend, LoadMeter(clock=clock))
    planner = StepPlanner(
        options,
        costs,
        batch_tokens=backend.batch_tokens,
        adapters=bool(abilities.adapters),
        propose=None if speculator is None else speculator.propose,
    )
    runner = StepRunner(
        backend,
        costs,
        speculator,
        threads,
        adapters=bool(abilities.adapters),
        deliver=deliver,
        clock=clock,
    )
    need_bytes = backend.card.memory_bytes
    if speculator is not None and speculator.draft_model is not None:
        need_bytes += speculator.draft_model.memory_bytes
    store_bytes = store_room(options.prefix_cache_bytes, need_bytes, free_bytes)
    return Parts(
        backend,
        PrefixCache(backend, max_bytes=store_bytes),
        planner,
        runner,
        speculator,
        threads,
        None if abilities.vision is None else PictureEncoder(abilities.vision, wake),
        draft_problem,
        _store_notes(options.prefix_cache_bytes, store_bytes, backend),
    )


def _store_notes(wanted_bytes: int, bytes_: int, backend: Backend) -> tuple[str, ...]:
    if bytes_ >= wanted_bytes or not backend.abilities.saves_state:
        return ()
    return (
        f"memory is tight: at most {bytes_ >> 20} MiB of computed prompts are kept in host memory "
        f"instead of {wanted_bytes >> 20}",
    )


def _open_speculator(
    backend: Backend,
    open_draft: Callable[[], Backend] | None,
    options: SchedulerOptions,
    costs: StepCosts,
    clock: Callable[[], float],
) -> tuple[Speculator | None, str]:
    """And why the draft model is not used, where that is so."""
    off = options.speculation == "off"
    if off or not backend.abilities.cuts:
        why = "speculation is off" if off else "the model's cache cannot be cut"
        return None, "" if open_draft is None else f"The draft model is not used: {why}."
    draft_model = None
    if open_draft is not None:
        draft_model = DraftModel(open_draft())
        try:
            draft_model.check_same_tokenizer(backend)
        except BaseException:
            draft_model.close()
            raise
    return Speculator(options, costs, draft_model=draft_model, clock=clock), ""
