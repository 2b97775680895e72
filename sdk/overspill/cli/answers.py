"""An answer as a terminal shows it: its text as it comes, then who gave it and what left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from overspill.types.chat import Request
from overspill.types.route import RouteDecision, RouteTaken

if TYPE_CHECKING:
    from overspill.sync import Overspill


@dataclass(slots=True)
class ShownAnswer:
    """What was printed so far; ``route`` None before the first piece."""

    pieces: list[str] = field(default_factory=list)
    route: RouteTaken | None = None
    ttft_s: float | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    @property
    def line(self) -> str:
        """``device: brook, 0.02 s to the first token, 0 bytes left this device``."""
        if self.route is None:
            return "no answer"
        ttft = "no text" if self.ttft_s is None else f"{self.ttft_s:.2f} s to the first token"
        left = f"{self.route.bytes_sent} bytes left this device"
        doubt = ", low confidence" if self.route.low_confidence else ""
        return f"{self.route.route.value}: {self.route.model}, {ttft}, {left}{doubt}"


def show(ai: Overspill, request: Request, shown: ShownAnswer) -> None:
    """Print an answer as it comes; ``shown`` has what was printed, also when this raises."""
    started = time.perf_counter()
    for chunk in ai.run_request(request):
        shown.route = chunk.route
        if chunk.text and shown.ttft_s is None:
            shown.ttft_s = time.perf_counter() - started
        print(chunk.text, end="", flush=True)
        shown.pieces.append(chunk.text)
        for call in chunk.tool_calls:
            print(f"{call.name}({call.arguments})")
    print()
    print(f"[{shown.line}]", file=sys.stderr)


def explain(decision: RouteDecision) -> None:
    """Each stage of a decision in a line of standard error."""
    for stage in decision.stages:
        numbers = ", ".join(f"{k}={v:g}" for k, v in stage.numbers.items())
        removed = " removes " + ", ".join(stage.removed) if stage.removed else ""
        detail = f" ({stage.detail})" if stage.detail else ""
        print(f"  stage {stage.stage}: {stage.code}{removed} {numbers}{detail}", file=sys.stderr)


def explain_checks(route: RouteTaken) -> None:
    """Each look of the monitor at the device's answer, in a line of standard error."""
    for check in route.monitor:
        at = "at the end" if check.check == "end" else f"after {check.tokens} tokens"
        gain = "" if check.gain is None else f" gain={check.gain:g} threshold={check.threshold:g}"
        print(f"  stage 5: {at}, {check.verdict}: {check.code}{gain}", file=sys.stderr)
