"""How PyInstaller finds what a bundle needs; named by the entry point ``pyinstaller40``.

Nothing has to be done for it: with overspill installed, ``pyinstaller app.py`` collects its data
and its runtimes, and a hook at run time lets the bundled program start its own workers.
"""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folder with the hooks."""
    return [str(Path(__file__).parent)]
