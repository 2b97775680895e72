"""A real node that serves `echo` as river, and settings for a client of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from overspill.config import Settings, load_settings
from overspill.trust.template import dev_policy
from overspill.types.chat import Privacy
from overspill_cloud.app import ModelSpec, NodeOptions, serve
from overspill_cloud.store import Store


@dataclass(frozen=True)
class Cloud:
    """A node in this process, on a Unix socket, and a client's settings for it."""

    settings: Settings
    state: Path

    def code(self) -> str:
        """A one-time enrolment code."""
        store = Store(self.state)
        try:
            return store.new_code(1 << 40)
        finally:
            store.close()


@pytest.fixture
def cloud_at(tmp_path):
    """``async with cloud_at() as cloud``: the node serves inside the block."""

    @asynccontextmanager
    async def open_cloud(source="echo", mmproj=None, prices=(0.0, 0.0)) -> AsyncGenerator[Cloud]:
        state = tmp_path / "node"
        spec = ModelSpec("river", source, mmproj=mmproj, prices_per_mtok=prices)
        options = NodeOptions(models=(spec,), listen=f"unix:{tmp_path}/n.sock", state=state)
        async with serve(options) as serving:
            policy = tmp_path / "trust.toml"
            root, digest = bytes.fromhex(serving.dev_root), serving.models["river"].sha256
            text = dev_policy(root, {"river": digest})
            if mmproj is not None:
                projector = serving.models["river"].adapters["mmproj"].sha256.hex()
                listed = f'[reference]\nadapters = {{ "river/mmproj" = "{projector}" }}'
                text = text.replace("[reference]", listed)
            policy.write_text(text)
            settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path / "device")})
            routing = tmp_path / "routing.toml"
            routing.write_text('version = "stay where it can be done"\nthreshold = 1.0\n')
            settings = replace(
                settings, privacy=Privacy.ANY, device_key="file", routing_policy=routing
            )
            yield Cloud(settings.with_cloud(serving.listen, trust_policy=policy), state)

    return open_cloud
