"""Every text that a release, its log and its node hand out, changed anyhow: one exception type
each, no hang, and memory in proportion to the input, whatever numbers stand in it."""

from __future__ import annotations

import contextlib
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import ConfigurationError, EvidenceRejected, LogInvalid, ReceiptInvalid
from overspill.sealing.receipt import ReceiptClaims, ReceiptKey, open_receipt, read_claims
from overspill.trust.log.checkpoint import Checkpoint
from overspill.trust.log.note import Note
from overspill.trust.log.proof import TlogProof
from overspill.trust.log.tiles import Edge
from overspill.trust.log.witness import AddCheckpoint
from overspill.trust.measured import ModelsManifest
from overspill.trust.nkc import NodeKeyConfig
from overspill.trust.policy import parse_policy
from overspill.trust.release_envelope import Envelope
from overspill.trust.release_manifest import ReleaseManifest

TEXT = {"note", "checkpoint", "proof", "envelope", "manifest", "policy", "witness"}
NAMES = sorted(TEXT | {"edge", "nkc", "models", "receipt"})
KIB = 1024
CLAIMS = ReceiptClaims(
    nkc_sha256=bytes(32), th=bytes(32), request_id=bytes(16), request_commitment=bytes(32),
    response_commitment=bytes(32), model="river", model_sha256=bytes(32), adapter="tuned",
    prompt_tokens=3, completion_tokens=4, unix_s=1_800_000_000, finish_reason="stop",
)  # fmt: skip


def _policy(data: bytes) -> object:
    return parse_policy(data.decode("utf-8", "replace"))


def _checkpoint(data: bytes) -> object:
    return Checkpoint.parse(data.decode("utf-8", "replace"))


@pytest.fixture
def inputs(world):
    """``inputs[name]``: a parser, its exception type, and something good for it."""
    world.entries.append(world.envelope().encode())
    anchor = world.checkpoint(witnesses=("Alice", "Bob"))
    bundle = world.bundle(anchor=anchor, proof=world.proof(world.envelope().encode(), anchor))
    key = ReceiptKey.generate()
    body = b"old 0\n\n" + anchor
    models = next(entry for entry in bundle.measured_log if entry[0] == 3)
    manifest = models[models.index(b"OVSM") :]
    return {
        "note": (Note.parse, LogInvalid, anchor),
        "checkpoint": (_checkpoint, LogInvalid, world.head().text().encode()),
        "proof": (TlogProof.parse, LogInvalid, bundle.release_proof),
        "edge": (Edge.decode, LogInvalid, world.edge()),
        "witness": (AddCheckpoint.parse, LogInvalid, body),
        "envelope": (Envelope.parse, EvidenceRejected, bundle.release),
        "manifest": (ReleaseManifest.parse, EvidenceRejected, world.manifest().encode()),
        "nkc": (NodeKeyConfig.decode, EvidenceRejected, bundle.node_key_config),
        "models": (ModelsManifest.decode, EvidenceRejected, manifest),
        "policy": (_policy, ConfigurationError, world.policy_text().encode()),
        "receipt": (
            lambda data: (read_claims(data), open_receipt(data, key.public_bytes)),
            ReceiptInvalid,
            key.sign(CLAIMS),
        ),
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_is_good_is_read(inputs, name):
    parse, _, good = inputs[name]
    parse(good)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80)
@given(st.data())
def test_changed_anyhow_raises_one_type(name, data):
    """Bytes replaced, put in, cut out or doubled, at one place or at the end."""
    parse, error, good = _kept(name)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 16)))
    middle = data.draw(st.binary(max_size=8) | st.just(good[start:end] * 2))
    with contextlib.suppress(error):
        parse(good[:start] + middle + good[end:])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.binary(max_size=200), keep=st.integers(0, 80))
def test_garbage_raises_one_type(name, data, keep):
    parse, error, good = _kept(name)
    for candidate in (data, good[:keep] + data, good + data):
        with contextlib.suppress(error):
            parse(candidate)


@pytest.mark.parametrize("name", NAMES)
def test_huge_numbers_take_no_memory_beyond_the_inputs(inputs, peak_of, name):
    parse, error, good = inputs[name]
    for candidate in _with_huge_numbers(name, good):
        assert peak_of(parse, error, candidate) < KIB * KIB + 32 * len(candidate)


@pytest.mark.parametrize("name", NAMES)
def test_a_megabyte_of_the_same_is_refused_at_a_price_of_its_size(inputs, peak_of, name):
    """Lists and lines a hundred thousand long: refused or read, never more than 32 times over."""
    parse, error, good = inputs[name]
    unit = max(1, len(good) // 8)
    candidates = [good + good[-unit:] * (KIB * KIB // unit), good[:unit] * (KIB * KIB // unit)]
    if name in ("envelope", "manifest"):
        candidates = [good + b" " * KIB * KIB, b"[" * KIB * KIB, b'{"a":' * (KIB * 200)]
    for candidate in candidates:
        assert peak_of(parse, error, candidate) < KIB * KIB + 32 * len(candidate)


@pytest.fixture
def peak_of():
    """``peak_of(parse, error, data)``: the most bytes at once that reading took; refused or not."""
    tracemalloc.start()

    def measure(parse, error, data) -> int:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        with contextlib.suppress(error):
            parse(data)
        return tracemalloc.get_traced_memory()[1] - before

    yield measure
    tracemalloc.stop()


def _with_huge_numbers(name: str, good: bytes):
    """Each number of a text, or each place of a binary input, with as large a one as fits."""
    if name in TEXT:
        for found in re.finditer(rb"\d+", good):
            for huge in (b"9" * 19, b"1" + b"0" * 4400, b"-1"):
                yield good[: found.start()] + huge + good[found.end() :]
        return
    for at in range(0, len(good), 2):
        yield good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :]


_INPUTS: dict[str, tuple] = {}


@pytest.fixture(autouse=True)
def _keep(inputs):
    """For properties, whose examples share one function's fixtures."""
    if not _INPUTS:
        _INPUTS.update(inputs)


def _kept(name: str) -> tuple:
    return _INPUTS[name]
