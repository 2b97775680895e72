"""A node whose engine writes the time: what the service adds to a token is then seen at its reader.

Run as a program; serves over TLS until it is killed. The clock is the machine's monotonic one.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from pathlib import Path

from overspill.engines.base import Engine
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Finish, FinishReason, Request
from overspill.types.usage import Usage
from overspill_cloud import events, loop
from overspill_cloud.admission import Admission, Database
from overspill_cloud.attester.dev import UnsafeDevAttester
from overspill_cloud.certificates import TlsFiles
from overspill_cloud.keys import KeyRing
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.measure import measure_node
from overspill_cloud.models import ServedModel
from overspill_cloud.node import Node, NodeParts
from overspill_cloud.server import start_server
from overspill_cloud.store import Store


class StampEngine(Engine):
    """Tokens at ``tokens_per_s``, each the time at which it was made; 0 means as fast as taken,
    less than 0 one at each turn of the loop."""

    def __init__(self, tokens_per_s: float) -> None:
        self._pause_s = 1 / tokens_per_s if tokens_per_s > 0 else 0.0
        self._at_once = 1 if tokens_per_s < 0 else 64

    @property
    def card(self) -> ModelCard:
        return ModelCard(name="echo", context=1 << 20, runtime="stamp")

    async def count_prompt_tokens(self, request: Request) -> int:
        return 1

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        count = request.max_tokens or 100
        due = time.monotonic()
        if self._pause_s:  # streams are not in step, as those of many people are not
            due += random.random() * self._pause_s
        for token in range(count):
            if self._pause_s:
                due += self._pause_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            elif token % self._at_once == 0:
                await asyncio.sleep(0)
            yield Chunk(f"{time.monotonic():.6f} ", (token % 256,))
        usage = Usage(prompt_tokens=1, completion_tokens=count)
        yield Chunk(finish=Finish(FinishReason.LENGTH, usage, "echo"))


async def main(folder: Path, tokens_per_s: float) -> None:
    """Serve until killed."""
    state = folder / "state"
    engine = StampEngine(tokens_per_s)
    model = ServedModel("echo", engine, None)
    database = Database(Store(state))
    attester = UnsafeDevAttester.from_file(state / "dev.key")
    log = events.EventLog(time.time, (folder / "stamp.log").open("a"))
    keys = KeyRing(attester, measure_node([model], {}), [model], time.time, log)
    limits = AdmissionLimits(max_streams=2048, max_streams_per_device=2048)
    admission = Admission(database, time.time, limits)
    node = Node(NodeParts({"echo": model}, keys, admission, database, log, time.time))
    tls = TlsFiles(folder / "tls.crt", folder / "tls.key")
    _, listen = await start_server(node, log, "127.0.0.1:0", tls)
    print(json.dumps({"listen": listen, "dev_root": attester.root.hex()}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    seal = nullcontext()
    if "--unsealed" in sys.argv:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from faults.unsealed import unsealed

        seal = unsealed()
    with seal:
        loop.run(main(Path(sys.argv[1]), float(sys.argv[2])))
