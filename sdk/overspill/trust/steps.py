"""Running checks under their step's number, and remembering how each went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from overspill.errors import EvidenceRejected
from overspill.types.evidence import VerificationStep

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Steps:
    """The steps of one verification. ``names`` maps each number to its name, in their order."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self.done: list[VerificationStep] = []

    def run(self, number: str, check: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The check's value; text, or its ``detail``, is the step's. A refusal is noted, then
        raised as one of this step: a parser that several steps share does not know its own."""
        try:
            value = check(*args, **kwargs)
        except EvidenceRejected as error:
            refusal = _located(error, number)
            self._add(number, False, refusal.message)
            if refusal is error:
                raise
            raise refusal from error
        self._add(number, True, value if isinstance(value, str) else getattr(value, "detail", ""))
        return value

    def skip(self, number: str, why: str) -> None:
        """Notes that a step was not run."""
        self._add(number, None, why)

    def note(self, rejection: EvidenceRejected) -> None:
        """Notes a refusal that was raised outside of :meth:`run`, under its own step."""
        is_noted = any(step.ok is False for step in self.done)
        if rejection.step in self._names and not is_noted:
            self._add(rejection.step, False, rejection.message)

    def with_rest(self) -> tuple[VerificationStep, ...]:
        """All steps in their order, those after a refusal as not run."""
        ran = {step.n: step for step in self.done}
        return tuple(
            ran.get(number) or VerificationStep(number, name, None)
            for number, name in self._names.items()
        )

    def _add(self, number: str, ok: bool | None, detail: str) -> None:
        self.done.append(VerificationStep(number, self._names[number], ok, detail))


def _located(error: EvidenceRejected, number: str) -> EvidenceRejected:
    if error.step == number or error.step.startswith(f"{number}."):
        return error
    return EvidenceRejected(
        error.reason, number, expected=error.expected, actual=error.actual, mend=error.mend
    )
