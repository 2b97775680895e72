"""`overspill bench`: measure this installation against its peers, with the samples to prove it."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overspill.config import load_settings
from overspill.errors import MissingExtra
from overspill.terminal import Verbs, print_document

if TYPE_CHECKING:
    from overspill.bench.suite import Bench, Entry

FAMILY = Path("examples/family")
MAKERS = Path("tests/trust/hardware/makers/__init__.py")
STDOUT = Path("-")
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the report to this file; - is stdout.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Three rounds: shows that it runs.")]
Only = Annotated[
    str, typer.Option(help="Benchmarks to run, by name or its beginning, between commas.")
]

app = typer.Typer(
    cls=Verbs,
    help="Measure against peers, in one run, alternating; --json keeps every sample.",
    no_args_is_help=True,
)


def register(parent: typer.Typer) -> None:
    """Add the group of this file."""
    parent.add_typer(app, name="bench")


@app.callback()
def _group(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for NAME.json and its plot, beside what --json says."),
    ] = None,
) -> None:
    context.obj = out


@app.command("engine")
def engine(
    context: typer.Context,
    json_file: JsonFile = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two rounds and short answers: shows that it runs.")
    ] = False,
    only: Only = "",
    llama_server: Annotated[Path | None, typer.Option(help="llama.cpp's llama-server.")] = None,
    llama_bench: Annotated[Path | None, typer.Option(help="llama.cpp's llama-bench.")] = None,
    llama_batched_bench: Annotated[
        Path | None, typer.Option(help="llama.cpp's llama-batched-bench.")
    ] = None,
    example_server: Annotated[
        Path | None, typer.Option(help="examples/server/server.py of llama-cpp-python's sdist.")
    ] = None,
    family: Annotated[
        Path, typer.Option(help="Folder of brook and river, for river's acceptance of drafts.")
    ] = FAMILY,
) -> int:
    """Engine and scheduler against llama.cpp's own programs and two Python servers.

    Models with random weights are made in the cache folder. A peer that is absent leaves its
    figures null, with the reason. Exit 0 also where a figure is missed: the report says so.
    """
    _require_bench()
    from overspill.bench.engine import ENTRIES
    from overspill.bench.peers import PeerPaths, find_peers
    from overspill.bench.suite import FULL, QUICK, Bench

    cache = load_settings().places.cache
    given = PeerPaths(llama_bench, llama_server, llama_batched_bench, example_server)
    bench = Bench(
        effort=QUICK if quick else FULL,
        peers=find_peers(given, cache),
        models=cache / "bench",
        family=family,
    )
    return _measure("engine", ENTRIES, only, bench, json_file, context.obj)


@app.command("trust")
def trust(
    context: typer.Context,
    json_file: JsonFile = None,
    quick: Quick = False,
    only: Only = "",
    makers: Annotated[
        Path, typer.Option(help="The look-alike vendors who make the evidence.")
    ] = MAKERS,
) -> int:
    """What proof and seal cost, beside the same signatures and ciphers by the library alone.

    Evidence is made on the spot by the tests' look-alike vendors; without a checkout what needs it
    is null, with the reason. No network. Exit 0 also where a figure is missed.
    """
    _require_bench()
    from overspill.bench.peers import PeerPaths
    from overspill.bench.suite import FULL, QUICK, Bench
    from overspill.bench.trust import entries

    bench = Bench(QUICK if quick else FULL, PeerPaths(), load_settings().places.cache)
    return _measure("trust", entries(makers), only, bench, json_file, context.obj)


@app.command("daemon")
def daemon(
    context: typer.Context,
    json_file: JsonFile = None,
    quick: Quick = False,
    only: Only = "",
) -> int:
    """What the daemon adds to the same answer in-process, what a plan takes, and a batch.

    With brook, which is always there, and for the batch a model made in the cache folder. No
    network. Exit 0 also where a figure is missed.
    """
    _require_bench()
    from overspill.bench.daemon import entries
    from overspill.bench.peers import PeerPaths
    from overspill.bench.suite import FULL, QUICK, Bench

    models = load_settings().places.cache / "bench"
    bench = Bench(QUICK if quick else FULL, PeerPaths(), models)
    return _measure("daemon", entries(), only, bench, json_file, context.obj)


def _require_bench() -> None:
    """Raises :class:`MissingExtra` where no engine is installed, and so no numpy."""
    if find_spec("numpy") is None:
        raise MissingExtra("A benchmark", "bench")


def _measure(
    kind: str,
    entries: Sequence[Entry],
    only: str,
    bench: Bench,
    json_file: Path | None,
    out: Path | None,
) -> int:
    """Run those of ``entries`` that ``only`` names and report on all of them."""
    from overspill.bench.suite import chosen_entries, run_suite

    chosen = chosen_entries(entries, [name for name in only.split(",") if name])
    files = report_files(kind, json_file, out)
    keep = functools.partial(write, files)
    report = asyncio.run(run_suite(kind, chosen, entries, bench, _say, keep))
    finish(report, files, json_file == STDOUT)
    return 0


def report_files(kind: str, json_file: Path | None, out: Path | None) -> list[Path]:
    """Where a report goes: the file that was named, and the folder that ``make bench`` names."""
    named = [json_file] if json_file and json_file != STDOUT else []
    return named + ([out / f"{kind}.json"] if out else [])


def write(files: Sequence[Path], report: Mapping[str, Any]) -> None:
    """The report so far: a run that is ended keeps what it measured."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_json(report), encoding="utf-8")


def finish(report: Mapping[str, Any], files: Sequence[Path], to_stdout: bool) -> None:
    """The whole report: a plot beside each file, and a table or the JSON on stdout."""
    write(files, report)
    for file in files:
        _plot(report, file.with_suffix(".png"))
    if to_stdout:
        print_document(report, indent=1)
    else:
        _print_table(report)


def _json(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def _plot(report: Mapping[str, Any], file: Path) -> None:
    from overspill.bench.plot import can_plot, draw

    if can_plot():
        draw(report, file)
    else:
        _say('No plot: pip install "overspill[plots]" brings matplotlib.')


def _print_table(report: Mapping[str, Any]) -> None:
    from overspill.bench.suite import NOT_CHOSEN

    chosen = [figure for figure in report["figures"] if figure.get("reason") != NOT_CHOSEN]
    width = max((len(figure["name"]) for figure in chosen), default=0)
    for figure in chosen:
        print(f"{figure['name']:<{width}}  {_in_words(figure)}")
    if left := len(report["figures"]) - len(chosen):
        print(f"{left} more figures belong to benchmarks that were not chosen.")
    if not report["full"]:
        print("A quick run shows that the benchmark works; its numbers are not to be quoted.")
    for warning in report["warnings"]:
        print(f"WARNING: {warning}")


def _in_words(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"not measured: {figure['reason']}"
    words = f"{figure['value']:.4g} {figure['unit']}"
    if figure["asked"] is None:
        return words
    sign = ">=" if figure["bound"] == "at_least" else "<="
    mark = "ok" if figure["ok"] else "MISSED"
    return f"{words} (asked {sign} {figure['asked']:g}) {mark}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
