"""A network namespace with a link that can be taken down: what is on its other side is then gone
without a word, as behind a pulled cable. Needs root on Linux, and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_network

MISSING = "a link of its own needs root on Linux and iproute2 (apt-get install iproute2)"
_NET = ip_network("198.18.0.0/15")
"""RFC 2544: for tests of networks, and in nobody's routes."""


def is_possible() -> bool:
    """Whether a namespace can be asked for here; a container may refuse it all the same."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None


@dataclass(frozen=True)
class LinkedNamespace:
    """A namespace and the addresses of both ends of its link."""

    name: str
    inner_if: str
    here: str
    there: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command that is to run inside."""
        return ("ip", "netns", "exec", self.name)

    def set_link(self, state: str) -> None:
        """``up`` or ``down``, at the far end: here nothing is told, packets just stay away."""
        _ip("-n", self.name, "link", "set", self.inner_if, state)


@contextmanager
def linked_namespace(number: int = 0) -> Iterator[LinkedNamespace]:
    """A namespace, removed with all in it at the end. Raises ``OSError`` where it is refused."""
    tag = f"{os.getpid() % 100_000}-{number}"
    name, outer, inner = f"overspill-{tag}", f"ovo{tag}", f"ovi{tag}"
    # Four addresses for each process and number: tests run beside each other.
    at = (os.getpid() * 2 + number) * 4 % _NET.num_addresses
    space = LinkedNamespace(name, inner, str(_NET[at + 1]), str(_NET[at + 2]))
    _ip("netns", "add", name)
    try:
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _ip("addr", "add", f"{space.here}/30", "dev", outer)
        _ip("link", "set", outer, "up")
        _ip("-n", name, "addr", "add", f"{space.there}/30", "dev", inner)
        _ip("-n", name, "link", "set", "lo", "up")
        space.set_link("up")
        yield space
    finally:
        with suppress(OSError):
            _ip("link", "del", outer)
        _ip("netns", "del", name)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
