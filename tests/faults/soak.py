"""The reliability matrix, row by row: ``make soak ARGS="[--short] [--only R1,R7] [--json FILE]"``.

Writes build/soak.json (or FILE) with one figure for each claim; what was not run is there with its
reason. Each row has a process of its own and a limit, and the file is written after each: a row
that hangs, or takes its process with it, ends no other. Exit 1 when a figure misses what is asked,
of the short forms one that counts, and when a whole run has no figure where one is asked, unless
an optional piece (Ray, an extra) is missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults import (
    rows_engine,
    rows_fleet,
    rows_fuzz,
    rows_load,
    rows_ray,
    rows_road,
    rows_service,
    rows_state,
    rows_versions,
)
from faults.matrix import FIGURES
from faults.scale import CannotRun, Measured, NotInstalled, Scale

from overspill import event_loop
from overspill.bench.figures import Figure, FigureSpec

ROWS: dict[str, Callable[[Scale, Path], Awaitable[Measured]]] = {
    "R1": rows_load.r1,
    "R2": rows_fleet.r2,
    "R3": rows_road.r3,
    "R4": rows_road.r4,
    "R5": rows_load.r5,
    "R6": rows_load.r6,
    "R7": rows_engine.r7,
    "R8": rows_fleet.r8,
    "R9": rows_state.r9,
    "R10": rows_state.r10,
    "R11": rows_fuzz.r11,
    "R12": rows_road.r12,
    "R13": rows_fleet.r13,
    "R14": rows_versions.r14,
    "R15": rows_engine.r15,
    "R16": rows_ray.r16,
    "R17": rows_load.r17,
    "R18": rows_road.r18,
    "S1": rows_load.s1,
    "S2": rows_load.s2,
    "S3": rows_service.s3,
    "S4": rows_service.s4,
}
COUNTED = ("tokens", "streams", "calls", "nodes", "requests")
NEVER = 1e9
"""What never came, where a time is asked."""
FAILED, NOT_HERE, NOT_ASKED = "the row failed", "an optional piece is missing", "not asked for"
"""Why a figure is not there. In a whole run any other reason is a failure too."""
LIMIT_S, SHORT_LIMIT_S = 1200.0, 240.0
"""So long a row may take, whole and short."""


def specs_of(row: str) -> dict[str, FigureSpec]:
    """What a row claims."""
    return {name: spec for name, spec in FIGURES.items() if name.startswith(f"{row}.")}


def run_row(row: str, scale: Scale) -> list[Figure]:
    """One row's figures; a row that fails has none, and says why."""
    specs = specs_of(row)
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix=f"soak-{row}-") as folder:
            measured = event_loop.run(ROWS[row](scale, Path(folder)))
    except NotInstalled as reason:
        return [spec.missing(f"{NOT_HERE}: {reason}") for spec in specs.values()]
    except CannotRun as reason:
        return [spec.missing(str(reason)) for spec in specs.values()]
    except Exception as error:
        logging.exception("%s failed", row)
        return [spec.missing(f"{FAILED}: {error!r}") for spec in specs.values()]
    print(f"{row}: {time.monotonic() - begun:.1f} s", flush=True)
    return [
        spec.measured(measured[name.partition(".")[2]])
        if math.isfinite(measured[name.partition(".")[2]])
        else spec.measured(NEVER)
        for name, spec in specs.items()
    ]


def run_apart(row: str, command: Sequence[str], told: Path, limit_s: float) -> list[Figure]:
    """The same by a process of its own, ``command``, which writes its figures to ``told``; what is
    left of it, nodes and workers, ends with it."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(limit_s)
        why = f"its process ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        why = f"it was not over after {limit_s:g} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    specs = specs_of(row).values()
    try:
        found = {one["name"]: one for one in json.loads(told.read_text())["figures"]}
    except (OSError, ValueError):
        print(f"{row}: {why}", flush=True)
        return [spec.missing(f"{FAILED}: {why}") for spec in specs]
    return [_read(spec, found[spec.name]) for spec in specs]


def _read(spec: FigureSpec, told: dict[str, Any]) -> Figure:
    value = told["value"]
    return spec.missing(told["reason"]) if value is None else spec.measured(value)


def _order(row: str) -> tuple[str, int]:
    return row[0], int(row[1:])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the short forms, as in CI")
    parser.add_argument("--only", help="R1,R7: these rows alone")
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"))
    parser.add_argument("--quiet", action="store_true", help="figures go to the file alone")
    parser.add_argument("--seed", type=int, default=20_261, help="begins every random schedule")
    options = parser.parse_args()
    rows = sorted({name.partition(".")[0] for name in FIGURES}, key=_order)
    wanted = options.only.split(",") if options.only else rows
    if unknown := set(wanted) - set(rows):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    logging.getLogger("overspill").setLevel(logging.ERROR)
    found: dict[str, list[Figure]] = {
        row: [spec.missing(NOT_ASKED) for spec in specs_of(row).values()] for row in rows
    }
    seconds: dict[str, float] = {}
    for row in filter(wanted.__contains__, rows):
        found[row] = [spec.missing("not run yet") for spec in specs_of(row).values()]
    for row in filter(wanted.__contains__, rows):
        begun = time.monotonic()
        found[row] = _run(row, options, alone=len(wanted) == 1)
        seconds[row] = round(time.monotonic() - begun, 1)
        _write(options.json, {"short": options.short, "seconds": seconds}, found)
    figures = [figure for of_row in found.values() for figure in of_row]
    for figure in () if options.quiet else figures:
        value = "-" if figure.value is None else f"{figure.value:.4g}"
        verdict = {True: "ok", False: "MISSED", None: figure.reason or "-"}[figure.ok]
        print(f"{figure.spec.name:32} {value:>10} {figure.spec.unit:6} {verdict}")
    return int(any(_fails(figure, short=options.short) for figure in figures))


def _run(row: str, options: argparse.Namespace, *, alone: bool) -> list[Figure]:
    """A row, in this process when it is the only one."""
    if alone:
        return run_row(row, Scale(options.short, options.seed))
    with tempfile.TemporaryDirectory(prefix="soak-told-") as folder:
        told = Path(folder) / "figures.json"
        command = [sys.executable, __file__, "--only", row, "--seed", str(options.seed)]
        command += ["--json", str(told), "--quiet", *(["--short"] if options.short else [])]
        return run_apart(row, command, told, SHORT_LIMIT_S if options.short else LIMIT_S)


def _write(path: Path, about: dict[str, Any], found: dict[str, list[Figure]]) -> None:
    """All that is known now, put in place whole."""
    figures = [figure.as_dict() for of_row in found.values() for figure in of_row]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n")
    fresh.replace(path)


def _fails(figure: Figure, *, short: bool) -> bool:
    """Whether a figure misses what is asked, or is not there though it should. The short forms run
    beside other work: there only what is counted is judged, not what takes time."""
    if figure.value is None:
        excused = short or figure.spec.asked is None
        excused = excused or figure.reason.startswith((NOT_ASKED, NOT_HERE))
        return figure.reason.startswith(FAILED) or not excused
    return figure.ok is False and (not short or figure.spec.unit in COUNTED)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a row's process ends with this one
    sys.exit(main())
