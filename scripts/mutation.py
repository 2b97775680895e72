"""Mutation testing of the verifier and the sealing: which changes of the code no test notices.

    python3 scripts/mutation.py                        every file that [tool.mutmut] names
    python3 scripts/mutation.py snp tdx_quote          these files only
    python3 scripts/mutation.py snp --resume           go on with those that were not reached
    python3 scripts/mutation.py --report               what the last run found, again

mutmut wants its sources in ``src``: everything is laid out so in ``build/mutation``, and copied, so
that the checkout may change meanwhile. A mutant counts as found when a test fails, runs out of
time, or when mypy refuses the mutant. ``build/mutation.json`` has each survivor with its diff.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutation"
REPORT = ROOT / "build" / "mutation.json"
_TRUST = "tests/trust"
_RELEASES = "tests/trust_log/test_release_cases.py"
_WORDS = (f"{_TRUST}/test_refusals.py", f"{_TRUST}/test_cases.py")
HELD_BY: dict[str, tuple[str, ...]] = {
    "base": _WORDS,
    "freshness": (
        *_WORDS,
        f"{_RELEASES}::test_t3_beacon_too_old",
        f"{_RELEASES}::test_t4_beacon_not_cosigned",
        f"{_RELEASES}::test_t4_no_beacon_at_all",
    ),
    "place": (
        *_WORDS,
        f"{_TRUST}/test_dev_never_real.py::test_t60_dev_unsafe_with_a_remote_address",
        f"{_TRUST}/test_dev_never_real.py::test_rule_4_loopback_and_unix_sockets_pass",
    ),
    "reference": (*_WORDS, f"{_TRUST}/test_closed.py"),
    "schedule": ("tests/sealing/test_schedule.py", "tests/sealing/test_wire_format.py"),
    "snp": (f"{_TRUST}/hardware/test_snp.py", f"{_TRUST}/hardware/test_bundle_policies.py"),
    "steps": (f"{_TRUST}/test_steps.py", f"{_TRUST}/test_verifier.py"),
    "frames": ("tests/sealing/test_frames.py", "tests/sealing/test_schedule.py"),
    "nkc": (f"{_TRUST}/test_nkc.py", f"{_TRUST}/test_parsers.py"),
    "verifier": (
        f"{_TRUST}/test_verifier.py",
        f"{_TRUST}/test_cases.py",
        f"{_TRUST}/hardware/test_gpu_in_bundles.py",
        f"{_RELEASES}::test_a_released_logged_and_witnessed_node_is_accepted",
        f"{_RELEASES}::test_a_whole_bundles_claims_are_compared_with_its_release",
        f"{_RELEASES}::test_t49_sequence_lower_than_seen",
        f"{_RELEASES}::test_t53_manifest_expired",
    ),
}
"""The tests that have to be enough for a module that nearly every test of the house runs through:
with all of them, a mutant that survives would take minutes."""
FOUND = {1: "test", 3: "test", 36: "time", 37: "types", -24: "time", 24: "time", 255: "time"}
NOT_RUN = (None, 2)
_ROOMS = ("trust", "log", "sealing")


def lay_out(files: Collection[str]) -> None:
    """The checkout as mutmut wants it, with these modules to change; others' results are kept."""
    _forget(files)
    for name, place in (
        ("sdk", "src"),
        ("cloud/overspill_cloud", "src/overspill_cloud"),
        ("tests", "tests"),
    ):
        shutil.rmtree(WORK / place, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.so", ".hypothesis")
        shutil.copytree(ROOT / name, WORK / place, ignore=ignored)
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if files:
        only = [f"*/{room}/{name}.py" for name in files for room in _ROOMS]
        config = config.replace('only_mutate = ["', f'only_mutate = {json.dumps(only)}  # ["', 1)
    if files and set(files) <= HELD_BY.keys():
        tests = sorted({test for name in files for test in HELD_BY[name]})
        key = "pytest_add_cli_args_test_selection = "
        config = config.replace(f'{key}["', f'{key}{json.dumps(tests)}  # ["', 1)
    (WORK / "pyproject.toml").write_text(config, encoding="utf-8")


def _forget(files: Collection[str]) -> None:
    """mutmut takes what lies there for mutated, and an older selection's times for this one's."""
    mutants = WORK / "mutants"
    (mutants / "mutmut-stats.json").unlink(missing_ok=True)
    for name in files or ["*"]:
        for old in [
            *(mutants / "src").rglob(f"{name}.py"),
            *(mutants / "src").rglob(f"{name}.py.meta"),
        ]:
            old.unlink()


def mutate(names: Iterable[str], workers: int) -> int:
    """Runs mutmut on mutants by name or pattern; its progress goes to stderr."""
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "OVERSPILL_SHARED": os.environ.get("OVERSPILL_SHARED", str(ROOT.parent / "shared")),
        "MYPYPATH": "src",
    }
    command = [bin_folder / "mutmut", "run", "--max-children", str(workers)]
    return subprocess.run(
        [*map(str, command), *names], cwd=WORK, env=environment, stdout=sys.stderr, check=False
    ).returncode


def left_over(files: Iterable[str]) -> list[str]:
    """The mutants of these files that an earlier run did not reach."""
    wanted = set(files)
    metas = [
        meta
        for meta in (WORK / "mutants/src").rglob("*.py.meta")
        if not wanted or meta.name.removesuffix(".py.meta") in wanted
    ]
    return [name for meta in metas for name, code in _codes(meta).items() if code in NOT_RUN]


def _codes(meta: Path) -> dict[str, int | None]:
    return dict(json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"])


def results() -> dict[str, dict[str, int | None]]:
    """Exit codes by mutant, by file."""
    found = {}
    for meta in sorted((WORK / "mutants/src").rglob("*.py.meta")):
        codes = _codes(meta)
        if any(code not in NOT_RUN for code in codes.values()):
            name = meta.relative_to(WORK / "mutants/src/overspill").with_suffix("").as_posix()
            found[name] = codes
    return found


def row(codes: Iterable[int | None]) -> dict[str, float | int]:
    """How many mutants there were, and who found them."""
    counts = collections.Counter(
        "not_run" if code in NOT_RUN else FOUND.get(code, "survived") for code in codes
    )
    tried = counts.total() - counts["not_run"]
    found = tried - counts["survived"]
    percent = round(100 * found / tried, 1) if tried else 0.0
    return {"mutants": counts.total(), **counts, "percent": percent}


def diff_of(name: str) -> str:
    """The lines that a mutant changes."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "mutmut"), "show", name],
        cwd=WORK, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    return "\n".join(s for s in lines if s[:1] in "+-" and s[:3] not in ("+++", "---"))


def report() -> None:
    """Prints a row a file, and writes the survivors."""
    by_file = results()
    survivors = {
        mutant: diff_of(mutant)
        for codes in by_file.values()
        for mutant, code in codes.items()
        if code not in NOT_RUN and code not in FOUND
    }
    rows = {name: row(codes.values()) for name, codes in by_file.items()}
    total = row([code for codes in by_file.values() for code in codes.values()])
    whole = {"total": total, "files": rows, "survivors": survivors}
    REPORT.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    for name, found in (*rows.items(), ("all", total)):
        print(name, *(f"{key} {value}" for key, value in found.items()), sep="  ")


def main() -> int:
    """Runs what was asked for; 0 where mutmut ended well, whatever survived."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="module names, such as snp; none means all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--resume", action="store_true", help="only what was not reached")
    parser.add_argument("--report", action="store_true", help="print the last run's result again")
    asked = parser.parse_args()
    status = 0
    if not asked.report:
        names = left_over(asked.files) if asked.resume else []
        if not names:
            WORK.mkdir(parents=True, exist_ok=True)
            lay_out(asked.files)
        status = mutate(names, asked.workers)
    report()
    return status


if __name__ == "__main__":
    sys.exit(main())
