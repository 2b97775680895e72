"""`overspill eval run`: a set of prompts through real engines, one logged line a prompt.

1. Prompts that the log has a line for are left out (``--resume``).
2. ``streams`` prompts are asked at once: the engine batches them.
3. An answer is graded where the set expects one, and its line is appended.
What one prompt's own refusal is goes into its line; what would end all others ends the run, and the
log can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio

from overspill.errors import (
    BusyError,
    DoesNotFit,
    InvalidRequest,
    OutputInvalid,
    OverspillError,
    PolicyRefusal,
    UsageError,
)
from overspill.evals.grade import gradable
from overspill.evals.players import Place, Played, Player
from overspill.evals.prompt_set import Prompt
from overspill.evals.run_log import RunLog
from overspill.types.chat import Privacy

_OWN = (InvalidRequest, DoesNotFit, PolicyRefusal, OutputInvalid)
_PATIENCE = 30
"""So often a prompt is asked again while there is no room, after as long as the busy one says."""
_WAIT_S = 1.0
Tell = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """``max_tokens`` bounds an answer whose prompt has no bound of its own."""

    place: Place = "device"
    streams: int = 16
    max_tokens: int = 256
    privacy: Privacy = Privacy.ANY


@dataclass(frozen=True, slots=True)
class Progress:
    """``right`` of the ``graded`` among ``done`` of ``total`` prompts."""

    done: int
    total: int
    graded: int
    right: int

    def after(self, line: Mapping[str, Any]) -> Progress:
        """One line later."""
        graded = line.get("correct") is not None
        return replace(
            self,
            done=self.done + 1,
            graded=self.graded + graded,
            right=self.right + (line.get("correct") is True),
        )


async def run_prompts(
    prompts: Sequence[Prompt], player: Player, log: RunLog, options: RunOptions, tell: Tell
) -> Progress:
    """Ask what has no line yet. Raises the error that ended the run; what is written stays.

    Raises ``UsageError`` where the log is of other prompts or of another route.
    """
    _check_same(prompts, log, options.place)
    written = {str(line["id"]) for line in log.lines}
    left = iter([prompt for prompt in prompts if prompt.id not in written])
    now = progress(log, len(prompts))
    failures: list[OverspillError] = []
    async with anyio.create_task_group() as group:

        async def stream() -> None:
            nonlocal now
            try:
                for prompt in left:
                    line = await _ask(prompt, player, options)
                    log.append(line)
                    now = now.after(line)
                    tell(now)
            except OverspillError as error:
                failures.append(error)
                group.cancel_scope.cancel()

        for _ in range(options.streams):
            group.start_soon(stream)
    if failures:
        raise failures[0]
    return now


def progress(log: RunLog, total: int) -> Progress:
    """How far a log is."""
    graded = [line["correct"] for line in log.lines if line.get("correct") is not None]
    return Progress(len(log.lines), total, len(graded), sum(graded))


def _check_same(prompts: Sequence[Prompt], log: RunLog, place: Place) -> None:
    known = {prompt.id: prompt for prompt in prompts}
    for line in log.lines:
        prompt = known.get(str(line["id"]))
        if prompt is None or prompt.sha256 != line.get("sha256"):
            raise UsageError(
                f"{log.path} is of other prompts: '{line['id']}' is not among these, or says "
                "something else here.",
                mend="Give the same prompts, or name another file.",
            )
        if line.get("asked") != place:
            raise UsageError(
                f"{log.path} was written with --route {line.get('asked')}.",
                mend="Use the same route, or name another file.",
            )


async def _ask(prompt: Prompt, player: Player, options: RunOptions) -> dict[str, Any]:
    request = prompt.request(privacy=options.privacy, max_tokens=options.max_tokens)
    line = {"id": prompt.id, "sha256": prompt.sha256, **prompt.about, "asked": options.place}
    for last in _tries():
        try:
            return line | _answered(prompt, await player.answer(request))
        except BusyError as error:
            if last:
                raise
            await anyio.sleep(error.retry_after_s or _WAIT_S)
        except _OWN as error:
            if isinstance(error, InvalidRequest) and error.param == "watch":
                raise  # the same for all of them
            return line | _refused(prompt, error)
    raise AssertionError("the last try returns or raises")


def _tries() -> Iterator[bool]:
    """Whether it is the last, for each try."""
    return (n == _PATIENCE for n in range(_PATIENCE + 1))


def _answered(prompt: Prompt, played: Played) -> dict[str, Any]:
    answer = gradable(played.text, played.tool_calls)
    usage, card = played.usage, played.card
    line = {
        "answer": answer,
        "correct": prompt.is_right(answer),
        "route": "device" if played.route is None else played.route.route.value,
        "model": card.name,
        "quantization": card.quantization,
        "runtime": card.runtime,
        "model_sha256": card.sha256,
        "finish_reason": played.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "ttft_s": _rounded(played.ttft_s),
        "total_s": _rounded(played.total_s),
        "queue_s": _rounded(usage.queue_s),
        "tokens_per_s": _rounded(usage.decode_tokens_per_s),
        "confidence": _rounded(played.confidence),
        "signals": played.signals,
        "error": None,
    }
    if played.route is None:
        return line
    decision = played.route.decision
    return line | {
        "reason": played.route.reason.value,
        "changes": list(played.route.changes),
        "bytes_sent": played.route.bytes_sent,
        "gain": decision and _rounded(sum(decision.contributions.values())),
        "threshold": decision and decision.threshold,
        "policy_sha256": decision and decision.policy_sha256,
    }


def _refused(prompt: Prompt, error: OverspillError) -> dict[str, Any]:
    """A prompt without an answer: wrong where one was expected."""
    return {
        "answer": None,
        "correct": None if prompt.grade is None else False,
        "route": "refused",
        "model": None,
        "error": {"code": error.code, "message": error.message},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
