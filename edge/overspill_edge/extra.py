"""What a verb says where the daemon's libraries are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overspill.errors import MissingExtra


@contextmanager
def needs_edge() -> Iterator[None]:
    """Imports of the daemon's own happen inside. Raises ``MissingExtra``."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("overspill", "overspill_edge"):
            raise
        raise MissingExtra("The daemon", "edge") from None
