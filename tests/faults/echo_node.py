"""``overspill-cloud serve`` with an ``echo`` that never guesses ahead: one token, one step, and
with ``--gather-s 0`` one frame, so that faults have something to hit."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from functools import partial
from pathlib import Path

from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.types.evidence import EvidenceBundle
from overspill.wire import convert, plaintext
from overspill.wire.v1 import chat_pb2
from overspill.worker import WorkerEngine
from overspill.worker import process as worker_process
from overspill_cloud import app, keys, loop, node
from overspill_cloud.answer import LiveAnswer
from overspill_cloud.app import NodeOptions, parse_model
from overspill_cloud.cli_serve import serve_until_told
from overspill_cloud.keeper import Keeper, KeeperOptions
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.streams import StreamLimits

UNKNOWN_FIELD = b"\xba\x3e\x03new"
"""Field 999."""
UNKNOWN_KIND = b"\x7a\x03new"
"""An event that is field 15."""
LOOK_S = 0.02


def _in_a_worker(spec: app.ModelSpec, options: EngineOptions) -> WorkerEngine:
    return WorkerEngine(spec.source, name=spec.name, options=options, worker=app._WORKER)


class Novelty:
    """An event of a kind to come."""


class NewerAnswer(LiveAnswer):
    """Has something new to say at its beginning, and between its words."""

    def __init__(self, *parts: object, **named: object) -> None:
        super().__init__(*parts, **named)
        self._say_more()

    def _seal_said(self, mine: object) -> bool:
        said = super()._seal_said(mine)
        if said and self._finish is None:
            self._say_more()
        return said

    def _say_more(self) -> None:
        self.ring.append(self.asked.stream.event(Novelty()))


def _know_more() -> None:
    """Add a field of a version to come to events under the seal, to evidence and to cards; and
    events of a kind that no client knows."""
    event, bundle, cards = (
        plaintext.event_to_bytes,
        convert.bundle_to_proto,
        convert.cards_to_bytes,
    )

    def newer_bundle(given: EvidenceBundle) -> object:
        made = bundle(given)
        made.MergeFromString(UNKNOWN_FIELD)
        return made

    def newer_event(seq: int, given: plaintext.Event | Novelty) -> bytes:
        if isinstance(given, Novelty):
            return chat_pb2.ChatEvent(seq=seq).SerializeToString() + UNKNOWN_KIND
        return event(seq, given) + UNKNOWN_FIELD

    plaintext.event_to_bytes = newer_event
    node.LiveAnswer = NewerAnswer
    convert.bundle_to_proto = newer_bundle
    convert.cards_to_bytes = lambda models: cards(models) + UNKNOWN_FIELD


def _renewing(every_s: float) -> type[keys.KeyRing]:
    """Keys whose day is so short that each renewal makes new ones."""
    keys.KEY_LIFETIME_S = keys.CLIENT_ACCEPTS_S

    class Hasty(keys.KeyRing):
        async def renew_forever(self) -> None:
            while True:
                await asyncio.sleep(every_s)
                await self.renew()

    return Hasty


def _watching(file: Path) -> type[node.Node]:
    """A node that keeps in ``file`` the most bytes that ever waited for one reader."""

    class Watched(node.Node):
        def __init__(self, parts: node.NodeParts) -> None:
            super().__init__(parts)
            self._most = 0
            self._look()

        def _look(self) -> None:
            waiting = [one.run.queued_bytes for one in self._live._answers.values()]
            if max(waiting, default=0) > self._most:
                self._most = max(waiting)
                file.write_text(str(self._most))
            asyncio.get_running_loop().call_later(LOOK_S, self._look)

    return Watched


def _wedgeable(give_up_s: float) -> None:
    """Workers that SIGUSR1 wedges, and are ended when they did not move for so long."""
    script = str(Path(__file__).with_name("wedge_worker.py"))
    worker_process.python_command = lambda module: [sys.executable, "-P", script]
    app.Keeper = partial(Keeper, options=KeeperOptions(give_up_after_s=give_up_s))
    app._open = _in_a_worker


def main() -> None:
    """The options are those of the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    for name in ("--state", "--tls-cert", "--tls-key"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--echo-delay-s", type=float, default=0.0)
    parser.add_argument("--drain-s", type=float, default=20.0)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--model", default="echo=echo")
    parser.add_argument("--context", type=int)
    parser.add_argument("--max-streams", type=int, default=256)
    parser.add_argument("--attester", default="dev")
    parser.add_argument("--gather-s", type=float, default=StreamLimits().gather_s)
    parser.add_argument("--clock-offset-s", type=float, default=0.0)
    parser.add_argument("--newer", action="store_true", help="send what no client knows")
    parser.add_argument("--worker", action="store_true", help="in a process, as a model's file is")
    parser.add_argument("--give-up-s", type=float, default=KeeperOptions().give_up_after_s)
    parser.add_argument("--renew-s", type=float, help="new keys and evidence so often")
    parser.add_argument("--waiting", type=Path, help="told what waits for the slowest reader")
    given = parser.parse_args()
    if given.clock_offset_s:
        app.serve = partial(app.serve, clock=lambda: time.time() + given.clock_offset_s)
    if given.newer:
        _know_more()
    if given.renew_s:
        app.KeyRing = _renewing(given.renew_s)
    if given.waiting:
        app.Node = _watching(given.waiting)
    if given.worker:
        _wedgeable(given.give_up_s)
    options = NodeOptions(
        models=(parse_model(given.model),),
        listen=given.listen,
        attester=given.attester,
        state=given.state,
        tls_certificate=given.tls_cert,
        tls_key=given.tls_key,
        drain_timeout_s=given.drain_s,
        streams=StreamLimits(gather_s=given.gather_s),
        engine=EngineOptions(
            max_sequences=given.slots,
            context_tokens=given.context,
            token_delay_s=given.echo_delay_s,
            default_max_tokens=4096,
            scheduler=SchedulerOptions(speculation="off"),
        ),
        admission=AdmissionLimits(
            max_streams=given.max_streams, max_streams_per_device=given.max_streams
        ),
    )
    loop.run(serve_until_told(options, as_json=True, stop_with_stdin=False))


if __name__ == "__main__":
    main()
