"""Models by name for apps: what is here, what could be, and pulling it.

It combines the store with the engines, which do not know each other: a model is only called pulled
or imported when a runtime's own check of its files passed.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from overspill.config import Settings
from overspill.engines.live_memory import available_memory
from overspill.engines.registry import runtime_of
from overspill.errors import ModelInvalid, ModelNotFound
from overspill.models.catalog import catalog
from overspill.models.download import PullOptions
from overspill.models.files import OnProgress, PullPlan, Runtime
from overspill.models.hub import parse_reference
from overspill.models.pull import plan_pull, run_pull
from overspill.models.store import RESERVED, ModelStore, StoredModel


@dataclass(frozen=True, slots=True)
class SizeVerdict:
    """Whether a model could fit: ``needed_bytes`` of its weights alone before it is here, all of
    it once it is; ``free_bytes`` None where nobody knows."""

    verdict: str
    needed_bytes: int
    free_bytes: int | None
    detail: str


def open_store(settings: Settings) -> ModelStore:
    """The user's models."""
    return ModelStore(settings.places.data / "models")


def preferred_runtime() -> Runtime:
    """MLX on Apple silicon where it is installed, else llama.cpp."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mlx" if apple and find_spec("mlx_lm") is not None else "llama.cpp"


def resolve(settings: Settings, name: str) -> tuple[str | None, str]:
    """(its name, what a runtime opens) for a name (wheel, store, hub) or a path.

    The name is None where the file's own will do. Raises ``ModelNotFound``, with the command that
    pulls it for a name that could be pulled.
    """
    if name in RESERVED or Path(name).exists():
        return None, name
    stored = find_stored(settings, name)
    if stored is not None:
        return stored.name, str(stored.path)
    if is_pullable(name):
        raise ModelNotFound(
            f"The model '{name}' is not on this machine.", mend=f"Run: overspill models pull {name}"
        )
    if "/" in name or name.endswith(".gguf"):
        raise ModelNotFound(f"There is no model at {name}.", mend="Check the path.")
    known = {*RESERVED, *catalog(), *(model.name for model in open_store(settings).models())}
    raise ModelNotFound.among(name, known)


def find_stored(settings: Settings, name: str) -> StoredModel | None:
    """A model of the store by its name here, or by the repository that it was pulled from."""
    store = open_store(settings)
    found = store.find(name)
    reference = None if found is not None else parse_reference(name)
    if reference is None:
        return found
    return next((m for m in store.models() if reference.names(m.source, m.main)), None)


def is_pullable(name: str) -> bool:
    """Whether ``overspill models pull`` would know where to look."""
    if name in catalog():
        return True
    # A relative path looks the same: a file's ending tells them apart.
    return not name.endswith(".gguf") and parse_reference(name) is not None


async def plan(
    settings: Settings, what: str, *, name: str | None = None, runtime: Runtime | None = None
) -> PullPlan:
    """What a pull would fetch; see :func:`overspill.models.pull.plan_pull`."""
    return await plan_pull(
        what, runtime=runtime or preferred_runtime(), hub=settings.hub, name=name
    )


async def pull(
    settings: Settings,
    planned: PullPlan,
    *,
    options: PullOptions | None = None,
    on_progress: OnProgress | None = None,
    update: bool = False,
) -> StoredModel:
    """Fetch a plan's files, and check that a runtime could open them.

    Raises as :func:`overspill.models.pull.run_pull`, and ``ModelInvalid`` for files that are not
    what they are called: they are removed again.
    """
    store = open_store(settings)
    stored = await run_pull(planned, store, options=options, on_progress=on_progress, update=update)
    return _checked(store, stored)


def import_model(settings: Settings, source: Path, name: str | None = None) -> StoredModel:
    """Copy a file or folder of one's own into the store; see :meth:`ModelStore.import_file`."""
    store = open_store(settings)
    return _checked(store, store.import_file(source, name))


def judge_size(model: StoredModel | PullPlan, settings: Settings) -> SizeVerdict:
    """Whether it fits this machine now, with the arithmetic.

    Raises ``ModelInvalid`` for stored files that cannot be read.
    """
    free = available_memory()
    if isinstance(model, StoredModel) and model.runtime == "llama.cpp":
        return _judge_gguf(model, settings, free)
    size = model.size_bytes if isinstance(model, StoredModel) else model.total_bytes
    if size is None:
        return SizeVerdict("unknown", 0, free, "the hub tells no size")
    verdict = "does_not_fit" if free is not None and size > free else "may_fit"
    there = "what is free is unknown" if free is None else f"{free / 1e9:.2f} GB are free"
    return SizeVerdict(verdict, size, free, f"{size / 1e9:.2f} GB of weights alone; {there}")


def _judge_gguf(model: StoredModel, settings: Settings, free: int | None) -> SizeVerdict:
    from overspill.engines.gguf_fit import GgufFitOptions, file_fit
    from overspill.engines.options import SchedulerOptions
    from overspill.errors import DoesNotFit

    options = GgufFitOptions(
        context_tokens=settings.max_context_tokens,
        max_sequences=settings.device_slots,
        shrink_context=settings.shrink_context,
        draft_tokens=SchedulerOptions(speculation=settings.speculation).checked_tokens,
    )
    try:
        fit = file_fit(model.path, model.name, options)
    except DoesNotFit as error:
        return SizeVerdict("does_not_fit", model.size_bytes, free, error.message)
    return SizeVerdict(fit.verdict, fit.need.total_bytes, free, fit.describe())


def _checked(store: ModelStore, stored: StoredModel) -> StoredModel:
    try:
        if stored.runtime == "llama.cpp":
            from overspill.engines.gguf_header import read_header

            read_header(stored.path)
        else:
            runtime_of(str(stored.path))
    except ModelInvalid:
        store.remove(stored.name)
        raise
    return stored
