"""What a node's process does about its memory; each test has a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest


def said_by(program: str) -> str:
    """What a program prints on the loop that a node runs on."""
    text = f"import asyncio, ctypes, gc, sys, threading, weakref\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_the_cycles_that_calls_leave_are_found_soon():
    found = said_by("""
from overspill_cloud import loop

class Call:
    def __init__(self):
        self.itself = self

async def main():
    # Told by a callback: who asks the reference holds the call for that moment, in which Python
    # 3.12 and 3.13 look for cycles.
    gone, rest = [], []
    first = weakref.ref(Call(), gone.append)
    while not gone:
        rest.append([])
    print(len(rest))

loop.run(main())
""")
    assert 0 < int(found) < 2_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's arenas are Linux's")
def test_many_threads_share_few_arenas(tmp_path):
    found = said_by(f"""
from overspill_cloud import loop

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p

def take(ready):
    libc.malloc(4096)
    ready.wait()

async def main():
    ready = threading.Barrier(9)
    threads = [threading.Thread(target=take, args=(ready,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    ready.wait()
    file = ctypes.c_void_p(libc.fopen({str(tmp_path / "heaps")!r}.encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    print(open({str(tmp_path / "heaps")!r}).read().count("<heap nr="))

loop.run(main())
""")
    assert int(found) <= 2


def test_what_was_there_at_the_start_is_not_looked_through_again():
    found = said_by("""
from overspill.garbage import keep_what_is_there

there = [[] for _ in range(10_000)]
keep_what_is_there()
print(any(one is there for one in gc.get_objects()), gc.get_freeze_count() > 10_000)
""")
    assert found == "False True"


def test_a_node_that_serves_has_left_its_start_out(tmp_path):
    found = said_by(f"""
import os, pathlib, signal
from overspill_cloud import cli_serve, loop
from overspill_cloud.app import ModelSpec, NodeOptions

def serving(facts, text, as_json):
    print(gc.get_freeze_count() > 10_000)
    os.kill(os.getpid(), signal.SIGTERM)

cli_serve.report = serving
options = NodeOptions(
    models=(ModelSpec("echo", "echo"),), state=pathlib.Path({str(tmp_path)!r}), listen="127.0.0.1:0"
)
loop.run(cli_serve.serve_until_told(options, as_json=True, stop_with_stdin=False))
""")
    assert found == "True"
