"""A whole pull: its plan, one puller at a time, each file, and the model in place."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from overspill.errors import MissingExtra, ModelInvalid, UsageError
from overspill.models.catalog import CatalogEntry, Variant, catalog, find_entry
from overspill.models.download import Download, PullOptions, check_disk, http_client
from overspill.models.files import SHA256, Digest, OnProgress, Progress, PullPlan, Runtime
from overspill.models.hub import HUB, HubReference, hub_plan, parse_reference
from overspill.models.store import PULLING, ModelStore, StoredModel, now_utc, sha256_of

if TYPE_CHECKING:
    import httpx2

_LOCK_POLL_S: Final = 0.2


async def plan_pull(
    what: str,
    *,
    runtime: Runtime,
    hub: str = HUB,
    name: str | None = None,
    options: PullOptions | None = None,
) -> PullPlan:
    """What pulling ``what`` would do: a name of the catalog, or ``owner/repository[@rev][:file]``.

    Asks the hub for sizes, digests and the commit; fetches nothing. Raises ``ModelNotFound``,
    ``InvalidRequest``, ``ModelInvalid``, ``PullFailed``, ``MissingExtra``.
    """
    async with http_client(options or PullOptions()) as client:
        reference = parse_reference(what) if what not in catalog() else None
        if reference is not None:
            return await hub_plan(client, reference, runtime=runtime, hub=hub, name=name)
        return await _catalog_plan(client, find_entry(what), runtime, hub, name)


async def run_pull(
    plan: PullPlan,
    store: ModelStore,
    *,
    options: PullOptions | None = None,
    on_progress: OnProgress | None = None,
    update: bool = False,
) -> StoredModel:
    """Fetch and place a plan's files; a model that is there already is returned as it is.

    ``update`` replaces one of the same source at another commit. Raises ``UsageError`` where the
    name belongs to a model from elsewhere, ``DoesNotFit`` for the disk, and as
    :meth:`Download.run`.
    """
    options = options or PullOptions()
    async with _only_puller(store, plan.name, on_progress):
        there = store.find(plan.name)
        if there is not None and not _is_wanted(there, plan, update=update):
            return there
        folder = store.pulling_folder(plan.name)
        _clear_others(folder, plan)
        if plan.total_bytes is not None:
            check_disk(folder, plan.total_bytes - _bytes_in(folder), plan.name)
        async with http_client(options) as client:
            sha256 = {
                file.path: await _fetch(client, plan, index, folder, options, on_progress)
                for index, file in enumerate(plan.files)
            }
        return store.place(folder, _stored(plan, folder, sha256))


async def _catalog_plan(
    client: httpx2.AsyncClient, entry: CatalogEntry, runtime: Runtime, hub: str, name: str | None
) -> PullPlan:
    variant = entry.variant_for(runtime)
    reference = HubReference(variant.repo, choice=variant.choice)
    plan = await hub_plan(
        client, reference, runtime=variant.runtime, hub=hub, name=name or entry.name
    )
    _check_pinned(plan, variant)
    notes = () if variant.sha256 else ("its digest is not in the catalog: pinned at this pull",)
    return dataclasses.replace(plan, licence=entry.licence, notes=notes)


def _check_pinned(plan: PullPlan, variant: Variant) -> None:
    """The hub serves what the catalog verified; ``ModelInvalid`` for anything else."""
    if variant.sha256 is None:
        return
    digest = plan.files[0].digest
    if len(plan.files) != 1 or digest != Digest(SHA256, variant.sha256):
        raise ModelInvalid(
            f"{plan.source} no longer serves the file that the catalog verified.",
            mend="Update overspill, or pull the repository by its own name.",
        )


def _is_wanted(there: StoredModel, plan: PullPlan, *, update: bool) -> bool:
    if there.source != plan.source:
        raise UsageError(
            f"The name '{plan.name}' belongs to a model from {there.source}.",
            mend="Give --name, or remove that one first.",
        )
    return update and there.revision != plan.revision


def _clear_others(folder: Path, plan: PullPlan) -> None:
    """Files of another plan of that name; half a pull of this one stays."""
    wanted = {file.path for file in plan.files}
    for path in folder.iterdir():
        name = path.name.removesuffix(".json").removesuffix(".partial")
        if path.name not in wanted and name not in wanted:
            path.unlink()


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def _fetch(
    client: httpx2.AsyncClient,
    plan: PullPlan,
    index: int,
    folder: Path,
    options: PullOptions,
    on_progress: OnProgress | None,
) -> str:
    """The SHA-256 of one file, fetched now or by a pull that was stopped later on."""
    import anyio

    file, target = plan.files[index], folder / plan.files[index].path
    if target.exists():
        known = file.digest
        here = await anyio.to_thread.run_sync(sha256_of, target)
        if known is not None and known.kind == SHA256 and known.hex == here:
            return here
        target.unlink()
    download = Download(client, file, target, options=options, on_progress=on_progress)
    return await download.run()


def _stored(plan: PullPlan, folder: Path, sha256: dict[str, str]) -> StoredModel:
    return StoredModel(
        name=plan.name,
        runtime=plan.runtime,
        main=plan.main,
        size_bytes=sum((folder / name).stat().st_size for name in sha256),
        sha256=sha256,
        source=plan.source,
        added=now_utc(),
        revision=plan.revision,
        licence=plan.licence,
    )


@asynccontextmanager
async def _only_puller(
    store: ModelStore, name: str, on_progress: OnProgress | None
) -> AsyncIterator[None]:
    """One pull of a name at a time, in all processes; the lock ends with the process."""
    import anyio

    try:
        from filelock import FileLock, Timeout
    except ModuleNotFoundError:
        raise MissingExtra("Pulling models", "pull") from None
    store.pulling_folder(name)
    lock = FileLock(store.folder / PULLING / f"{name}.lock", thread_local=False)
    told = False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if on_progress is not None and not told:
                on_progress(Progress(name, 0, None, note="another pull of it runs: waiting"))
                told = True
            await anyio.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        lock.release()
