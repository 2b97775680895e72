"""What a cancel leaves to be done, by a scheduler that obeys, and by one that is told late."""

import pytest

from overspill.bench.cancels import GROUP, _Stream, _Trial
from overspill.bench.ours import serving
from overspill.bench.throughput import plain_options
from overspill.bench.watched import Step, WatchedBackend, slot_of
from overspill.engines.backend import BatchRow
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.engines.scheduler import Scheduler

LATE_STEPS = 3
IN_PREFILL, IN_DECODE = 0, 1
"""Numbers of groups: every other one is cancelled before its first tokens."""


class LateEcho(EchoBackend):
    """Echo that lets a cancel wait until its sequence was computed in so many steps more.

    They are counted while ``has_left``, as the benchmark does: how many fit between a cancel and
    the moment its reader has left depends on how busy the machine is.
    """

    def __init__(self):
        # Two chunks of a prompt fill a step, as they do a runtime's: two others wait meanwhile.
        super().__init__(EchoOptions(max_sequences=GROUP, batch_tokens=512, token_delay_s=0.001))
        self.waiting = {}
        self.has_left = False

    def run(self, rows):
        logits = super().run(rows)
        if not self.has_left:
            return logits
        for generation, (cancel, steps) in list(self.waiting.items()):
            if any(row.sequence == generation.slot for row in rows):
                self.waiting[generation] = cancel, steps - 1
                if steps <= 1:
                    del self.waiting[generation]
                    cancel()
        return logits


async def count_late_steps(backend, number):
    watched = WatchedBackend(backend)
    options = plain_options(GROUP, None)
    engine = ScheduledEngine(lambda: watched, name="echo", runtime="echo", options=options)
    async with serving(engine) as target:
        watched.steps.clear()
        trial = _Trial(engine, watched, target)
        await trial.group(number)
    assert len(trial.freed_ms) == GROUP
    return trial.late_steps


@pytest.mark.anyio
@pytest.mark.parametrize("number", [IN_PREFILL, IN_DECODE])
async def test_a_slot_that_is_freed_late_is_counted_for_each_cancel(monkeypatch, number):
    backend, obeyed, left = LateEcho(), Scheduler.cancel, _Stream.leave

    def cancel(scheduler, generation):
        backend.has_left = False
        # One step more than it is to be late by: that under way may have begun before it left.
        backend.waiting[generation] = lambda: obeyed(scheduler, generation), LATE_STEPS + 1

    async def leave(stream):
        await left(stream)
        backend.has_left = True

    monkeypatch.setattr(Scheduler, "cancel", cancel)
    monkeypatch.setattr(_Stream, "leave", leave)
    late = await count_late_steps(backend, number)
    assert len(late) == GROUP
    assert min(late) >= LATE_STEPS


@pytest.mark.anyio
@pytest.mark.parametrize("number", [IN_PREFILL, IN_DECODE])
async def test_a_slot_that_is_freed_at_once_takes_part_in_no_step_or_one(number):
    late = await count_late_steps(LateEcho(), number)
    assert len(late) == GROUP
    assert max(late) <= 1


def test_a_prompt_s_slot_is_the_one_that_was_given_most_of_it():
    def step(*rows):
        return Step(0.0, 1.0, None, tuple(BatchRow(*row, wants_logits=False) for row in rows))

    steps = [step((2, 0, [7, 8]), (3, 0, [7])), step((2, 2, [9]), (3, 1, [5, 6]))]
    assert slot_of([7, 8, 9], steps) == 2
    assert slot_of([7, 5, 6], steps) == 3
    assert slot_of([1, 2, 3], steps) is None
