"""`overspill trust release|witness|log`: from keys to a proof, as a maker of releases types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from overspill.cli.main import main
from overspill.config import child_environment
from overspill.errors import SplitView
from overspill.releasing.build import (
    LIBRARIES,
    engine_subject,
    measured_subjects,
    wheel_subject,
)
from overspill.releasing.files import (
    load_note_key,
    load_release_key,
    make_note_key,
    make_release_key,
)
from overspill.releasing.witness_http import submit
from overspill.releasing.witness_store import WitnessStore
from overspill.state.log_state import LogStateStore
from overspill.trust.log.checkpoint import open_checkpoint
from overspill.trust.log.note import ED25519, VerifierKey
from overspill.trust.release_envelope import Envelope
from overspill.trust.release_manifest import ReleaseManifest
from overspill.types.transparency import LogMemory

ORIGIN = "example.com/releases"


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def trust(tmp_path, monkeypatch, capfd):
    """``trust("release", "key", ...)`` in a folder and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVERSPILL_HOME", str(tmp_path / "home"))

    def run(*arguments: str | Path) -> Done:
        capfd.readouterr()
        code = main(["trust", *map(str, arguments)])
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def made_shop(tmp_path_factory) -> Path:
    """Two release keys, a log's key, three witnesses that know it, the policy that fits, and an
    unsigned release; made once, as every file is on the disk before it is believed."""
    folder = tmp_path_factory.mktemp("shop")
    publics = [make_release_key(folder / f"r{n}.pem").public_key() for n in (1, 2)]
    log = make_note_key(folder / "log.key", ORIGIN, ED25519).verifier
    (folder / "log.pub").write_text(str(log))
    lines = []
    for name in ("alice", "bob", "carol"):
        store = WitnessStore.create(folder / name, f"{name}.example/w")
        store.add_log(log)
        lines.append(f'{name} = ["{store.key.verifier}"]')
    keys = ", ".join(f'"{key.public_bytes_raw().hex()}"' for key in publics)
    (folder / "trust.toml").write_text(
        'version = 1\nmin_assurance = "SOFTWARE"\naccept = ["pinned-operator"]\n'
        f"[release]\nkeys = [{keys}]\nthreshold = 2\n"
        f'[log]\nkey = "{log}"\n[log.witnesses]\n' + "\n".join(lines) + "\n"
        f'[pinned-operator]\nkeys = ["{"ab" * 32}"]\n'
    )
    (folder / "river.gguf").write_bytes(b"weights")
    subjects = measured_subjects({"river": folder / "river.gguf"}, "dev")
    manifest = ReleaseManifest("1.0", 3, 2, 2**40, subjects)
    (folder / "rel.json").write_bytes(Envelope(manifest.encode(), ()).encode())
    return folder


@pytest.fixture
def shop(trust, made_shop, tmp_path) -> str:
    """A copy of it in the current folder; the log's key."""
    shutil.copytree(made_shop, tmp_path, dirs_exist_ok=True)
    return (tmp_path / "log.pub").read_text()


def built(trust, *more: str) -> Done:
    return trust("release", "build", "rel.json", "--model", "river=river.gguf", "--seq", "3", *more)


def appended(trust, *witnesses: str) -> Done:
    asked = [part for name in witnesses for part in ("--witness", name)]
    return trust("release", "append", "rel.json", "--log", "log", "--log-key", "log.key", *asked)


def test_keys_and_witnesses_are_made_with_their_public_halves_shown(trust, tmp_path):
    public = trust("release", "key", "r.pem").out.strip()
    assert load_release_key(tmp_path / "r.pem").public_key().public_bytes_raw().hex() == public
    log = trust("release", "key", "log.key", "--log", ORIGIN, "--json").json["public"]
    assert VerifierKey.parse(log) == load_note_key(tmp_path / "log.key").verifier
    vkey = trust("witness", "init", "w", "--name", "w.example").out.strip()
    assert VerifierKey.parse(vkey).name == "w.example"
    assert trust("witness", "init", "v", "--name", "v.example", "--json").json["vkey"]
    assert trust("witness", "add-log", "w", log).out == f"Witnessing {ORIGIN}.\n"
    assert trust("witness", "add-log", "w", log, "--origin", "x").out == "Witnessing x.\n"


def test_from_keys_to_a_proof(trust, shop):
    done = built(trust, "--floor", "2")
    assert done.code == 0, done.err
    assert "model/river" in done.out
    assert (
        trust("release", "sign", "rel.json", "--key", "r1.pem").out == "rel.json has 1 signature.\n"
    )
    short = trust("release", "verify", "rel.json", "--policy", "trust.toml")
    assert (short.code, short.out) == (6, "")
    assert "release_threshold" in short.err
    trust("release", "sign", "rel.json", "--key", "r1.pem", "--key", "r2.pem")
    one = appended(trust, "alice")
    assert one.code == 0, one.err
    few = trust("release", "verify", "rel.json", "--policy", "trust.toml")
    assert few.code == 6
    assert "witness_quorum" in few.err
    again = trust(
        *("release", "refresh", "rel.json", "--log", "log", "--log-vkey", shop),
        *("--witness", "alice", "--witness", "bob", "--json"),
    )
    assert again.json["cosigned"] == ["alice.example/w", "bob.example/w"]
    good = trust("release", "verify", "rel.json", "--policy", "trust.toml")
    assert good.code == 0, good.err
    assert "cosigned by alice, bob" in good.out
    facts = trust("release", "verify", "rel.json", "--policy", "trust.toml", "--json").json
    assert facts["verified"]
    assert facts["manifest"]["release_seq"] == 3
    later = ("release", "verify", "rel.json", "--policy", "trust.toml", "--at", "2200-01-01")
    assert "release_expired" in trust(*later).err


def test_a_witness_cosigns_a_folder_on_this_machine(trust, shop, tmp_path):
    appended(trust)
    done = trust("witness", "cosign", "carol", "log", shop)
    assert done.code == 0, done.err
    note = (tmp_path / "log/checkpoint").read_bytes()
    signed = open_checkpoint(note, ORIGIN, VerifierKey.parse(shop))
    assert [line.name for line in signed.note.signatures] == [ORIGIN, "carol.example/w"]


def test_a_witness_does_not_cosign_a_fork_on_this_machine(trust, shop, tmp_path):
    appended(trust, "alice")
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "river.gguf").write_bytes(b"other weights")
    built(trust)
    failed = appended(trust, "alice")
    assert failed.code == 6
    assert "alice.example/w did not cosign" in failed.out
    done = trust("witness", "cosign", "alice", "log", shop)
    assert done.code == 6
    assert "witness_refused" in done.err


def test_measurements_adapters_and_built_files_go_into_a_release(trust, shop, tmp_path):
    (tmp_path / "tuned.gguf").write_bytes(b"adapter")
    with zipfile.ZipFile(tmp_path / "overspill-9-py3-none-any.whl", "w") as wheel:
        wheel.writestr("overspill/__init__.py", "one")
        wheel.writestr("overspill/data.json", "{}")
        wheel.writestr("overspill_cloud/app.py", "two")
    library = tmp_path / "llama_cpp/lib/libllama.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"library")
    done = built(
        trust,
        *("--adapter", "river/tuned=tuned.gguf", "--wheel", "overspill-9-py3-none-any.whl"),
        *("--engine", "llama_cpp", "--measurement", "sev-snp/measurement=" + "AB" * 48),
        *("--measurement", "sev-snp/measurement=" + "cd" * 48, "--json"),
    )
    assert done.code == 0, done.err
    manifest = ReleaseManifest.parse(Envelope.parse((tmp_path / "rel.json").read_bytes()).payload)
    names = {f"{s.role}/{s.name}" for s in manifest.subjects}
    assert {"adapter/river/tuned", "wheel/overspill-9-py3-none-any.whl"} <= names
    assert len([name for name in names if name.startswith(("wheel/", "engine/"))]) == 2
    assert manifest.measurements == {"sev-snp": {"measurement": ("ab" * 48, "cd" * 48)}}
    assert done.json["manifest"]["version"] == manifest.version


def test_a_wheel_and_what_it_installs_have_one_digest(tmp_path):
    """What a node measures of the installed files is what the archive says beforehand."""
    folder = tmp_path / "site/llama_cpp"
    with zipfile.ZipFile(tmp_path / "llama.whl", "w") as wheel:
        for name in ("lib/libllama.so", "lib/libggml.so", "libz.so", "x.py"):
            wheel.writestr(f"llama_cpp/{name}", name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    assert engine_subject(tmp_path / "llama.whl").measured == engine_subject(folder).measured
    assert ".so" in LIBRARIES


def test_the_installed_packages_are_measured_as_their_wheel_would_be(
    tmp_path, repository, monkeypatch
):
    import overspill
    from overspill_cloud import measure

    for root in ("sdk/overspill", "cloud/overspill_cloud"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / root, tmp_path / "site" / Path(root).name, ignore=ignored)
    with zipfile.ZipFile(tmp_path / "built.whl", "w") as wheel:
        for path in (tmp_path / "site").rglob("*"):
            wheel.write(path, path.relative_to(tmp_path / "site").as_posix())
    monkeypatch.setattr(overspill, "__file__", str(tmp_path / "site/overspill/__init__.py"))
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "site/overspill_cloud/measure.py"))
    (installed,) = (one for one in measured_subjects({}, "dev") if one.role == "wheel")
    assert wheel_subject(tmp_path / "built.whl").measured == installed.measured


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("release", "build", "x", "--model", "river", "--seq", "1"), "NAME=VALUE"),
        (("release", "build", "x", "--model", "a=absent", "--seq", "1"), "absent"),
        (
            ("release", "build", "x", "--model", "a=river.gguf", "--seq", "1", "--floor", "2"),
            "floor",
        ),
        (
            (
                "release",
                "build",
                "x",
                "--model",
                "a=river.gguf",
                "--seq",
                "1",
                "--measurement",
                "t/c=xx",
            ),
            "no release",
        ),
        (
            (
                "release",
                "build",
                "x",
                "--model",
                "a=river.gguf",
                "--seq",
                "1",
                "--wheel",
                "river.gguf",
            ),
            "no wheel",
        ),
        (
            ("release", "build", "x", "--model", "a=river.gguf", "--seq", "1", "--engine", "empty"),
            "no library",
        ),
        (
            (
                "release",
                "build",
                "x",
                "--model",
                "a=river.gguf",
                "--seq",
                "1",
                "--adapter",
                "m/a=no",
            ),
            "cannot be read",
        ),
        (("release", "sign", "absent", "--key", "r1.pem"), "absent"),
        (("release", "sign", "river.gguf", "--key", "r1.pem"), "release_malformed"),
        (("release", "key", "r1.pem"), "there already"),
        (("release", "key", "new.key", "--log", "a b"), "no name"),
        (("release", "refresh", "rel.json", "--log", "log", "--log-vkey", "x"), "--log-vkey"),
        (("release", "verify", "rel.json", "--policy", "absent.toml"), "absent.toml"),
        (("release", "verify", "rel.json", "--policy", "trust.toml", "--at", "x"), "no time"),
        (("witness", "init", "alice", "--name", "again"), "there already"),
        (("witness", "add-log", "alice", "nonsense"), "no log's key"),
        (("witness", "add-log", "absent", "WITNESS"), "no log's key"),
        (("witness", "serve", "absent"), "no key"),
        (("witness", "serve", "alice", "--listen", "nowhere"), "no address"),
        (("log", "decide", "x", "--keep", "both"), "--keep"),
        (("log", "decide", "x", "--keep", "shown"), "waits for a decision"),
    ],
)
def test_mistakes_are_one_line(trust, shop, tmp_path, arguments, named):
    (tmp_path / "empty").mkdir()
    witness = (tmp_path / "trust.toml").read_text().split('alice = ["')[1].split('"')[0]
    done = trust(*(witness if part == "WITNESS" else part for part in arguments))
    assert done.code in (2, 3, 6), done.out
    assert named in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err


def test_a_policy_without_a_release_verifies_none(trust, shop, tmp_path):
    (tmp_path / "plain.toml").write_text(
        'version = 1\nmin_assurance = "SOFTWARE"\naccept = ["pinned-operator"]\n'
        f'freshness = "nonce"\n[reference]\nmodels = {{ river = "{"ab" * 32}" }}\n'
        f'[pinned-operator]\nkeys = ["{"ab" * 32}"]\n'
    )
    done = trust("release", "verify", "rel.json", "--policy", "plain.toml")
    assert done.code == 2
    assert "demands no release" in done.err


def test_a_witness_serves_until_it_is_told_to_stop(trust, shop, tmp_path):
    command = [sys.executable, "-m", "overspill.cli.main", "trust", "witness", "serve", "alice"]
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment({"OVERSPILL_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}),
    )
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        started = json.loads("".join(lines))
        assert submit(started["url"], b"nonsense").status == 400
        done = appended(trust, f"{started['vkey']}={started['url']}")
        assert "cosigned by alice.example/w" in done.out
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


# What a client has seen --------------------------------------------------------------------------


def test_status_shows_logs_and_a_person_decides(trust, shop, tmp_path):
    assert trust("log", "status").out == "No log was seen yet.\n"
    appended(trust, "alice")
    shown = (tmp_path / "log/checkpoint").read_bytes()
    store = LogStateStore(tmp_path / "home/state/logs.sqlite")
    store.remember(LogMemory(ORIGIN, 5, bytes(32), b"old", b"edge", 4, 2))
    split = SplitView("7", origin=ORIGIN, remembered=b"old", shown=shown)
    split_id = store.keep_evidence(split, 1_800_000_000)
    text = trust("log", "status").out
    for part in (
        ORIGIN,
        "5 entries",
        "newest release 4",
        f"SPLIT VIEW {split_id}",
        "alice.example/w",
    ):
        assert part in text
    (listed,) = trust("log", "status", "--json").json["logs"]
    assert listed["split"]["id"] == split_id
    done = trust("log", "decide", split_id, "--keep", "shown", "--json")
    assert done.json == {"decided": split_id, "keep": "shown"}
    known = store.recall(ORIGIN)
    assert (known.size, known.checkpoint, known.split) == (1, shown, None)
    assert (known.release_seq, known.security_floor_seq) == (4, 2)
    again = store.keep_evidence(SplitView("7", origin=ORIGIN, remembered=b"a", shown=b"b"), 1)
    assert "remembered history counts" in trust("log", "decide", again, "--keep", "remembered").out
    assert store.recall(ORIGIN).size == 1


def test_a_state_file_that_others_may_write_is_refused(trust, tmp_path):
    store = LogStateStore(tmp_path / "home/state/logs.sqlite")
    store.remember(LogMemory(ORIGIN, 5, bytes(32)))
    os.chmod(tmp_path / "home/state/logs.sqlite", 0o666)
    done = trust("log", "status")
    assert done.code == 2
    assert "open to others" in done.err
