"""Steps: what ran, what was skipped, and a refusal that is noted once, under its own number."""

from __future__ import annotations

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust.steps import Steps

NAMES = {"1": "first", "2": "second", "3": "third"}


def refusal(step: str) -> EvidenceRejected:
    return EvidenceRejected("reason", step, expected="this", actual="that", mend="Do so.")


def refuse(step: str):
    raise refusal(step)


def marks(steps: Steps) -> list[tuple[str, bool | None, str]]:
    return [(step.n, step.ok, step.detail) for step in steps.with_rest()]


def test_what_ran_and_what_did_not():
    steps = Steps(NAMES)
    assert steps.run("1", lambda: "as it should be") == "as it should be"
    steps.skip("2", "not asked for")
    assert marks(steps) == [("1", True, "as it should be"), ("2", None, "not asked for"),
                            ("3", None, "")]  # fmt: skip
    assert [step.name for step in steps.with_rest()] == ["first", "second", "third"]


def test_a_values_own_detail_is_the_steps():
    class Found:
        detail = "of a value"

    steps = Steps(NAMES)
    steps.run("1", Found)
    steps.run("2", lambda: 7)
    assert marks(steps)[:2] == [("1", True, "of a value"), ("2", True, "")]


@pytest.mark.parametrize(
    ("said", "raised"), [("2", "2"), ("2.4", "2.4"), ("9.1", "2"), ("21", "2")]
)
def test_a_refusal_belongs_to_the_step_that_ran(said, raised):
    steps = Steps(NAMES)
    with pytest.raises(EvidenceRejected) as caught:
        steps.run("2", refuse, said)
    error = caught.value
    assert (error.step, error.reason) == (raised, "reason")
    assert (error.expected, error.actual, error.mend) == ("this", "that", "Do so.")
    assert marks(steps)[1] == ("2", False, error.message)


def test_a_refusal_from_outside_is_noted_under_its_own_step():
    steps = Steps(NAMES)
    steps.run("1", lambda: "")
    steps.note(refusal("2"))
    assert marks(steps)[1] == ("2", False, refusal("2").message)
    steps.note(refusal("3"))
    assert marks(steps)[2][1] is None, "one refusal is enough"


def test_a_refusal_of_no_step_is_not_noted():
    steps = Steps(NAMES)
    steps.note(refusal("9"))
    assert [mark for _, mark, _ in marks(steps)] == [None] * 3
