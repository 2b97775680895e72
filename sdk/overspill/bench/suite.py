"""How a suite of benchmarks is run: what each entry gets, what it owes, and the report."""

from __future__ import annotations

import asyncio
import datetime
import statistics
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from overspill._version import __version__
from overspill.bench import machine
from overspill.bench.figures import Figure, FigureSpec
from overspill.bench.models import made_adapter, made_model
from overspill.bench.peers import PeerPaths, need
from overspill.bench.rounds import Samples, Side, alternate
from overspill.bench.stats import spread
from overspill.errors import MissingExtra, OverspillError, UsageError

NOT_CHOSEN = "not chosen for this run"
PACKAGES = ("llama-cpp-python", "numpy", "grpcio", "protobuf")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. Figures are asked of ``FULL``; less effort shows that it runs.

    ``rounds`` is how often each side is measured, in turn; ``short_rounds`` the same for samples
    that take milliseconds. ``window_s`` is how long decoders run alone before a prompt joins.
    """

    rounds: int = 5
    short_rounds: int = 15
    warmups: int = 1
    settle_s: float = 2.5
    streams: int = 16
    prompt_tokens: int = 64
    answer_tokens: int = 128
    system_tokens: int = 1000
    decoders: int = 8
    long_prompt_tokens: int = 8000
    window_s: float = 5.0
    cancels: int = 10_000
    ttft_requests: int = 20


FULL = Effort()
QUICK = Effort(
    rounds=2,
    short_rounds=3,
    settle_s=0.3,
    answer_tokens=32,
    long_prompt_tokens=2000,
    window_s=1.0,
    cancels=200,
    ttft_requests=5,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What an entry works with.

    ``models`` is the folder of made models; ``stand_ins`` maps a shape to another that is used in
    its place (tests put the smallest). ``family`` is the folder of brook and river, where it is.
    """

    effort: Effort
    peers: PeerPaths
    models: Path
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    family: Path | None = None

    async def model(self, name: str) -> Path:
        """The file of a shape, made now if it isn't there: a GGUF, as all that is compared is.

        Raises :class:`MissingExtra` without llama.cpp, on Apple silicon too, where MLX would run.
        """
        if find_spec("llama_cpp") is None:
            raise MissingExtra("This figure, which is llama.cpp's (MLX is not measured),", "bench")
        shape = self.stand_ins.get(name, name)
        return await asyncio.to_thread(made_model, shape, self.models)

    async def adapter(self, name: str, seed: int) -> Path:
        """A LoRA adapter for that shape."""
        shape = self.stand_ins.get(name, name)
        return await asyncio.to_thread(made_adapter, shape, self.models, seed=seed)

    def peer(self, name: str) -> Path:
        """A peer's program. Raises ``ConfigurationError`` where it is absent."""
        return need(self.peers, name)

    async def alternate(self, *sides: Side, rounds: int | None = None) -> list[Samples]:
        """The sides in turn, as often as the effort says."""
        return await alternate(
            *sides,
            rounds=rounds or self.effort.rounds,
            warmups=self.effort.warmups,
            settle_s=self.effort.settle_s,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """Values by figure name, and the samples they came from; ``reasons`` for what has no value."""

    values: Mapping[str, float]
    samples: Sequence[Samples] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One benchmark: a name, the figures it gives, and how they are measured.

    ``run`` raises :class:`OverspillError` where it cannot measure: its figures are then null, with
    that as the reason. ``optional`` entries run only when they are named.
    """

    name: str
    figures: tuple[FigureSpec, ...]
    run: Callable[[Bench], Awaitable[Outcome]]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """An entry and what came of it."""

    entry: Entry
    figures: tuple[Figure, ...]
    samples: tuple[Samples, ...]
    took_s: float


Progress = Callable[[str], None]


def chosen_entries(entries: Sequence[Entry], only: Sequence[str]) -> list[Entry]:
    """Those named, by an entry's name or the beginning of one up to a dot; else all but the
    optional ones. Raises :class:`UsageError` for a name that is none."""
    if not only:
        return [entry for entry in entries if not entry.optional]
    for name in only:
        if not any(_is_named(entry, name) for entry in entries):
            known = ", ".join(entry.name for entry in entries)
            raise UsageError(f"There is no benchmark '{name}'.", mend=f"Known: {known}.")
    return [entry for entry in entries if any(_is_named(entry, name) for name in only)]


def _is_named(entry: Entry, name: str) -> bool:
    return entry.name == name or entry.name.startswith(f"{name}.")


async def run_entry(entry: Entry, bench: Bench) -> Result:
    """Run one entry; what it cannot measure is null with the reason, never left out."""
    started_s = asyncio.get_running_loop().time()
    try:
        outcome = await entry.run(bench)
    except OverspillError as error:
        reason = str(error)
        outcome = Outcome({}, reasons={spec.name: reason for spec in entry.figures})
    took_s = asyncio.get_running_loop().time() - started_s
    figures = tuple(_figure(spec, outcome) for spec in entry.figures)
    return Result(entry, figures, tuple(outcome.samples), took_s)


def _figure(spec: FigureSpec, outcome: Outcome) -> Figure:
    if spec.name in outcome.values:
        return spec.measured(outcome.values[spec.name])
    return spec.missing(outcome.reasons.get(spec.name, "its entry gave no value"))


async def run_suite(
    kind: str,
    entries: Sequence[Entry],
    all_entries: Sequence[Entry],
    bench: Bench,
    progress: Progress = lambda line: None,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Run ``entries`` and return the whole report; the others of ``all_entries`` are null in it.

    ``keep`` gets the report as it stands after each entry: a run takes long, and may be ended.
    """
    log = RunLog(kind, all_entries, bench.effort)
    report = log.report(entries)
    for number, entry in enumerate(entries, 1):
        progress(f"[{number}/{len(entries)}] {entry.name}")
        log.results.append(await run_entry(entry, bench))
        report = log.report(entries[number:])
        keep(report)
    return report


class RunLog:
    """What came of a run so far, and the machine that it ran on."""

    def __init__(self, kind: str, all_entries: Sequence[Entry], effort: Effort) -> None:
        self._kind, self._all_entries, self._effort = kind, all_entries, effort
        self._load_before = machine.load_average()
        self._watch = machine.OthersWatch()
        self._started = datetime.datetime.now(datetime.UTC)
        self.results: list[Result] = []

    def report(self, still_to_come: Sequence[Entry]) -> dict[str, Any]:
        """The JSON document; what is still to come, or was not chosen, is null in it."""
        cpus = machine.usable_cpus()
        others = self._watch.share(cpus)
        warnings = (
            machine.busy_warning(self._load_before, cpus),
            machine.others_warning(others),
            f"The run ended {len(still_to_come)} entries too early." if still_to_come else None,
        )
        return {
            "benchmark": self._kind,
            "overspill": __version__,
            "started": self._started.isoformat(timespec="seconds"),
            "full": self._effort == FULL,
            "effort": asdict(self._effort),
            "machine": {
                **asdict(machine.facts()),
                "load_before": self._load_before,
                "load_after": machine.load_average(),
                "others_cpu_share": others,
            },
            "packages": _versions(),
            "warnings": [warning for warning in warnings if warning],
            "figures": [figure.as_dict() for figure in self._figures(still_to_come)],
            "runs": [_run(result) for result in self.results],
        }

    def _figures(self, still_to_come: Sequence[Entry]) -> Iterator[Figure]:
        results = {result.entry.name: result.figures for result in self.results}
        to_come = {entry.name for entry in still_to_come}
        for entry in self._all_entries:
            why = "the run ended before it" if entry.name in to_come else NOT_CHOSEN
            missing = tuple(spec.missing(why) for spec in entry.figures)
            yield from results.get(entry.name, missing)


def _versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _run(result: Result) -> dict[str, Any]:
    return {
        "entry": result.entry.name,
        "took_s": round(result.took_s, 3),
        "sides": [
            {
                "side": s.side,
                "unit": s.unit,
                "samples": list(s.values),
                "median": statistics.median(s.values),
                "spread": spread(s.values),
                "detail": dict(s.detail),
            }
            for s in result.samples
            if s.values
        ],
    }
