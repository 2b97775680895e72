"""``overspill-cloud serve`` with an ``echo`` that never guesses ahead: one token, one step, and
with ``--gather-s 0`` one frame, so that faults have something to hit."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.types.evidence import EvidenceBundle
from overspill.wire import convert, plaintext
from overspill.worker import WorkerEngine
from overspill_cloud import app, loop
from overspill_cloud.app import NodeOptions, parse_model
from overspill_cloud.cli_serve import serve_until_told
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.streams import StreamLimits

UNKNOWN_FIELD = b"\xba\x3e\x03new"
"""Field 999."""


def _in_a_worker(spec: app.ModelSpec, options: EngineOptions) -> WorkerEngine:
    return WorkerEngine(spec.source, name=spec.name, options=options, worker=app._WORKER)


def _know_more() -> None:
    """Add a field of a version to come to events under the seal, to evidence and to cards."""
    event, bundle, cards = (
        plaintext.event_to_bytes,
        convert.bundle_to_proto,
        convert.cards_to_bytes,
    )

    def newer_bundle(given: EvidenceBundle) -> object:
        made = bundle(given)
        made.MergeFromString(UNKNOWN_FIELD)
        return made

    plaintext.event_to_bytes = lambda *words: event(*words) + UNKNOWN_FIELD
    convert.bundle_to_proto = newer_bundle
    convert.cards_to_bytes = lambda models: cards(models) + UNKNOWN_FIELD


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
    given = parser.parse_args()
    if given.clock_offset_s:
        app.serve = partial(app.serve, clock=lambda: time.time() + given.clock_offset_s)
    if given.newer:
        _know_more()
    if given.worker:
        app._open = _in_a_worker
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
