"""What works here, for an app's support page: each thing tried by itself, nothing asked outside."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from overspill import Overspill, selftest
from overspill.config import load_settings
from overspill.errors import EngineError
from overspill.testing import FakeEngine


@pytest.fixture
def settings(tmp_path):
    environ = {"OVERSPILL_HOME": str(tmp_path), "OVERSPILL_MODEL": "echo"}
    return replace(load_settings(environ=environ), isolate=False)


def by_name(tried):
    return {check.name: check for check in tried.checks}


def test_all_that_is_here_works_and_the_rest_says_why_not(settings):
    tried = selftest(settings)
    assert tried.ok, tried
    found = by_name(tried)
    assert {name for name, check in found.items() if check.ok} >= {
        "system",
        "places",
        "crypto",
        "answer",
        "plan",
        "cancel",
        "receipts",
    }
    assert found["cloud"].ok is None
    assert found["cloud"].detail == "No cloud is set."
    assert json.loads(json.dumps(tried.as_dict()))["ok"] is True


def test_a_failure_is_told_with_its_mend_and_stops_nothing_else(settings):
    engine = FakeEngine(error=EngineError("It broke.", mend="Mend it."))
    with Overspill("t", settings=settings, device=engine) as ai:
        tried = ai.selftest()
    found = by_name(tried)
    assert not tried.ok
    assert (found["answer"].ok, found["answer"].detail) == (False, "It broke.")
    assert found["answer"].mend == "Mend it."
    assert found["plan"].ok


def test_a_client_that_cannot_be_opened_is_told_too(settings):
    tried = selftest(settings.with_model("nowhere/none.gguf"))
    assert not tried.ok
    assert "nowhere/none.gguf" in tried.checks[0].detail


def test_a_cloud_is_named_and_not_asked(settings):
    with Overspill("t", settings=settings.with_cloud("203.0.113.1:1"), device=FakeEngine()) as ai:
        assert "203.0.113.1:1 is set" in by_name(ai.selftest())["cloud"].detail
        assert ai._core._own._cloud.bytes_sent("any") == 0
