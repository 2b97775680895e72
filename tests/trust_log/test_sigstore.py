"""Sigstore bundles and TUF, by their libraries: others' vectors, and a repository of our own."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from overspill.cli.main import main
from overspill.errors import (
    ConfigurationError,
    EvidenceRejected,
    LogInvalid,
    MissingExtra,
    TransportError,
)
from overspill.releasing.sigstore_bundle import SigstoreSigner, verify_sigstore
from overspill.releasing.tuf_source import fetch_by_tuf

BEACON = SigstoreSigner(
    "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon"
    "/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main",
    "https://token.actions.githubusercontent.com",
)


def production_root() -> Path:
    """The trusted root that the library ships."""
    sigstore = pytest.importorskip("sigstore")
    store = Path(sigstore.__file__).parent / "_store"
    return store / "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev" / "trusted_root.json"


def load(folder: Path) -> tuple[bytes, bytes, Path]:
    """A vector's bundle, what it is said to sign, and its trusted root."""
    data = (folder / "bundle.sigstore.json").read_bytes()
    bundle = json.loads(data)
    payload = (folder.parent / "a.txt").read_bytes()
    if (folder / "artifact").exists():
        payload = (folder / "artifact").read_bytes()
    if "dsseEnvelope" in bundle:
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    root = folder / "trusted_root.json"
    return data, payload, root if root.exists() else production_root()


def test_others_bundles_are_judged_as_they_say(vectors: Path):
    """But those with a bare key: the library verifies certificates, so they are refused."""
    judged: dict[str, bool] = {}
    reasons: set[str] = set()
    for folder in sorted(path for path in (vectors / "sigstore").iterdir() if path.is_dir()):
        data, payload, root = load(folder)
        try:
            verify_sigstore(data, payload, BEACON, root)
        except EvidenceRejected as error:
            judged[folder.name], reasons = False, reasons | {error.reason}
        else:
            judged[folder.name] = True
    assert len(judged) == 17
    assert reasons <= {"sigstore_rejected", "sigstore_malformed"}
    managed = {name for name in judged if name.startswith("managed-key")}
    assert not any(judged[name] for name in managed)
    expected = {name: not name.endswith("_fail") for name in judged.keys() - managed}
    assert {name: judged[name] for name in expected} == expected


@pytest.mark.parametrize("kind", ["happy-path-intoto-in-dsse-v3", "happy-path-v0.3"])
def test_a_bundle_counts_for_its_signer_and_payload_alone(vectors: Path, kind):
    data, payload, root = load(vectors / "sigstore" / kind)
    verify_sigstore(data, payload, BEACON, root)
    for signer in (SigstoreSigner("x", BEACON.issuer), SigstoreSigner(BEACON.identity, "x")):
        with pytest.raises(EvidenceRejected) as caught:
            verify_sigstore(data, payload, signer, root)
        assert caught.value.reason == "sigstore_rejected"
    with pytest.raises(EvidenceRejected) as caught:
        verify_sigstore(data, payload + b"x", BEACON, root)
    assert caught.value.reason in ("sigstore_payload", "sigstore_rejected")
    with pytest.raises(EvidenceRejected) as caught:
        verify_sigstore(b"{}", payload, BEACON, root)
    assert caught.value.reason == "sigstore_malformed"


def test_a_trusted_root_that_is_none(tmp_path):
    pytest.importorskip("sigstore")
    (tmp_path / "root.json").write_text("{}")
    for name in ("root.json", "absent.json"):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            verify_sigstore(b"{}", b"", BEACON, tmp_path / name)


def test_without_the_extra_it_is_named(monkeypatch, tmp_path):
    for name in ("sigstore.errors", "tuf.api.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra) as caught:
        verify_sigstore(b"{}", b"", BEACON, tmp_path)
    assert caught.value.extra == "sigstore"
    with pytest.raises(MissingExtra):
        fetch_by_tuf("x", "http://127.0.0.1:1", tmp_path, tmp_path)


# TUF ---------------------------------------------------------------------------------------------


class QuietHandler(SimpleHTTPRequestHandler):
    """Static files, and no lines on stderr."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def publish(folder: Path, version: int, content: bytes, key) -> None:
    """A TUF repository of one key with one file in it."""
    from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    (folder / "targets").mkdir(exist_ok=True)
    (folder / "targets" / "trust.toml").write_bytes(content)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    root = Root(version=1, expires=expires, consistent_snapshot=False)
    for role in ("root", "timestamp", "snapshot", "targets"):
        root.add_key(key.public_key, role)
    target = TargetFile.from_data("trust.toml", content)
    parts = {
        "root": root,
        "targets": Targets(version=version, expires=expires, targets={"trust.toml": target}),
        "snapshot": Snapshot(
            version=version, expires=expires, meta={"targets.json": MetaFile(version)}
        ),
        "timestamp": Timestamp(version=version, expires=expires, snapshot_meta=MetaFile(version)),
    }
    for name, signed in parts.items():
        metadata = Metadata(signed)
        metadata.sign(key)
        metadata.to_file(str(folder / "metadata" / f"{name}.json"))


@pytest.fixture
def repository_of_one_file(tmp_path) -> Iterator[tuple[str, Path, object]]:
    """Its URL, its folder and its key."""
    pytest.importorskip("tuf")
    from securesystemslib.signer import CryptoSigner

    key = CryptoSigner.generate_ed25519()
    folder = tmp_path / "repository"
    publish(folder, 1, b"version = 1\n", key)
    handler = partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder, key
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_newest_file_is_fetched_and_never_an_older_one(repository_of_one_file, tmp_path):
    url, folder, key = repository_of_one_file
    root, cache = folder / "metadata/root.json", tmp_path / "cache"
    assert fetch_by_tuf("trust.toml", url, root, cache) == b"version = 1\n"
    publish(folder, 2, b"version = 2\n", key)
    assert fetch_by_tuf("trust.toml", url + "/", root, cache) == b"version = 2\n"
    publish(folder, 1, b"version = 1\n", key)
    with pytest.raises(LogInvalid) as caught:
        fetch_by_tuf("trust.toml", url, root, cache)
    assert caught.value.reason == "tuf_rejected"


def test_what_nobody_signed_is_refused(repository_of_one_file, tmp_path):
    url, folder, _ = repository_of_one_file
    root = folder / "metadata/root.json"
    (folder / "targets/trust.toml").write_bytes(b"version = 6\n")
    for name in ("trust.toml", "other.toml"):
        with pytest.raises(LogInvalid) as caught:
            fetch_by_tuf(name, url, root, tmp_path / "cache")
        assert caught.value.reason == "tuf_rejected"


def test_a_repository_that_is_down_or_a_root_that_is_absent(repository_of_one_file, tmp_path):
    _, folder, _ = repository_of_one_file
    root = folder / "metadata/root.json"
    with pytest.raises(TransportError, match="cannot be reached"):
        fetch_by_tuf("trust.toml", "http://127.0.0.1:1", root, tmp_path / "cache")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        fetch_by_tuf("trust.toml", "http://127.0.0.1:1", tmp_path / "absent", tmp_path / "cache")


def test_from_the_command_line(repository_of_one_file, tmp_path, monkeypatch, capsys):
    url, folder, _ = repository_of_one_file
    monkeypatch.setenv("OVERSPILL_HOME", str(tmp_path / "home"))
    root, out = folder / "metadata/root.json", tmp_path / "out.toml"
    command = ["trust", "fetch", "trust.toml", "--tuf", url, "--root", str(root)]
    assert main([*command, "--out", str(out)]) == 0
    assert out.read_bytes() == b"version = 1\n"
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    assert (tmp_path / "trust.toml").exists()
    assert "Wrote trust.toml" in capsys.readouterr().out
