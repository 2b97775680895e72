"""What a client remembers only grows, is its own, and holds a split view until a person decides."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from overspill.errors import ConfigurationError, EvidenceRejected, SplitView, UsageError
from overspill.log_watch import appraise_remembering, verify_remembering
from overspill.state.log_state import LogStateStore
from overspill.types.transparency import LogMemory

NOW = 1_800_000_000
SMALL = LogMemory("log.example", 2, bytes([2] * 32), b"checkpoint 2", b"edge 2", 7, 5)
LARGE = LogMemory("log.example", 3, bytes([3] * 32), b"checkpoint 3", b"edge 3", 6, 6)


@pytest.fixture
def store(tmp_path) -> LogStateStore:
    return LogStateStore(tmp_path / "state" / "logs.sqlite")


def test_nothing_is_known_at_first(store):
    assert store.recall("log.example") == LogMemory("log.example")
    assert store.logs() == []


@pytest.mark.parametrize("order", [(SMALL, LARGE), (LARGE, SMALL)])
def test_it_only_grows(store, tmp_path, order):
    for seen in order:
        store.remember(seen)
    again = LogStateStore(tmp_path / "state" / "logs.sqlite")
    known = again.recall("log.example")
    assert (known.size, known.root, known.edge) == (3, LARGE.root, LARGE.edge)
    assert (known.release_seq, known.security_floor_seq) == (7, 6)
    assert again.recall("other.example").size == 0


def test_what_another_process_saw_meanwhile_may_contradict(store):
    store.remember(SMALL)
    with pytest.raises(SplitView) as caught:
        store.remember(replace(SMALL, root=bytes(32), checkpoint=b"another"))
    assert (caught.value.remembered, caught.value.shown) == (b"checkpoint 2", b"another")
    assert store.recall("log.example").root == SMALL.root


def split_of(origin: str = "log.example") -> SplitView:
    return SplitView("7", origin=origin, remembered=b"remembered", shown=b"shown")


def test_a_split_view_is_kept_once_and_waits(store):
    store.remember(SMALL)
    first = store.keep_evidence(split_of(), NOW)
    assert store.keep_evidence(split_of(), NOW + 1) == first
    (waiting,) = store.split_views()
    assert (waiting.id, waiting.remembered, waiting.shown) == (first, b"remembered", b"shown")
    assert waiting.seen_unix == NOW
    assert store.recall("log.example").split == waiting
    assert store.recall("other.example").split is None
    store.remember(LARGE)
    assert store.recall("log.example").split == waiting


def test_a_person_decides_for_what_is_remembered(store):
    store.remember(SMALL)
    split_id = store.keep_evidence(split_of(), NOW)
    store.decide(split_id, None, NOW + 1)
    assert store.recall("log.example") == SMALL
    with pytest.raises(UsageError, match="waits for a decision"):
        store.decide(split_id, None, NOW + 2)


def test_a_person_decides_for_what_was_shown(store):
    store.remember(LARGE)
    split_id = store.keep_evidence(split_of(), NOW)
    store.decide(split_id, replace(SMALL, release_seq=0, security_floor_seq=0), NOW)
    known = store.recall("log.example")
    assert (known.size, known.root) == (2, SMALL.root)
    assert (known.release_seq, known.security_floor_seq) == (6, 6)  # a floor is never lowered


def test_a_split_view_of_an_unknown_log_is_listed(store):
    store.keep_evidence(split_of("new.example"), NOW)
    assert [log.origin for log in store.logs()] == ["new.example"]


# Whose file it is --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620])
def test_a_file_that_is_open_to_others_is_refused(store, tmp_path, mode):
    store.remember(SMALL)
    (tmp_path / "state/logs.sqlite").chmod(mode)
    for use in (lambda: store.recall("x"), lambda: store.remember(LARGE), store.logs):
        with pytest.raises(ConfigurationError, match="open to others") as caught:
            use()
        assert "chmod 600" in caught.value.mend


def test_the_file_is_private_from_the_start(store, tmp_path):
    store.remember(SMALL)
    assert (tmp_path / "state/logs.sqlite").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to be another user")
def test_another_users_file_is_refused(store, tmp_path):
    store.remember(SMALL)
    os.chown(tmp_path / "state/logs.sqlite", 12345, 12345)
    with pytest.raises(ConfigurationError, match="another user"):
        store.recall("log.example")


def test_a_link_or_a_folder_in_its_place_is_refused(store, tmp_path):
    (tmp_path / "state").mkdir()
    path = tmp_path / "state/logs.sqlite"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        store.recall("x")
    assert not (tmp_path / "elsewhere").exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigurationError):
        store.recall("x")
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigurationError, match="no regular file"):
        store.recall("x")


def test_a_damaged_file_is_no_first_contact(store, tmp_path):
    store.remember(SMALL)
    path = tmp_path / "state/logs.sqlite"
    path.write_bytes(b"x" * 4096)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        store.recall("log.example")


# Around a verification ---------------------------------------------------------------------------


def test_a_verification_remembers_and_the_next_compares(store, world, at):
    policy = world.policy()
    verify_remembering(world.bundle(), at(), policy, store)
    known = store.recall(world.log_key.name)
    assert (known.size, known.release_seq, known.security_floor_seq) == (3, 7, 5)
    world.entries.append(b"more")
    newer = world.envelope(world.manifest(release_seq=8))
    assert appraise_remembering(world.bundle(newer), at(), policy, store).result is not None
    assert store.recall(world.log_key.name).release_seq == 8
    with pytest.raises(EvidenceRejected) as caught:
        verify_remembering(world.bundle(), at(), policy, store)
    assert caught.value.reason == "release_rollback"


@pytest.mark.parametrize("check", [verify_remembering, appraise_remembering])
def test_t56_a_split_view_is_evidence_on_disk_and_blocks(store, world, at, check):
    policy = world.policy()
    honest = world.bundle()
    verify_remembering(honest, at(), policy, store)
    fork = type(world)(entries=[b"another first entry", b"second entry"])
    for bundle in (fork.bundle(), honest):
        if check is appraise_remembering:
            assert check(bundle, at(), policy, store).rejection.reason == "split_view"
        else:
            with pytest.raises(SplitView):
                check(bundle, at(), policy, store)
    (evidence,) = store.split_views()
    assert evidence.remembered == world.checkpoint()
    assert evidence.shown == fork.checkpoint()
    assert evidence.seen_unix == NOW
    store.decide(evidence.id, None, NOW)
    verify_remembering(honest, at(), policy, store)


def test_a_refused_node_is_not_remembered(store, world, at):
    bundle = world.bundle()
    (evidence,) = bundle.evidence
    forged = replace(evidence, data=evidence.data[:-1] + bytes([evidence.data[-1] ^ 1]))
    with pytest.raises(EvidenceRejected):
        verify_remembering(replace(bundle, evidence=(forged,)), at(), world.policy(), store)
    assert store.recall(world.log_key.name).size == 0


def test_a_policy_without_a_log_needs_no_memory(tmp_path, world, at):
    river = world.manifest().reference().models["river"].hex()
    policy = world.policy(
        freshness='freshness = "nonce"',
        release="",
        log=f'[reference]\nmodels = {{ river = "{river}" }}',
        witnesses="",
    )
    nonce = bytes(range(32))
    store = LogStateStore(tmp_path / "never" / "made")
    verify_remembering(world.bundle(nonce=nonce), at(nonce=nonce), policy, store)
    assert not (tmp_path / "never").exists()
