"""A node on a link of its own, which is taken down: no reset comes and no word, as from a pulled
cable. The answer is whole all the same, here or at the other node."""

from __future__ import annotations

import pytest

pytest.importorskip("sqlalchemy")

from faults import namespace
from faults.nodes import running
from faults.rows_road import link_down_once

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not namespace.is_possible(), reason=namespace.MISSING),
]


@pytest.fixture
def link():
    try:
        with namespace.linked_namespace() as made:
            yield made
    except OSError as error:
        pytest.skip(f"{namespace.MISSING}: {error}")


async def test_a_link_that_goes_and_comes_loses_no_token(link, tmp_path):
    with running(tmp_path, 1, "--echo-delay-s", "0.005", behind=link) as fleet:
        await fleet.enrol()
        history = await link_down_once(fleet, link, 1)
    assert history.is_complete, history.violation or history.error
    assert not history.violation


async def test_a_link_that_is_gone_moves_its_streams_to_the_other_node(link, tmp_path):
    with running(tmp_path, 2, "--echo-delay-s", "0.02", behind=link) as fleet:
        await fleet.enrol()
        history = await link_down_once(fleet, link, 1, comes_back=False, idle_timeout_s=1.5)
    assert history.is_complete, history.violation or history.error
    assert not history.violation
