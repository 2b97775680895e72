"""What `overspill bench engine` measures: one entry a row, in the order of the report."""

from __future__ import annotations

from overspill.bench import adapters, cancels, drafts, footprint, latency, lookup, ours, throughput
from overspill.bench.suite import Entry

ENTRIES: tuple[Entry, ...] = (
    throughput.one_stream("stream1.q05", "q05", asked=0.97),
    throughput.sdk_stream("stream1.q05.sdk_stream", "q05", asked=0.95),
    throughput.one_stream("stream1.tiny", "tiny", asked=None, optional=True),
    throughput.one_stream("stream1.l1b", "l1b", asked=None, optional=True),
    throughput.many_streams(
        "streams16.q05", "q05", ours.in_process, "llama_server", throughput.llama_server, asked=1.05
    ),
    throughput.many_streams(
        "streams16.q05.grpc",
        "q05",
        ours.in_daemon,
        "llama_server",
        throughput.llama_server,
        asked=0.98,
    ),
    throughput.many_streams(
        "streams16.tiny",
        "tiny",
        ours.in_process,
        "llama_server",
        throughput.llama_server,
        asked=1.30,
    ),
    throughput.many_streams(
        "streams16.q05",
        "q05",
        ours.in_process,
        "example_server",
        throughput.example_server,
        asked=1.2,
    ),
    throughput.many_streams(
        "streams16.q05",
        "q05",
        ours.in_process,
        "library_server",
        throughput.library_server,
        asked=4.5,
    ),
    throughput.batched_bench("streams16.q05", "q05"),
    throughput.many_streams(
        "streams16.l1b",
        "l1b",
        ours.in_process,
        "llama_server",
        throughput.llama_server,
        asked=None,
        optional=True,
    ),
    throughput.overhead("overhead.q05", "q05"),
    throughput.overhead("overhead.tiny", "tiny"),
    latency.shared_prefix("prefix.q05", "q05", asked=1.0),
    latency.long_prompt_joins("join8k.q05", "q05", asked=3.0),
    latency.behind_long_prompt("behind8k.q05", "q05", asked=0.2),
    cancels.cancels("cancel", "tiny"),
    lookup.lookup("lookup.q05", "q05", copying=1.4, not_copying=0.97),
    lookup.river_acceptance("lookup.river"),
    drafts.client_draft("draft.q05", "q05", matching=0.65, missing=1.2),
    adapters.mixed_adapters("lora4.q05", "q05", asked=0.6, asked_wait=4),
    throughput.contended("contended.q05", "q05", asked=1.7),
    footprint.fit_estimate("fit.q05", "q05", asked=0.10),
    footprint.fit_estimate("fit.tiny", "tiny", asked=0.10),
    throughput.worker_throughput("worker.q05", "q05", asked=0.03),
    throughput.worker_ttft("worker.tiny", "tiny", asked_ms=0.3),
)
