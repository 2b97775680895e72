"""A doctor asks an upstream what a start would ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overspill_cloud.app import NodeOptions
from overspill_cloud.ops.checks import Check, Wanted, look


def looked_at(folder: Path, upstream: Any, model: str, *weights: str) -> Check:
    options = NodeOptions((), f"unix:{folder}/n.sock", folder / "state")
    source = f"river=upstream:{upstream.address.base_url}#{model}"
    (found,) = (
        check for check in look(Wanted(options, (source,), weights)) if check.name == "model"
    )
    return found


def test_it_tells_what_answers(upstream: Any, tmp_path: Path) -> None:
    found = looked_at(tmp_path, upstream, "big")
    assert found.ok
    assert "upstream/" in found.detail
    assert f"context {upstream.context}" in found.detail


def test_a_model_that_it_does_not_serve_fails(upstream: Any, tmp_path: Path) -> None:
    found = looked_at(tmp_path, upstream, "small")
    assert found.ok is False
    assert "small" in found.detail
    assert "big" in found.mend


def test_weights_that_are_not_there_fail(upstream: Any, tmp_path: Path) -> None:
    found = looked_at(tmp_path, upstream, "big", f"river={tmp_path / 'none'}")
    assert found.ok is False
    assert str(tmp_path / "none") in found.detail
