"""`overspill batch`: a file of requests in OpenAI's batch format, answered here or in the cloud."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overspill.cli.common import (
    CloudAddress,
    Json,
    Model,
    PrivacyFloor,
    TrustPolicyFile,
    print_json,
    settings_for,
)
from overspill.errors import Cancelled, MissingExtra, UsageError

if TYPE_CHECKING:
    from overspill.config import Settings
    from overspill_edge.batch import Tally
    from overspill_edge.batch_files import Journal

DEFAULT_SLOTS = 16


def batch(
    file: Annotated[Path, typer.Argument(help="Requests: OpenAI's batch JSONL.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Answers; a run goes on in it.")],
    model: Model = None,
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    privacy: PrivacyFloor = None,
    slots: Annotated[
        int, typer.Option("--slots", min=1, max=256, help="Sequences on the device at once.")
    ] = DEFAULT_SLOTS,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Answer again what ended in an error.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Answer a file of requests in OpenAI's batch format.

    A run that was ended goes on where it stopped.

    Exit 0 when every line has an answer, 1 when the answer of some is an error.
    """
    try:
        import filelock
        import pydantic

        del filelock, pydantic
    except ModuleNotFoundError:
        raise MissingExtra("Batches", "edge") from None
    from overspill_edge.batch import Tally
    from overspill_edge.batch_files import Journal, check_lines

    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
    settings = dataclasses.replace(
        settings_for(model, cloud, trust_policy, privacy), device_slots=slots
    )
    if out.exists() and file.exists() and out.samefile(file):
        raise UsageError(
            f"--out is the file of requests, {file}.", mend="Give the answers a file of their own."
        )
    ids = check_lines(file)
    with Journal.open(out, ids, retry_failed=retry_failed) as journal:
        tally = Tally(total=len(ids), taken_up=len(journal.done))
        if tally.taken_up and not as_json:
            typer.echo(f"{tally.taken_up} of {tally.total} are answered already.", err=True)
        _run(file, settings, journal, tally, quiet=as_json)
    _report(tally, out, as_json=as_json)
    return 1 if tally.failed else 0


def _run(file: Path, settings: Settings, journal: Journal, tally: Tally, *, quiet: bool) -> None:
    import anyio

    from overspill.client import AsyncOverspill
    from overspill_edge.batch import APP_NAME, Batch

    line = _Line(quiet=quiet)

    async def work() -> None:
        async with AsyncOverspill(APP_NAME, settings=settings, daemon="never") as answerer:
            run = Batch(answerer, journal, tally, floor=settings.privacy, on_tally=line.show)
            await run.run(file, at_once=2 * settings.device_slots)

    if tally.taken_up == tally.total:
        return
    try:
        anyio.run(work)
    except KeyboardInterrupt:
        raise Cancelled(
            f"Stopped; {tally.taken_up + tally.done} of {tally.total} are answered.",
            mend="Run it again: it goes on where it stopped.",
        ) from None
    finally:
        line.end()


class _Line:
    """Progress on a terminal: one line, a few times a second."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._last = 0.0

    def show(self, tally: Tally) -> None:
        if not self._shown or tally.seconds - self._last < 0.2:
            return
        self._last = tally.seconds
        typer.echo(f"\r\x1b[2K{progress_line(tally)}", nl=False, err=True)

    def end(self) -> None:
        if self._shown and self._last:
            typer.echo(err=True)


def progress_line(tally: Tally) -> str:
    """``120 of 1000, 240 tokens/s, 96 on the device, 24 in the cloud, 6:10 left``."""
    here = tally.taken_up + tally.done
    parts = [f"{here} of {tally.total}", f"{tally.tokens_per_s:.0f} tokens/s"]
    parts.append(f"{tally.device} on the device, {tally.cloud} in the cloud")
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if tally.done:
        left = round((tally.total - here) * tally.seconds / tally.done)
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return ", ".join(parts)


def _report(tally: Tally, out: Path, *, as_json: bool) -> None:
    if as_json:
        document = dataclasses.asdict(tally)
        del document["started"]
        document.update(seconds=tally.seconds, tokens_per_s=tally.tokens_per_s, answers=str(out))
        print_json(document)
        return
    failed = f", {tally.failed} of them with an error" if tally.failed else ""
    typer.echo(
        f"{tally.done} answered in {tally.seconds:.1f} s{failed}: {tally.device} on the device, "
        f"{tally.cloud} in the cloud, {tally.completion_tokens} tokens. Answers: {out}"
    )
