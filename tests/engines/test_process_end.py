"""An app that forgets to close its engines ends as cleanly as one that closes them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import pytest

from overspill.engines.registry import runtime_of
from overspill.engines.thread_end import join_native

# What is registered first runs last: after everything that the engine does at the end.
SCRIPT = """
import atexit, threading

def check():
    left = [t.name for t in threading.enumerate() if t.name.startswith("overspill-")]
    assert not left, left
    print("ended", flush=True)

atexit.register(check)

import asyncio, sys
from overspill.engines.registry import EngineOptions, open_engine
from overspill.types.chat import Message, Request

async def answer(engine, started):
    request = Request(messages=(Message("user", "Tell a story."),), max_tokens=400)
    async for chunk in engine.generate(request):
        started.set()

async def leave(engine, answers):
    await engine.start()
    tasks = []
    for _ in range(answers):
        started = asyncio.Event()
        tasks.append(asyncio.create_task(answer(engine, started)))
        await started.wait()
    return tasks

engine = open_engine(sys.argv[1], options=EngineOptions(token_delay_s=0.01))
loop = asyncio.new_event_loop()
tasks = loop.run_until_complete(leave(engine, int(sys.argv[2])))
"""


@pytest.mark.parametrize("answers", [0, 2], ids=["idle", "busy"])
@pytest.mark.parametrize("kind", ["echo", "llama.cpp", "mlx"])
def test_the_process_ends_cleanly_with_an_engine_left_open(
    kind, answers, request, tmp_path, open_kind
):
    open_kind(kind)  # Skips where that runtime is not installed.
    files = {"llama.cpp": "tiny_gguf", "mlx": "tiny_folder"}
    spec = str(request.getfixturevalue(files[kind])) if kind in files else "echo"
    assert runtime_of(spec)[0] == kind
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, spec, str(answers)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ended\n"
    assert "Fatal" not in done.stderr
    assert "terminate" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="threads are seen in /proc")
def test_a_thread_is_waited_for_until_its_native_part_is_over():
    """C++ frees thread-local objects after Python's part has ended: here that takes a while."""
    library = ctypes.CDLL(None)
    slow_end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("usleep", library))
    key = ctypes.c_uint()
    assert library.pthread_key_create(ctypes.byref(key), slow_end) == 0
    # The value is the destructor's argument: microseconds.
    thread = threading.Thread(
        target=lambda: library.pthread_setspecific(key, ctypes.c_void_p(200_000))
    )
    thread.start()
    join_native(thread, 10.0)
    assert not os.path.exists(f"/proc/self/task/{thread.native_id}")


def test_a_thread_that_does_not_end_is_left_in_time():
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, daemon=True)
    thread.start()
    join_native(thread, 0.05)
    assert thread.is_alive()
    leave.set()
    join_native(thread, 10.0)
    assert not thread.is_alive()
