"""``overspill-cloud serve`` with an ``echo`` that never guesses ahead: one token, one step, one
frame, so that faults have something to hit."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill_cloud import cli
from overspill_cloud.app import NodeOptions, parse_model
from overspill_cloud.limits import AdmissionLimits


def main() -> None:
    """The options are those of the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    for name in ("--state", "--tls-cert", "--tls-key"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--echo-delay-s", type=float, default=0.0)
    parser.add_argument("--drain-s", type=float, default=20.0)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--max-streams", type=int, default=256)
    given = parser.parse_args()
    options = NodeOptions(
        models=(parse_model("echo=echo"),),
        listen=given.listen,
        state=given.state,
        tls_certificate=given.tls_cert,
        tls_key=given.tls_key,
        drain_timeout_s=given.drain_s,
        engine=EngineOptions(
            max_sequences=given.slots,
            token_delay_s=given.echo_delay_s,
            default_max_tokens=4096,
            scheduler=SchedulerOptions(speculation="off"),
        ),
        admission=AdmissionLimits(
            max_streams=given.max_streams, max_streams_per_device=given.max_streams
        ),
    )
    asyncio.run(cli._serve(options, as_json=True, stop_with_stdin=False))


if __name__ == "__main__":
    main()
