"""What answers took is not lost while it cannot be written."""

from __future__ import annotations

import pytest

from overspill.errors import ConfigurationError
from overspill.state import spending
from overspill.state.spending import SpendingStore, Spent


def _spent(cost):
    return Spent(1, "app", "cloud", "river", "stop", True, 10, 5, cost)


def test_what_cannot_be_written_is_kept_until_it_can(tmp_path):
    path = tmp_path / "spending.sqlite"
    path.mkdir()  # in the way
    store = SpendingStore(path)
    with pytest.raises(ConfigurationError, match=r"spending\.sqlite"):
        store.add(_spent(0.5))
    path.rmdir()
    store.add(_spent(0.25))
    assert sum(one.cost for one in store.sums()) == 0.75


def test_what_is_kept_back_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(spending, "KEPT_AT_MOST", 8)
    path = tmp_path / "spending.sqlite"
    path.mkdir()
    store = SpendingStore(path)
    for _ in range(20):
        with pytest.raises(ConfigurationError):
            store.add(_spent(0.5))
    path.rmdir()
    assert [one.tries for one in store.sums()] == [8]
