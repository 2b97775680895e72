"""Put Ray into the user's cache for the tests of a fleet on Ray: not into the environment, which it
would make twice as large. Of what it needs only what the environment lacks is fetched.

    python scripts/fetch_ray.py

Does nothing where Ray is there already. Exit 1 when it cannot be fetched: its tests then skip.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overspill"
    folder = cache / f"ray-{sys.version_info.major}.{sys.version_info.minor}"
    if (folder / "ray").is_dir():
        print(f"Ray is in {folder}.")
        return 0
    begun, partial = time.monotonic(), folder.with_suffix(f".{os.getpid()}.partial")
    try:
        _pip("--no-deps", "--target", str(partial), *_missing())
        partial.rename(folder)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(partial, ignore_errors=True)
        print(f"Ray could not be fetched:\n{error.stderr[-2000:]}", file=sys.stderr)
        return 1
    print(f"Ray is in {folder}, fetched in {time.monotonic() - begun:.0f} s.")
    return 0


def _missing() -> list[str]:
    """What installing the extra would add here, exactly."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = next(one for one in extras["fleet"] if one.startswith("ray"))
    report = json.loads(_pip("--dry-run", "--report", "-", wanted))
    found = (one["metadata"] for one in report["install"])
    return [f"{one['name']}=={one['version']}" for one in found]


def _pip(*words: str) -> str:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *words], check=True, capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
