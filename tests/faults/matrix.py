"""What each row of the reliability matrix claims, and what is asked of it."""

from __future__ import annotations

from typing import Final

from overspill.bench.figures import Asked, FigureSpec, at_least, at_most

_CLAIMS: Final[tuple[tuple[str, str, str, Asked | None], ...]] = (
    ("R1.lost", "tokens", "tokens lost, doubled or reordered at 20 tokens/s a stream", at_most(0)),
    ("R1.added_p99_ms", "ms", "from the engine's token to its reader, p99", at_most(10)),
    ("R1.rss_growth", "share", "the node's memory, after minute 2", at_most(0.05)),
    ("R1.fd_growth", "files", "the node's open files", at_most(0)),
    ("R2.violations", "streams", "tokens lost or doubled when replicas are killed", at_most(0)),
    ("R2.complete", "share", "answers that came to their end", at_least(0.99)),
    ("R2.resume_p99_s", "s", "the longest silence of a stream that moved, p99", at_most(3)),
    ("R3.different", "streams", "transcripts that differ after cuts and resets", at_most(0)),
    ("R3.incomplete", "streams", "answers that did not come to their end", at_most(0)),
    ("R3.hit", "share", "faults that struck their stream under way", at_least(0.5)),
    ("R4.seen_s", "s", "of silence until its client does something about it", at_most(7)),
    ("R4.failover_s", "s", "silence when a node freezes or a link swallows all", at_most(10)),
    ("R4.hung", "streams", "answers that did not come to their end", at_most(0)),
    ("R5.free_s", "s", "until every slot answers again after the cancels", at_most(2)),
    (
        "R5.in_prefill",
        "share",
        "cancels that met a prompt that waits or is computed",
        at_least(0.4),
    ),
    ("R5.rss_growth_mb", "MB", "the node's memory, after the first hundredth", at_most(5)),
    ("R5.late_growth_mb", "MB", "the same after the first fifth, when it is warm", None),
    ("R6.goodput", "share", "answers a second at 4x load, of those at 1x", at_least(0.9)),
    ("R6.ttft_ratio", "ratio", "interactive TTFT p99 at 4x load, of that at 1x", at_most(2)),
    ("R6.shed_p99_ms", "ms", "until a refusal has arrived, p99", at_most(50)),
    ("R6.batch_wait_s", "s", "the longest time without a batch answer", at_most(30)),
    ("R7.itl_ratio", "ratio", "decoders' ITL p99 when a long prompt joins, of idle", at_most(3)),
    ("R7.ttft_steps", "steps", "a short prompt's TTFT behind it, in such steps", at_most(3)),
    ("R8.failed", "streams", "streams that failed in a rolling upgrade", at_most(0)),
    ("R8.violations", "streams", "tokens lost or doubled", at_most(0)),
    ("R8.bad_exits", "nodes", "nodes that did not exit with 0", at_most(0)),
    ("R9.accepted_twice", "requests", "duplicates that were accepted", at_most(0)),
    ("R9.refused", "requests", "valid requests that were refused", at_most(0)),
    ("R10.held", "tokens", "still set aside after leases expired", at_most(0)),
    ("R10.drift", "tokens", "between what quotas count and what the ledger has", at_most(0)),
    ("R11.untyped", "calls", "random bytes answered by anything but a typed code", at_most(0)),
    ("R11.over_1_s", "calls", "calls that took more than a second", at_most(0)),
    ("R12.others_p99", "ratio", "others' p99 gap beside slow readers, of that alone", at_most(1.1)),
    ("R12.buffer_kib", "KiB", "the most that waits in the node for one of them", at_most(256)),
    ("R13.failed", "streams", "calls that failed while certificates and keys change", at_most(0)),
    ("R13.refused_s", "s", "until a revoked device is refused", at_most(5)),
    ("R14.failed", "cases", "other versions of client, server and protobuf", at_most(0)),
    (
        "R15.not_serving_s",
        "s",
        "until health tells of a dead, stopped or wedged engine",
        at_most(5),
    ),
    ("R15.restarted_s", "s", "until the node serves again, without a request", None),
    ("R15.incomplete", "streams", "answers that did not go on elsewhere to their end", at_most(0)),
    ("R15.violations", "streams", "tokens lost or doubled", at_most(0)),
    ("R16.violations", "streams", "tokens lost or doubled in a fleet on Ray", at_most(0)),
    (
        "R16.complete",
        "share",
        "answers that came to their end beside kills",
        at_least(0.99),
    ),
    ("R16.resume_p99_s", "s", "the longest silence of a stream that moved, p99", at_most(3)),
    ("R16.replaced_s", "s", "until a killed node's place was taken", at_most(5)),
    ("R16.upgrade_failed", "streams", "streams that failed in a rolling upgrade", at_most(0)),
    ("R17.attempts", "ratio", "requests that reached a node that refuses all", at_most(1.1)),
    ("R17.recovered_s", "s", "until it is used again", at_most(10)),
    ("R18.violations", "streams", "tokens lost or doubled under random faults", at_most(0)),
    ("S1.added_p99_ms", "ms", "512 streams at 20 tokens/s: engine to reader, p99", at_most(10)),
    ("S1.aggregate", "share", "tokens that came, of those that the engine gives", at_least(0.95)),
    ("S1.lost", "tokens", "tokens lost, doubled or reordered", at_most(0)),
    ("S2.ttft_added_p50_ms", "ms", "TTFT over an engine that takes no time, p50", at_most(3)),
    ("S3.sealed_ratio", "ratio", "throughput, to that of the service unsealed", at_least(0.9)),
    ("S4.aggregate_ratio", "ratio", "16 streams served, to the engine alone", at_least(0.95)),
    ("S4.batch_ratio", "ratio", "the same in the batch lane", at_least(0.95)),
    ("R18.complete", "share", "answers that came to their end under random faults", None),
)
FIGURES: Final = {
    name: FigureSpec(f"soak.{name.lower()}", unit, about, asked)
    for name, unit, about, asked in _CLAIMS
}
