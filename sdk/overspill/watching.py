"""Holds a device's answer back until the monitor has seen enough of it.

A route is final before an app sees the first piece. So what the monitor may still throw away is
kept here, at most ``hold_tokens`` of it, and a tool call until it is whole: a piece of one is of
use to nobody. Where nothing may leave nothing is held back, and the answer is only judged.
"""

from __future__ import annotations

from overspill.routing.monitor import Monitor, Progress
from overspill.types.chat import Chunk, TokenSignal, ToolCall
from overspill.types.route import MonitorCheck, Verdict
from overspill.types.usage import Usage

_NOBODY_WAITS = (Verdict.SHOW, Verdict.DOUBT)


class Escalated(Exception):
    """What the device wrote is to be thrown away; ``watcher`` knows why."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__("escalated")
        self.watcher = watcher


class Watcher:
    """One answer under its monitor. Once ``escalates`` is true nothing more is to be shown."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._signals: list[TokenSignal] = []
        self._calls: list[ToolCall] = []
        self._calls_begun = 0
        self._held: list[Chunk] | None = [] if monitor.may_leave else None
        self._usage: Usage | None = None
        self._seen_tokens = -1
        self.checks: list[MonitorCheck] = []

    @property
    def escalates(self) -> bool:
        """Whether another route is to answer."""
        return bool(self.checks) and self.checks[-1].verdict is Verdict.ESCALATE

    @property
    def doubts(self) -> bool:
        """Whether the answer that was shown is likely wrong."""
        return bool(self.checks) and self.checks[-1].verdict is Verdict.DOUBT

    @property
    def text(self) -> str:
        """All that was written, seen or not."""
        return "".join(self._text)

    @property
    def draft(self) -> str:
        """What the next engine may try as a draft: nothing of an answer that is plainly at fault,
        nor of one whose text is not all of it."""
        last = self.checks[-1] if self.checks else None
        if last is None or last.code in last.contributions or self._calls_begun:
            return ""
        return self.text

    def usage(self, prompt_tokens: int) -> Usage:
        """What the answer took so far; its engine's own count where it ended."""
        return self._usage or Usage(prompt_tokens, len(self._token_ids))

    def take(self, chunk: Chunk) -> list[Chunk]:
        """The chunks that may be shown now, in order."""
        self._grow(chunk)
        ended = chunk.finish is not None
        now = len(self._token_ids)
        due = self._monitor.due(self._seen_tokens, now, ended=ended)
        self._seen_tokens = max(now, self._seen_tokens)
        if self._held is None:
            self._judge(due, due, ended=ended)
            return [chunk]
        self._held.append(chunk)
        # Between two checks a text may turn out to be a refusal, or to be none.
        self._judge(due or self._latest, due, ended=ended)
        if self.escalates or not self._may_show(ended=ended):
            return []
        released, self._held = self._held, None
        return released

    def _grow(self, chunk: Chunk) -> None:
        self._text.append(chunk.text)
        self._token_ids += chunk.token_ids
        self._signals += chunk.signals
        self._calls += chunk.tool_calls
        begun = (delta.index + 1 for delta in chunk.tool_call_deltas)
        self._calls_begun = max(self._calls_begun, len(self._calls), *begun, 0)
        if chunk.finish is not None:
            self._usage = chunk.finish.usage

    @property
    def _latest(self) -> tuple[str, ...]:
        return (self.checks[-1].check,) if self.checks else ()

    @property
    def _call_is_open(self) -> bool:
        return self._calls_begun > len(self._calls)

    def _judge(self, names: tuple[str, ...], due: tuple[str, ...], *, ended: bool) -> None:
        if not names:
            return
        progress = Progress(
            self.text,
            tuple(self._token_ids),
            tuple(self._signals),
            tuple(self._calls),
            call_is_open=self._call_is_open,
            is_whole=ended,
        )
        for name in names:
            check = self._monitor.look(progress, name, shown=self._held is None)
            if name in due or check.verdict is not Verdict.GO_ON:
                self.checks.append(check)
            if check.verdict is Verdict.ESCALATE:
                return

    def _may_show(self, *, ended: bool) -> bool:
        if ended:
            return True
        if self._call_is_open:
            return False
        if self.checks and self.checks[-1].verdict in _NOBODY_WAITS:
            return True
        return len(self._token_ids) >= self._monitor.hold_tokens
