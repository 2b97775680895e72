"""Workers of a program that was frozen into a bundle.

A bundle has no ``python -m``: its executable is the app. So a worker is started as the app itself
with a first argument that says what it really is, and whoever starts first looks at it. PyInstaller
bundles do so by themselves (a run-time hook comes with overspill); for other freezers the app
calls :func:`freeze_support` first thing, as with :mod:`multiprocessing`.
"""

from __future__ import annotations

import sys
from runpy import run_module

WORKER = "overspill.worker"
COMMAND = "overspill.cli.main"
_FLAG = "--overspill-run"
_MODULES = (WORKER, COMMAND)
"""All that a bundle may be made to run: nothing else can be named."""


def python_command(module: str) -> list[str]:
    """What starts ``module`` as a process of its own, from here."""
    if getattr(sys, "frozen", False):
        return [sys.executable, _FLAG, module]
    # -P: what lies in the working folder is not what was asked for.
    return [sys.executable, "-P", "-m", module]


def freeze_support() -> None:
    """Be the worker, if this process was started as one, and end with it. Call it first thing."""
    if len(sys.argv) > 2 and sys.argv[1] == _FLAG and sys.argv[2] in _MODULES:
        module = sys.argv[2]
        sys.argv[:] = [module, *sys.argv[3:]]
        run_module(module, run_name="__main__", alter_sys=False)
        sys.exit(0)
