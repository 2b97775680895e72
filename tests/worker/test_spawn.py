"""Children are started without a fork of a process that may hold gRPC's threads."""

from __future__ import annotations

import os
import subprocess

import pytest

from overspill.spawn import spawn_options
from overspill.worker import WorkerEngine
from overspill.worker import process as worker_process
from overspill_cloud.fleet import supervisor
from overspill_cloud.fleet.supervisor import FleetOptions, NodeProcess

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="Windows has no fork"),
]


@pytest.fixture
def as_on_macos(monkeypatch):
    """Where a fork would fail: what is started in spite of it was started by ``posix_spawn``."""

    def forked(*_):
        raise AssertionError("this would be a fork")

    monkeypatch.setattr(subprocess, "_fork_exec", forked)
    for module in (worker_process, supervisor):
        monkeypatch.setattr(module, "spawn_options", lambda: spawn_options("darwin"))


async def test_a_worker_is_spawned(as_on_macos):
    async with WorkerEngine("echo") as engine:
        assert (await engine.health()).ok


async def test_a_node_of_a_fleet_is_spawned(as_on_macos, tmp_path):
    arguments = ("--model", "echo=echo", "--state", str(tmp_path / "state"))
    node = await NodeProcess.start(FleetOptions(1, arguments, tmp_path / "addresses"))
    try:
        assert node.address
    finally:
        await node.stop(20.0)


def test_descriptors_are_closed_where_nothing_forks():
    assert spawn_options("linux") == spawn_options("win32") == {}
