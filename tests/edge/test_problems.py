"""Every error of the tree as an HTTP answer: its status, its code, and nothing of the inside."""

from __future__ import annotations

import pytest

from overspill import errors
from overspill_edge.problems import HttpProblem, problem_of

INSIDE = "secret /srv/model.gguf"
TOLD = [
    (errors.InvalidRequest("told", param="stop"), 400),
    (errors.UnsupportedOption("told", param="tools"), 400),
    (errors.ContextOverflow(90, 20, 100, "brook"), 400),
    (errors.PolicyRefusal("told"), 403),
    (errors.ConsentRequired("told"), 403),
    (errors.BudgetExhausted("told"), 403),
    (errors.ModelNotFound("told"), 404),
    (errors.TrustError("told"), 502),
    (errors.EvidenceRejected("stale", "7", expected="a", actual="b"), 502),
    (errors.StreamTruncated("told"), 502),
    (errors.ConnectFailed("told"), 502),
    (errors.StreamBroken("told", partial="so far"), 502),
    (errors.BusyError("told"), 503),
    (errors.DeadlineExceeded("told"), 504),
]
KEPT = [
    errors.OverspillError(INSIDE),
    errors.ConfigurationError(INSIDE),
    errors.MissingExtra(INSIDE, "llama"),
    errors.ModelInvalid(INSIDE),
    errors.DoesNotFit(INSIDE),
    errors.EngineError(INSIDE),
    errors.EngineDied(INSIDE),
    KeyError(INSIDE),
    ValueError(INSIDE),
]


def every_error(kind=errors.OverspillError):
    return {kind}.union(*(every_error(child) for child in kind.__subclasses__()))


@pytest.mark.parametrize(("error", "status"), TOLD, ids=lambda v: getattr(v, "code", ""))
def test_what_was_written_for_users_is_told_with_its_status(error, status):
    problem = problem_of(error)
    assert (problem.status, problem.code) == (status, error.code)
    assert problem.body()["error"]["message"].startswith(error.message)
    assert problem.body()["error"].get("partial", "") == error.partial


@pytest.mark.parametrize("error", KEPT, ids=lambda e: type(e).__name__)
def test_what_may_hold_the_inside_is_500_without_its_text(error):
    problem = problem_of(error)
    assert problem.status == 500
    assert INSIDE not in str(problem.body())
    assert "\n" not in problem.message


def test_a_trust_error_is_never_an_invitation_to_try_again():
    for kind in every_error(errors.TrustError):
        error = kind.__new__(kind)
        errors.OverspillError.__init__(error, "told")
        response = problem_of(error).response()
        assert response.status_code == 502
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers


@pytest.mark.parametrize(("after_s", "header"), [(None, "1"), (0.2, "1"), (2.3, "3"), (60.0, "60")])
def test_busy_says_when_to_come_back_in_whole_seconds(after_s, header):
    response = problem_of(errors.BusyError("Full.", retry_after_s=after_s)).response()
    assert response.headers["retry-after"] == header
    assert response.headers["x-should-retry"] == "true"


@pytest.mark.parametrize(
    ("after_s", "code", "again"),
    [
        (7200.0, "insufficient_quota", "false"),
        (None, "insufficient_quota", "false"),
        (1.0, "rate_limit_exceeded", "true"),
    ],
)
def test_a_spent_quota_is_429_in_both_dialects_words(after_s, code, again):
    spent = errors.BusyError("No tokens left.", retry_after_s=after_s, reason="QUOTA")
    problem = problem_of(spent)
    response = problem.response()
    assert (response.status_code, problem.body()["error"]["code"]) == (429, code)
    assert response.headers["x-should-retry"] == again
    assert problem.anthropic_body()["error"]["type"] == "rate_limit_error"


def test_an_overflow_brings_its_numbers():
    error = problem_of(errors.ContextOverflow(90, 20, 100)).body()["error"]
    assert (error["prompt_tokens"], error["max_tokens"], error["context"]) == (90, 20, 100)
    assert error["code"] == "context_length_exceeded"


def test_a_problem_passes_through():
    problem = HttpProblem(418, "teapot", "Short and stout.")
    assert problem_of(problem) is problem
