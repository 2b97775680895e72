"""Where Ray is, for the processes of a fleet: installed, or in a folder of its own outside of the
checkout (it is large, and pins what others use), named by OVERSPILL_RAY or in the user's cache."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

MISSING = (
    "ray is not installed: pip install 'overspill[fleet]', or name its folder in OVERSPILL_RAY"
)


def environment() -> dict[str, str] | None:
    """The environment of a process that can import Ray; None where there is none."""
    if find_spec("ray") is not None:
        return dict(os.environ)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    named = os.environ.get("OVERSPILL_RAY")
    folder = Path(named) if named else cache / "overspill" / f"ray-{version}"
    if not (folder / "ray").is_dir():
        return None
    paths = filter(None, [os.environ.get("PYTHONPATH", ""), str(folder)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
