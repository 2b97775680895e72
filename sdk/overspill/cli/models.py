"""`overspill models`: what can answer, what is here, what could be; pull, fit, import, remove."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import anyio
import typer

from overspill import modelroom
from overspill.cli.common import (
    CloudAddress,
    Json,
    Model,
    TrustPolicyFile,
    print_json,
    settings_for,
)
from overspill.errors import ModelNotFound, UsageError
from overspill.models.catalog import CatalogEntry, catalog
from overspill.models.files import Progress, PullPlan, Runtime
from overspill.models.store import RESERVED, StoredModel
from overspill.terminal import Verbs

Name = Annotated[str | None, typer.Option("--name", help="What it will be called here.")]
What = Annotated[str, typer.Argument(help="A name of the catalog, or OWNER/REPOSITORY[:FILE].")]
RuntimeChoice = Annotated[str | None, typer.Option("--runtime", help="llama.cpp or mlx.")]

models = typer.Typer(
    cls=Verbs,
    name="models",
    help="List the models that can answer now; pull, import and remove models.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.add_typer(models)


@models.callback()
def _models(
    context: typer.Context,
    model: Model = None,
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    as_json: Json = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from overspill.sync import Overspill  # late: what is in the store is told without a client

    with Overspill(app="cli", settings=settings_for(model, cloud, trust_policy)) as ai:
        cards, state = ai.models(), ai.availability()
    if as_json:
        print_json({"models": cards, "availability": state})
        return
    for card in cards:
        print(f"{card.name}\t{card.runtime}\t{card.quantization}\tcontext {card.context} tokens")
    print(f"device: {state.device.value} ({state.device_reason})")
    print(f"cloud:  {state.cloud.value} ({state.cloud_reason})")


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models on this machine."""
    stored = modelroom.open_store(settings_for()).models()
    if as_json:
        print_json({"models": [_stored_dict(model) for model in (_shipped(), *stored)]})
        return
    print("brook\tllama.cpp\tshipped with overspill, always there")
    for model in stored:
        print(f"{model.name}\t{model.runtime}\t{_size(model.size_bytes)}\t{model.source}")


@models.command("catalog")
def show_catalog(as_json: Json = False) -> None:
    """List the models that can be pulled by a short name, as their publishers describe them."""
    entries = catalog().values()
    if as_json:
        print_json({"models": list(entries)})
        return
    for place in ("device", "cloud"):
        print(f"for the {place}:")
        for entry in entries:
            if entry.place == place:
                print(f"  {_entry_line(entry)}")


@models.command()
def pull(
    what: What,
    name: Name = None,
    runtime: RuntimeChoice = None,
    update: Annotated[bool, typer.Option("--update", help="Take a newer revision.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a model: resumed where it stopped, checked against its digest, in place when whole."""
    settings = settings_for()
    if what in RESERVED:
        raise UsageError(f"'{what}' ships with overspill.", mend="It is always there.")
    planned = anyio.run(
        functools.partial(modelroom.plan, settings, what, name=name, runtime=_runtime(runtime))
    )
    if not as_json:
        print_plan(planned, modelroom.judge_size(planned, settings).detail)
        if not yes and sys.stdin.isatty():
            typer.confirm("Fetch it?", abort=True, default=True, err=True)
    line = ProgressLine(quiet=as_json)
    try:
        stored = anyio.run(
            functools.partial(
                modelroom.pull, settings, planned, on_progress=line.show, update=update
            )
        )
    finally:
        line.end()
    if as_json:
        print_json(_stored_dict(stored))
        return
    print(f"{stored.name}: {_size(stored.size_bytes)} in {stored.folder}")
    for file in planned.unpinned:
        print(f"  pinned now: {file} sha256:{stored.sha256[file]}")
    print(f'Use it with --model {stored.name}, or model = "{stored.name}" in config.toml.')


@models.command()
def fit(what: What, runtime: RuntimeChoice = None, as_json: Json = False) -> int:
    """Say whether a model would fit this machine's memory. Exit 0, or 5 when it does not."""
    settings = settings_for()
    model: StoredModel | PullPlan | None = _stored_or_file(what)
    if model is None:
        model = anyio.run(
            functools.partial(modelroom.plan, settings, what, runtime=_runtime(runtime))
        )
    verdict = modelroom.judge_size(model, settings)
    if as_json:
        print_json({"model": what, **dataclasses.asdict(verdict)})
    else:
        print(f"{what}: {verdict.verdict.replace('_', ' ')} ({verdict.detail})")
    return 5 if verdict.verdict == "does_not_fit" else 0


@models.command("import")
def import_model(
    file: Annotated[Path, typer.Argument(help="A .gguf file, or a folder in the MLX layout.")],
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Copy a model of your own into the store."""
    stored = modelroom.import_model(settings_for(), file, name)
    if as_json:
        print_json(_stored_dict(stored))
    else:
        print(f"{stored.name}: {_size(stored.size_bytes)} in {stored.folder}")


@models.command()
def remove(
    name: Annotated[str, typer.Argument(help="As `models list` shows it.")],
    as_json: Json = False,
) -> None:
    """Delete a model from this machine."""
    if name in RESERVED:
        raise UsageError(f"'{name}' ships with overspill.", mend="It cannot be removed.")
    removed = modelroom.open_store(settings_for()).remove(name)
    if as_json:
        print_json(_stored_dict(removed))
    else:
        print(f"{name}: removed, {_size(removed.size_bytes)} are free again")


@models.command()
def check(
    name: Annotated[str, typer.Argument(help="As `models list` shows it.")],
    as_json: Json = False,
) -> None:
    """Read a model's files again and compare their digests."""
    store = modelroom.open_store(settings_for())
    model = store.find(name)
    if model is None:
        raise ModelNotFound.among(name, (m.name for m in store.models()))
    store.check(model)
    if as_json:
        print_json(_stored_dict(model))
    else:
        print(f"{name}: all {len(model.sha256)} files are as they were put there")


# ------------------------------------------------------------------------------------------------


class ProgressLine:
    """One line on a terminal that is written again and again; elsewhere only notes are told."""

    def __init__(self, *, quiet: bool) -> None:
        self._terminal = sys.stderr.isatty()
        self._quiet = quiet
        self._open = False

    def show(self, progress: Progress) -> None:
        """Where a pull stands now."""
        if self._quiet:
            return
        if progress.note:
            self.end()
            print(f"{progress.file}: {progress.note}", file=sys.stderr)
        elif self._terminal:
            print(f"\r\x1b[2K{progress_line(progress)}", end="", file=sys.stderr, flush=True)
            self._open = True

    def end(self) -> None:
        """Leave the line."""
        if self._open:
            print(file=sys.stderr)
            self._open = False


def progress_line(progress: Progress) -> str:
    """``file 34% 12.3 MB of 36.0 MB, 4.1 MB/s, 0:06 left``."""
    parts = [f"{progress.file} {_size(progress.done_bytes)}"]
    if progress.total_bytes:
        share = progress.done_bytes / progress.total_bytes
        parts = [
            f"{progress.file} {share:.0%} {_size(progress.done_bytes)} "
            f"of {_size(progress.total_bytes)}"
        ]
    if progress.bytes_per_s:
        parts.append(f"{_size(round(progress.bytes_per_s))}/s")
    if progress.eta_s is not None:
        minutes, seconds = divmod(round(progress.eta_s), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return ", ".join(parts)


def print_plan(planned: PullPlan, fit_detail: str, *, to: TextIO | None = None) -> None:
    """What a pull would fetch, on standard output or ``to``."""
    show = functools.partial(print, file=to)
    size = "unknown size" if planned.total_bytes is None else _size(planned.total_bytes)
    show(f"{planned.name}: {len(planned.files)} file(s), {size}, for {planned.runtime}")
    show(f"  from     {planned.source} at {planned.revision or 'no revision'}")
    show(f"  licence  {planned.licence or 'not told by the publisher'}")
    show(f"  memory   {fit_detail}")
    for file in planned.files:
        if file.digest is not None and file.digest.kind == "sha256":
            show(f"  digest   {file.digest} {file.path}")
    for note in planned.notes:
        show(f"  note     {note}")


def _runtime(text: str | None) -> Runtime | None:
    match text:
        case None | "llama.cpp" | "mlx":
            return text
    raise UsageError(f"--runtime is '{text}'.", mend="Use llama.cpp or mlx.")


def _stored_or_file(what: str) -> StoredModel | None:
    stored = modelroom.find_stored(settings_for(), what)
    if stored is not None:
        return stored
    if what == "brook":
        return _shipped()
    return _as_stored(Path(what), what) if Path(what).is_file() else None


def _shipped() -> StoredModel:
    """The one in the package."""
    from overspill.engines.registry import BROOK

    return _as_stored(BROOK, "shipped with overspill", name="brook")


def _as_stored(file: Path, source: str, name: str | None = None) -> StoredModel:
    """A file that is in no store."""
    return StoredModel(
        name or file.stem, "llama.cpp", file.name, file.stat().st_size, {}, source, "",
        folder=file.parent,
    )  # fmt: skip


def _stored_dict(model: StoredModel) -> dict[str, Any]:
    return {**dataclasses.asdict(model), "folder": str(model.folder), "path": str(model.path)}


def _entry_line(entry: CatalogEntry) -> str:
    context = f"{entry.context_tokens} tokens" if entry.context_tokens else "context unknown"
    return f"{entry.name}\t{entry.title}\t{context}\t{entry.licence}\t{entry.source}"


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
