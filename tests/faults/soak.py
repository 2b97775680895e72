"""The reliability matrix, row by row: ``make soak ARGS="[--short] [--only R1,R7] [--json FILE]"``.

Writes build/soak.json (or FILE) with one figure for each claim; what was not run is there with its
reason. Exit 1 when a figure misses what is asked, of the short forms one that counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults import (
    rows_engine,
    rows_fleet,
    rows_load,
    rows_ray,
    rows_road,
    rows_service,
    rows_state,
    rows_versions,
)
from faults.matrix import FIGURES
from faults.scale import CannotRun, Measured, Scale

from overspill.bench.figures import Figure

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
    "R11": rows_fleet.r11,
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


def run_row(row: str, scale: Scale) -> list[Figure]:
    """One row's figures; a row that fails has none, and says why."""
    specs = {name: spec for name, spec in FIGURES.items() if name.startswith(f"{row}.")}
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix=f"soak-{row}-") as folder:
            measured = asyncio.run(ROWS[row](scale, Path(folder)))
    except CannotRun as reason:
        return [spec.missing(str(reason)) for spec in specs.values()]
    except Exception as error:
        logging.exception("%s failed", row)
        return [spec.missing(f"the row failed: {error!r}") for spec in specs.values()]
    print(f"{row}: {time.monotonic() - begun:.1f} s", flush=True)
    return [
        spec.measured(measured[name.partition(".")[2]])
        if math.isfinite(measured[name.partition(".")[2]])
        else spec.measured(NEVER)
        for name, spec in specs.items()
    ]


def _order(row: str) -> tuple[str, int]:
    return row[0], int(row[1:])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the short forms, as in CI")
    parser.add_argument("--only", help="R1,R7: these rows alone")
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"))
    parser.add_argument("--seed", type=int, default=20_261, help="begins every random schedule")
    options = parser.parse_args()
    rows = sorted({name.partition(".")[0] for name in FIGURES}, key=_order)
    wanted = options.only.split(",") if options.only else rows
    if unknown := set(wanted) - set(rows):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    logging.getLogger("overspill").setLevel(logging.ERROR)
    scale = Scale(options.short, options.seed)
    figures: list[Figure] = []
    for row in rows:
        if row in wanted:
            figures += run_row(row, scale)
        else:
            found = (spec for name, spec in FIGURES.items() if name.startswith(f"{row}."))
            figures += [spec.missing("not asked for") for spec in found]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    shape = {"short": options.short, "figures": [figure.as_dict() for figure in figures]}
    options.json.write_text(json.dumps(shape, indent=1) + "\n")
    for figure in figures:
        value = "-" if figure.value is None else f"{figure.value:.4g}"
        verdict = {True: "ok", False: "MISSED", None: figure.reason or "-"}[figure.ok]
        print(f"{figure.spec.name:32} {value:>10} {figure.spec.unit:6} {verdict}")
    return int(any(_fails(figure, short=options.short) for figure in figures))


def _fails(figure: Figure, *, short: bool) -> bool:
    """Whether a figure misses what is asked, or its row failed. The short forms run beside other
    work: there only what is counted is judged, not what takes time."""
    if figure.value is None:
        return figure.reason.startswith("the row failed")
    return figure.ok is False and (not short or figure.spec.unit in COUNTED)


if __name__ == "__main__":
    sys.exit(main())
