"""A GGUF file that a hub may serve, and a puller that is tested on this machine alone."""

import hashlib
import struct

import pytest


def gguf(payload: int) -> bytes:
    """A GGUF file that the header check accepts, with one tensor of ``payload`` bytes."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("w") + struct.pack("<IQIQ", 1, payload, 24, 0)
    head += b"\0" * (-len(head) % 32)
    body = hashlib.shake_256(b"weights").digest(payload)
    return head + body


@pytest.fixture
def make_gguf():
    return gguf


@pytest.fixture
def quick():
    """Short waits: the tests' server is on this machine."""
    from overspill.models.download import PullOptions

    return PullOptions(stall_s=1.0, attempts=3, first_wait_s=0.01, progress_every_s=0.0)
