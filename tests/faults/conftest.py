"""The kit is a folder of modules, `faults`, that the soak program shares with these tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
