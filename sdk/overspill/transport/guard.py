"""What keeps a client from making a bad moment worse: pure counting over a clock.

Adaptive throttling is Google's (Site Reliability Engineering, chapter 21, "Client-Side
Throttling"): a client that is refused much refuses itself with probability
``max(0, (requests - K * accepts) / (requests + 1))``. A circuit breaker stops asking who does not
answer at all. One budget bounds the second tries of all requests together.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """``retry_share`` second tries for each request, saved up to ``max_retries``."""

    throttle_k: float = 2.0
    throttle_window_s: float = 30.0
    throttle_from: int = 10
    """Fewer requests in the window say nothing."""
    probe_every_s: float = 1.0
    """However much was refused, one request in so long is let through to see."""
    open_after: int = 5
    """So many failures in a row, or four times as many refusals, open the circuit."""
    min_open_s: float = 1.0
    max_open_s: float = 4.0
    retry_share: float = 0.1
    max_retries: float = 10.0


class RetryBudget:
    """Tokens: a request earns a share of one, a second try spends one."""

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self._tokens = options.max_retries

    def earn(self) -> None:
        """A first try was made."""
        self._tokens = min(self._options.max_retries, self._tokens + self._options.retry_share)

    def spend(self) -> bool:
        """Whether a second try may be made now."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Throttle:
    """Requests and those that were accepted, over a sliding window. ``clock`` gives seconds."""

    def __init__(
        self,
        options: GuardOptions,
        clock: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._options = options
        self._clock = clock
        self._draw = draw
        self._requests: deque[float] = deque()
        self._accepts: deque[float] = deque()
        self._last_sent_s = float("-inf")

    @property
    def refusal_probability(self) -> float:
        """How likely the next request is refused here."""
        self._forget_old()
        requests, accepts = len(self._requests), len(self._accepts)
        if requests < self._options.throttle_from:
            return 0.0
        excess = requests - self._options.throttle_k * accepts
        return max(0.0, excess / (requests + 1))

    def allow(self) -> bool:
        """Whether to send. What is refused here counts as asked, too."""
        now = self._clock()
        refused = self._draw() < self.refusal_probability
        if refused and now - self._last_sent_s < self._options.probe_every_s:
            self._requests.append(now)
            return False
        self._last_sent_s = now
        return True

    def answered(self, *, accepted: bool) -> None:
        """The node took a request, or did not. Counted now and not when it was sent: many that
        were sent at one moment are no sign of anything."""
        now = self._clock()
        self._requests.append(now)
        if accepted:
            self._accepts.append(now)

    def reset(self) -> None:
        """The node is back: what it refused before says nothing any more."""
        self._requests.clear()
        self._accepts.clear()

    def _forget_old(self) -> None:
        oldest = self._clock() - self._options.throttle_window_s
        for times in (self._requests, self._accepts):
            while times and times[0] < oldest:
                times.popleft()


class CircuitBreaker:
    """Closed while it works; open after failures in a row; then one try at a time.

    The pause doubles from ``min_open_s`` to ``max_open_s``. ``clock`` gives seconds.
    """

    def __init__(self, options: GuardOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._weight = 0.0
        self._open_s = options.min_open_s
        self._until_s = float("-inf")
        self.is_open = False
        self.is_gone = False
        """Open, and what came last was no answer, rather than one that there is no room."""

    def allow(self) -> bool:
        """Whether to try now. When the pause is over, one caller in each pause may."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._until_s:
            return False
        self._until_s = now + self._open_s
        return True

    def succeeded(self) -> bool:
        """It works; True when the circuit was open until now."""
        was_open, self.is_open, self.is_gone = self.is_open, False, False
        self._weight = 0.0
        self._open_s = self._options.min_open_s
        return was_open

    def failed(self, *, refused: bool = False) -> None:
        """Nobody answered; or, ``refused``, somebody did, and had no room."""
        self._weight += 0.25 if refused else 1.0
        if self.is_open:
            self._open_s = min(self._open_s * 2, self._options.max_open_s)
        elif self._weight < self._options.open_after:
            return
        self._open(is_gone=not refused)

    def leaving(self) -> None:
        """It said that it ends: that is certain, and needs no second one."""
        self._open(is_gone=True)

    def _open(self, *, is_gone: bool) -> None:
        self.is_open, self.is_gone = True, is_gone
        self._until_s = self._clock() + self._open_s


class Guard:
    """The throttle and the breaker of one node."""

    def __init__(
        self,
        options: GuardOptions,
        clock: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._throttle = Throttle(options, clock, draw)
        self._breaker = CircuitBreaker(options, clock)

    @property
    def is_open(self) -> bool:
        """Whether the node is left alone for a while."""
        return self._breaker.is_open

    @property
    def is_gone(self) -> bool:
        """Whether that is since it did not answer; a node without room did."""
        return self._breaker.is_gone

    def allow(self) -> bool:
        """Whether a request may be sent."""
        return self._breaker.allow() and self._throttle.allow()

    def accepted(self) -> None:
        """The node took a request."""
        if self._breaker.succeeded():
            self._throttle.reset()
        self._throttle.answered(accepted=True)

    def refused(self) -> None:
        """The node had no room."""
        self._breaker.failed(refused=True)
        self._throttle.answered(accepted=False)

    def leaving(self) -> None:
        """The node takes nothing more, and will end."""
        self._breaker.leaving()

    def failed(self) -> None:
        """The node did not answer, or broke off."""
        self._breaker.failed()
        self._throttle.answered(accepted=False)
