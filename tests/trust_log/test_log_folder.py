"""A log as static files: it grows by any steps to the same tree, and survives a crash anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from overspill.errors import BusyError, ConfigurationError, LogInvalid, OverspillError, UsageError
from overspill.releasing import files, log_folder
from overspill.releasing.cosigning import WitnessEndpoint, cosign_checkpoint, witness_endpoint
from overspill.releasing.log_folder import LogFolder
from overspill.releasing.publish import append_release, proof_path, refresh_release
from overspill.releasing.witness_http import serving_witness
from overspill.releasing.witness_store import WitnessStore
from overspill.trust.log.cosignature import LogPolicy, Witness, open_cosigned
from overspill.trust.log.merkle import (
    hashes_of,
    leaf_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from overspill.trust.log.note import COSIGNATURE_V1, ED25519
from overspill.trust.log.proof import TlogProof
from overspill.trust.log.tiles import Edge, TileId, tiles_of
from overspill.trust.log.witness import SIZE_TYPE, Answer

ORIGIN = "releases.example/log"


@pytest.fixture
def signer(key_of):
    return key_of(ORIGIN, ED25519)


@pytest.fixture
def log(tmp_path, signer) -> LogFolder:
    return LogFolder(tmp_path / "log", signer.verifier)


def entries(first: int, count: int) -> list[bytes]:
    return [f"entry {number}".encode() for number in range(first, first + count)]


def root_of(count: int) -> bytes:
    return tree_root(count, hashes_of([leaf_hash(entry) for entry in entries(0, count)]))


def test_a_log_grows_by_any_steps_to_the_same_tree(log, signer):
    size = 0
    for count in (1, 2, 0, 252, 1, 1, 300, 5):
        signed = log.append(entries(size, count), signer)
        size += count
        assert (signed.size, signed.root) == (size, root_of(size))
    for tile in tiles_of(size):
        if tile.level == 0:
            assert list(log.entries(tile)) == entries(tile.index * 256, tile.width)
    for index in (0, 255, 256, size - 1):
        proof = log.prove(index)
        verify_inclusion(leaf_hash(entries(index, 1)[0]), index, size, proof.path, root_of(size))
        assert log.find(entries(index, 1)[0]) == index
    assert log.find(b"another") is None
    for old in (1, 200, 256, size):
        verify_consistency(old, size, log.consistency(old), root_of(old), root_of(size))
    assert log.consistency(0) == ()


def test_an_empty_folder_is_no_log_yet(log):
    assert log.checkpoint() is None
    assert log.find(b"entry") is None
    with pytest.raises(ConfigurationError, match="no log"):
        log.prove(0)


def test_partial_tiles_may_be_removed_once_the_whole_is_there(log, signer, tmp_path):
    log.append(entries(0, 200), signer)
    log.append(entries(200, 100), signer)
    for partial in (tmp_path / "log").rglob("*.p"):
        if partial.name.startswith("000") and "tile/1" not in partial.as_posix():
            for file in partial.iterdir():
                file.unlink()
    assert log.read_tile(TileId(0, 0, 200)) == log.read_tile(TileId(0, 0, 256))[: 32 * 200]
    assert list(log.entries(TileId(0, 0, 200))) == entries(0, 200)


class PowerCut(Exception):
    """The machine stops here."""


def test_after_a_crash_at_any_write_the_log_goes_on(tmp_path, signer, monkeypatch):
    """Whatever was written beyond the checkpoint is written again, even with other entries."""
    written: list[Path] = []
    real = files.write_atomically

    for stop in range(12):
        log = LogFolder(tmp_path / f"log{stop}", signer.verifier)
        log.append(entries(0, 255), signer)
        left = [stop]

        def cut(path: Path, data: bytes, left: list[int] = left) -> None:
            if left[0] == 0:
                raise PowerCut
            left[0] -= 1
            written.append(path)
            real(path, data)

        monkeypatch.setattr(log_folder, "write_atomically", cut)
        try:
            log.append([b"lost", b"lost too"], signer)
            survived = True
        except PowerCut:
            survived = False
            assert log.checkpoint().size == 255
        monkeypatch.setattr(log_folder, "write_atomically", real)
        if survived:
            break
        signed = log.append(entries(255, 3), signer)
        assert (signed.size, signed.root) == (258, root_of(258))
        assert list(log.entries(TileId(0, 1, 2))) == entries(256, 2)
    assert survived
    assert written[-1].name == "checkpoint"


def all_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize("damage", ["cut", "removed", "changed"])
def test_a_damaged_log_is_a_typed_error_and_never_appended_to(tmp_path, signer, damage):
    reference = LogFolder(tmp_path / "good", signer.verifier)
    reference.append(entries(0, 3), signer)
    for number, good in enumerate(all_files(tmp_path / "good")):
        log = LogFolder(tmp_path / f"log{number}", signer.verifier)
        log.append(entries(0, 3), signer)
        file = tmp_path / f"log{number}" / good.relative_to(tmp_path / "good")
        data = file.read_bytes()
        if damage == "removed":
            file.unlink()
        else:
            file.write_bytes(data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
        before = {path: path.read_bytes() for path in all_files(tmp_path / f"log{number}")}
        with pytest.raises(LogInvalid):
            log.append(entries(3, 1), signer)
        checkpoint = tmp_path / f"log{number}/checkpoint"
        assert checkpoint.exists() == (checkpoint in before)
        if checkpoint in before:
            assert checkpoint.read_bytes() == before[checkpoint]


def test_one_writer_at_a_time(log, signer, tmp_path, monkeypatch):
    log.append(entries(0, 1), signer)
    monkeypatch.setattr(log_folder, "_LOCK_TIMEOUT_S", 0.05)
    with FileLock(tmp_path / "log/.lock"), pytest.raises(BusyError, match="Another process"):
        log.append(entries(1, 1), signer)
    assert log.append(entries(1, 1), signer).size == 2


def test_a_folder_that_cannot_be_written(tmp_path, signer):
    (tmp_path / "file").write_text("in the way")
    log = LogFolder(tmp_path / "file/log", signer.verifier)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        log.append(entries(0, 1), signer)


def test_an_entry_that_is_too_long_changes_nothing(log, signer):
    with pytest.raises(LogInvalid) as caught:
        log.append([bytes(1 << 16)], signer)
    assert caught.value.reason == "entry_too_long"
    assert log.checkpoint() is None


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        files.write_atomically(target, b"data")
    assert os.listdir(tmp_path) == ["target"]


# Witnesses ---------------------------------------------------------------------------------------


@pytest.fixture
def witness(tmp_path, signer) -> WitnessStore:
    store = WitnessStore.create(tmp_path / "witness", "witness.example/w1")
    store.add_log(signer.verifier)
    return store


def policy_of(signer, *stores: WitnessStore) -> LogPolicy:
    keys = tuple(Witness(f"operator {n}", s.key.verifier) for n, s in enumerate(stores))
    return LogPolicy(ORIGIN, signer.verifier, keys, len(keys))


def test_a_release_is_logged_witnessed_and_proven(log, signer, witness, tmp_path, world):
    release = tmp_path / "release.json"
    release.write_bytes(world.envelope().encode())
    endpoint = witness_endpoint(str(tmp_path / "witness"))
    done = append_release(release, log, signer, [endpoint])
    assert done.cosigned == ("witness.example/w1",)
    proof = TlogProof.parse(proof_path(release).read_bytes())
    opened = open_cosigned(proof.checkpoint, policy_of(signer, witness), 2**40)
    verify_inclusion(leaf_hash(release.read_bytes()), 0, 1, proof.path, opened.signed.root)
    Edge.decode(proof.extra).check(opened.signed.root)
    append_release(release, log, signer, [endpoint])
    assert log.checkpoint().size == 1  # the same release is logged once


def test_a_renewed_proof_has_a_newer_cosignature(log, signer, witness, tmp_path, world):
    release = tmp_path / "release.json"
    release.write_bytes(world.envelope().encode())
    now = [1000]
    clocked = WitnessStore(tmp_path / "witness", clock=lambda: now[0])
    endpoint = WitnessEndpoint(clocked.key.verifier, clocked.add_checkpoint)
    append_release(release, log, signer, [endpoint])
    now[0] = 2000
    refresh_release(release, log, [endpoint])
    checkpoint = TlogProof.parse(proof_path(release).read_bytes()).checkpoint
    opened = open_cosigned(checkpoint, policy_of(signer, clocked), 3000)
    assert opened.newest == 2000
    assert len(opened.signed.note.signatures) == 2  # in place of the older one


def test_a_release_that_is_not_in_the_log_has_no_proof(log, signer, tmp_path, world):
    log.append(entries(0, 1), signer)
    release = tmp_path / "release.json"
    release.write_bytes(world.envelope().encode())
    with pytest.raises(UsageError, match="not in the log"):
        refresh_release(release, log, [])
    with pytest.raises(UsageError, match="cannot be read"):
        refresh_release(tmp_path / "absent", log, [])


def test_a_witness_that_is_behind_catches_up(log, signer, witness, tmp_path):
    endpoint = witness_endpoint(str(tmp_path / "witness"))
    log.append(entries(0, 300), signer)
    assert cosign_checkpoint(log, [endpoint]).cosigned
    log.append(entries(300, 300), signer)
    log.append(entries(600, 1), signer)
    assert cosign_checkpoint(log, [endpoint]).cosigned


def test_over_http_too(log, signer, witness):
    log.append(entries(0, 2), signer)
    with serving_witness(witness, "127.0.0.1:0") as prefix:
        done = cosign_checkpoint(log, [witness_endpoint(f"{witness.key.verifier}={prefix}")])
    assert done.cosigned == ("witness.example/w1",)


def test_one_witness_that_fails_stops_no_other(log, signer, witness, tmp_path, key_of):
    """Down, refusing, answering nonsense, signing for another, or knowing more than the log."""
    log.append(entries(0, 2), signer)
    other = key_of("other.example/w", COSIGNATURE_V1).verifier
    good = witness_endpoint(str(tmp_path / "witness"))
    foreign = good.ask

    def answering(*answer) -> WitnessEndpoint:
        return WitnessEndpoint(other, lambda body: Answer(*answer))

    failing = [
        witness_endpoint(f"{other}=http://127.0.0.1:1"),
        answering(403, b"not you"),
        answering(200, b"nonsense"),
        answering(200, b""),
        answering(409, b"99\n", SIZE_TYPE),
        answering(409, b"1\n", SIZE_TYPE),
        answering(409, b"\xff\n", SIZE_TYPE),
        WitnessEndpoint(other, foreign),
    ]
    done = cosign_checkpoint(log, [*failing, good])
    assert done.cosigned == ("witness.example/w1",)
    assert len(done.failed) == len(failing)
    assert "log_rolled_back" in done.failed[4][1]


def test_nothing_is_cosigned_before_there_is_a_log(log, witness, tmp_path):
    done = cosign_checkpoint(log, [witness_endpoint(str(tmp_path / "witness"))])
    assert not done.cosigned
    assert "nothing to cosign" in done.failed[0][1]


@pytest.mark.parametrize("kind", ["no key", "a log's key", "no folder"])
def test_a_witness_that_is_none(tmp_path, signer, kind):
    text = {
        "no key": "nonsense=http://127.0.0.1:1",
        "a log's key": f"{signer.verifier}=http://127.0.0.1:1",
        "no folder": str(tmp_path / "absent"),
    }[kind]
    with pytest.raises(OverspillError):
        witness_endpoint(text)


# Keys --------------------------------------------------------------------------------------------


def test_key_files_are_made_once_and_private(tmp_path):
    made = files.make_release_key(tmp_path / "release.pem")
    loaded = files.load_release_key(tmp_path / "release.pem")
    assert loaded.private_bytes_raw() == made.private_bytes_raw()
    key = files.make_note_key(tmp_path / "log.key", ORIGIN, ED25519)
    assert files.load_note_key(tmp_path / "log.key") == key
    for name in ("release.pem", "log.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="there already"):
        files.make_release_key(tmp_path / "release.pem")
    with pytest.raises(UsageError, match="there already"):
        files.make_note_key(tmp_path / "log.key", ORIGIN, ED25519)


def test_a_release_key_is_an_ed25519_key(tmp_path):
    with pytest.raises(ConfigurationError, match="no key"):
        files.load_release_key(tmp_path / "absent.pem")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"nonsense", pem):
        path = tmp_path / "other.pem"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigurationError, match="no Ed25519"):
            files.load_release_key(path)
