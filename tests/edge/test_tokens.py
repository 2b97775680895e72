"""The token file: what is kept, what is refused, who may edit it at the same time."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ConfigurationError, UsageError
from overspill_edge.tokens import Scope, TokenStore, parse_scopes, parse_ttl_s


@pytest.fixture
def store(tmp_path):
    return TokenStore(tmp_path / "state" / "tokens.json")


def test_only_a_digest_is_kept_in_a_private_file(store):
    token, record = store.issue("notes", (Scope.INFER,))
    text = store.path.read_text()
    secret = token.removeprefix(f"ovs_{record.id}_")
    assert secret not in text
    assert len(secret) >= 43
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert store.verify(token) == record


def test_a_token_ends_with_its_time(tmp_path):
    now = [1000.0]
    store = TokenStore(tmp_path / "t.json", clock=lambda: now[0])
    token, record = store.issue("notes", (Scope.INFER,), 60)
    assert record.expires_unix == 1060
    now[0] = 1059.9
    assert store.verify(token) == record
    now[0] = 1060.0
    assert store.verify(token) is None
    assert store.records() == (record,)


def test_another_store_sees_each_change(store):
    reader = TokenStore(store.path)
    assert reader.records() == ()
    token, record = store.issue("notes", (Scope.INFER, Scope.MODELS))
    assert reader.verify(token) == record
    other, _ = store.issue("mail", (Scope.ADMIN,))
    assert len(reader.records()) == 2
    store.revoke(record.id)
    assert reader.verify(token) is None
    assert reader.verify(other) is not None


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "=", lambda t: t.upper(), str.swapcase]
)
def test_an_altered_token_is_none(store, change):
    token, _ = store.issue("notes", (Scope.INFER,))
    assert store.verify(change(token)) is None


@given(st.text(max_size=80))
def test_no_other_text_is_a_token(text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        store = TokenStore(Path(folder) / "t.json")
        assert store.verify(text) is None


def test_writers_at_the_same_time_lose_nothing(store):
    script = (
        "import pathlib, sys\n"
        "from overspill_edge.tokens import Scope, TokenStore\n"
        "store = TokenStore(pathlib.Path(sys.argv[1]))\n"
        "for _ in range(10): store.issue('many', (Scope.INFER,))\n"
    )
    command = [sys.executable, "-c", script, str(store.path)]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len({record.id for record in store.records()}) == 30


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": 2, "tokens": []}',
        '{"version": 1, "tokens": [{}]}',
        '{"version": 1, "tokens": [{"id": "a", "sha256": "zz", "app": "b", "scopes": [],'
        ' "created": "2026-01-01T00:00:00Z", "expires": null}]}',
        '{"version": 1, "tokens": [{"id": "a", "sha256": "00", "app": "b", "scopes": ["root"],'
        ' "created": "2026-01-01T00:00:00Z", "expires": null}]}',
    ],
)
def test_a_broken_file_is_an_error_that_names_it_and_not_an_open_door(store, text):
    token, _ = store.issue("notes", (Scope.INFER,))
    store.path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"tokens\.json"):
        store.verify(token)
    with pytest.raises(ConfigurationError):
        store.issue("mail", (Scope.INFER,))
    assert store.path.read_text() == text


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_a_file_that_others_may_write_is_not_believed(store):
    token, _ = store.issue("notes", (Scope.INFER,))
    store.path.chmod(0o622)
    with pytest.raises(ConfigurationError, match="chmod"):
        store.verify(token)


@pytest.mark.parametrize("app", ["", "two words", "a/b", "x" * 65, "line\nbreak", "-x"])
def test_an_app_has_a_plain_name(store, app):
    with pytest.raises(UsageError):
        store.issue(app, (Scope.INFER,))


def test_revoking_what_is_not_there_is_a_usage_error(store):
    with pytest.raises(UsageError, match="token list"):
        store.revoke("abc")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43200), ("30d", 2592000), ("2w", 1209600)],
)
def test_a_length_of_time(text, seconds):
    assert parse_ttl_s(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "0d", "1.5h", "1y", "1d2h"])
def test_no_length_of_time(text):
    with pytest.raises(UsageError, match="30d"):
        parse_ttl_s(text)


def test_scopes_are_named_or_refused():
    assert parse_scopes("models, infer") == (Scope.INFER, Scope.MODELS)
    for wrong in ("", "infer,root", "all"):
        with pytest.raises(UsageError, match="infer, models, admin"):
            parse_scopes(wrong)


def test_the_file_is_versioned_json(store):
    store.issue("notes", (Scope.INFER,), 60)
    document = json.loads(store.path.read_text())
    assert document["version"] == 1
    assert set(document["tokens"][0]) == {"id", "app", "scopes", "expires", "sha256", "created"}
