"""R14: a client and a node of different versions, of ours and of protobuf, as processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from faults.nodes import Fleet, environment_on, running
from faults.scale import CannotRun, Measured, Scale

from overspill.config import load_settings

PROTOBUFS = {"6": "protobuf>=6.33.5,<7", "7": "protobuf>=7,<8"}
"""The range that the project declares, by major version."""
TEXT = "the versions differ, the words do not"


async def r14(scale: Scale, folder: Path) -> Measured:
    """Each protobuf against the other, and each side against one that knows more than it does."""
    sites = {major: await asyncio.to_thread(site_of, major) for major in PROTOBUFS}
    cases = [
        ("node on protobuf 6, client on 7", sites["6"], sites["7"], "", ""),
        ("node on protobuf 7, client on 6", sites["7"], sites["6"], "", ""),
        ("a newer node", None, None, "--newer", ""),
        ("a newer client", None, None, "", "--newer"),
    ]
    if not scale.is_short:
        cases.append(("both on protobuf 7, both newer", sites["7"], sites["7"], *["--newer"] * 2))
    failed = 0
    for number, (name, node_site, client_site, node_word, client_word) in enumerate(cases):
        told = await asyncio.to_thread(
            _one, folder / str(number), node_site, client_site, node_word, client_word
        )
        print(f"R14: {name}: {told or 'well'}", flush=True)
        failed += bool(told)
    return {"failed": failed}


def site_of(major: str) -> Path | None:
    """A folder with that protobuf; None where it is the one that is installed. Fetched once."""
    if version("protobuf").startswith(f"{major}."):
        return None
    place = load_settings().places.cache / f"protobuf-{major}"
    if not any(place.glob("protobuf-*.dist-info")):
        words = ["install", "--quiet", "--no-deps", "--target", str(place), PROTOBUFS[major]]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise CannotRun(f"{PROTOBUFS[major]} could not be fetched")
    return place


def _one(
    folder: Path, node_site: Path | None, client_site: Path | None, node_word: str, word: str
) -> str:
    """What went wrong; nothing when the answer came, confirmed."""
    try:
        with running(folder, 1, *([node_word] if node_word else []), site=node_site) as fleet:
            done = _ask(fleet, client_site, word)
    except (RuntimeError, subprocess.SubprocessError) as error:
        return str(error).strip().splitlines()[-1]
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    told = json.loads(done.stdout)
    if client_site is not None and f"protobuf-{told['protobuf'].split('.')[0]}" != client_site.name:
        return f"the client ran on protobuf {told['protobuf']}"
    if told["text"] != f"echo: {TEXT}" or not told["is_confirmed"]:
        return f"the answer was {told}"
    return ""


def _ask(fleet: Fleet, site: Path | None, word: str) -> subprocess.CompletedProcess[str]:
    node = fleet.nodes[0]
    command = [sys.executable, str(Path(__file__).with_name("version_client.py"))]
    command += [str(fleet.folder), node.listen, node.dev_root, fleet.code(), TEXT]
    command += [word] if word else []
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment_on(site), timeout=60
    )
