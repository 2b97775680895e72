"""How many nodes a load needs, and what a doctor finds: arithmetic and real looks."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from overspill.errors import UsageError
from overspill_cloud.cli import app
from overspill_cloud.ops.capacity import Level, Load, levels_from, plan, streams_at
from overspill_cloud.store import FILE_NAME, SCHEMA_VERSION, Store, open_backend
from overspill_cloud.store.schema import upgrade

LEVELS = [Level(1, 50.0), Level(4, 160.0), Level(16, 240.0)]


@pytest.mark.parametrize(
    ("rate", "streams"), [(51, 0), (50, 1), (40, 4), (20, 10), (15, 16), (1, 16)]
)
def test_the_most_streams_that_are_still_fast_enough(rate: float, streams: int) -> None:
    assert streams_at(LEVELS, rate) == streams


def test_a_plan_is_arithmetic_that_can_be_followed() -> None:
    load = Load(1000, tokens_per_s=15, prompt_tokens=600, answer_tokens=150)
    made = plan(load, LEVELS, kv_tokens=16 * 1024)
    assert (made.by_speed, made.by_kv) == (16, 21)
    assert made.streams_per_node == 11  # 0.7 of 16
    assert made.nodes == 91 + 1
    assert made.requests_per_s == 100
    tight = plan(load, LEVELS, kv_tokens=3000)
    assert (tight.by_kv, tight.streams_per_node) == (4, 2)


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(UsageError, match=r"50\.0 tokens/s"):
        plan(Load(1, tokens_per_s=60), LEVELS, kv_tokens=None)
    with pytest.raises(UsageError, match="KV"):
        plan(Load(1), LEVELS, kv_tokens=100)
    for bad in ({"streams": 0}, {"streams": 1, "use_at_most": 0.0}, {"streams": 1, "spare": -1}):
        with pytest.raises(UsageError):
            Load(**bad)  # type: ignore[arg-type]


@given(
    streams=st.integers(1, 10**6),
    rate=st.floats(0.5, 49.0),
    kv=st.none() | st.integers(10**4, 10**7),
    use=st.floats(0.1, 1.0),
)
def test_planned_nodes_carry_the_load_and_no_node_is_over_its_bounds(
    streams: int, rate: float, kv: int | None, use: float
) -> None:
    made = plan(Load(streams, tokens_per_s=rate, use_at_most=use), LEVELS, kv_tokens=kv)
    assert (made.nodes - 1) * made.streams_per_node >= streams
    assert made.streams_per_node <= made.by_speed
    assert made.by_kv is None or made.streams_per_node <= made.by_kv


def test_the_benchs_figures_are_read() -> None:
    figures = [
        {"name": "engine.streams16.q05.tokens_per_s", "value": 262.0},
        {"name": "engine.stream1.q05.tokens_per_s", "value": 45.0},
        {"name": "engine.streams16.q05.vs_llama_server", "value": 1.1},
        {"name": "engine.streams16.tiny.tokens_per_s", "value": 9.0},
        {"name": "engine.streams4.q05.tokens_per_s", "value": None},
    ]
    assert levels_from({"figures": figures}, "q05") == [
        Level(16, 262.0),
        Level(1, 45.0),
    ]
    with pytest.raises(UsageError):
        levels_from({"figures": figures}, "other")


def test_a_plan_measures_and_can_be_made_again_from_what_it_measured(tmp_path: Path) -> None:
    asked = ["--streams", "100", "--tokens-per-s", "0.1", "--json"]
    echo = ["plan", "--model", "echo=echo", "--slots", "3", "--context", "1024"]
    first = CliRunner().invoke(app, [*echo, *asked])
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)
    assert [level["streams"] for level in made["levels"]] == [1, 2, 3]
    assert made["kv_tokens"] == 3 * 1024
    assert made["plan"]["by_kv"] == 4
    path = tmp_path / "plan.json"
    path.write_text(first.stdout)
    again = CliRunner().invoke(
        app, ["plan", "--model", "echo=echo", "--measured", str(path), *asked]
    )
    assert json.loads(again.stdout)["plan"] == made["plan"]
    told = CliRunner().invoke(
        app, ["plan", "--model", "echo=echo", "--measured", str(path), "--streams", "9"]
    )
    assert "nodes" in told.stdout


def test_a_doctor_finds_a_machine_well(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["doctor", "--model", "echo=echo", "--state", str(tmp_path / "s"), "--listen",
         "127.0.0.1:0", "--json"],
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert {check["name"] for check in found["checks"]} >= {"listen", "state", "disk", "model"}
    assert found["ok"]


def test_a_doctor_names_what_is_wrong_and_its_mend(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    result = CliRunner().invoke(
        app,
        ["doctor", "--model", f"m={tmp_path}/none.gguf", "--model", "u=upstream:http://10.0.0.1:1#x",
         "--state", str(tmp_path / "open"), "--listen", "127.0.0.1:x", "--json"],
        standalone_mode=False,
    )  # fmt: skip
    found = json.loads(result.stdout)
    failed = {check["name"] for check in found["checks"] if check["ok"] is False}
    assert failed == {"listen", "state", "model"}
    assert all(check["mend"] for check in found["checks"] if check["ok"] is False)
    assert result.return_value == 1


def doctor_on_database(tmp_path: Path, *options: str) -> dict[str, Any]:
    """What a doctor says of the database."""
    result = CliRunner().invoke(
        app,
        ["doctor", "--state", str(tmp_path / "s"), "--listen", "127.0.0.1:0", "--json", *options],
        standalone_mode=False,
    )
    checks = json.loads(result.stdout)["checks"]
    return next(check for check in checks if check["name"] == "database")


def test_a_doctor_looks_at_the_file_and_makes_none(tmp_path: Path) -> None:
    assert doctor_on_database(tmp_path)["ok"]
    assert not (tmp_path / "s").exists()
    store = Store(tmp_path / "s")
    assert f"schema {SCHEMA_VERSION}" in doctor_on_database(tmp_path)["detail"]
    store.close()
    (tmp_path / "s" / FILE_NAME).write_bytes(b"no database, but something else" * 40)
    damaged = doctor_on_database(tmp_path)
    assert damaged["ok"] is False
    assert damaged["mend"]


def test_a_doctor_looks_at_a_fleets_database(postgres: Any, tmp_path: Path) -> None:
    url = postgres.new_database()
    empty = doctor_on_database(tmp_path, "--database", url)
    assert empty["ok"] is False
    assert "db upgrade" in empty["mend"]
    with closing(open_backend(tmp_path, url)) as backend:
        upgrade(backend)
    good = doctor_on_database(tmp_path, "--database", url)
    assert good["ok"], good
    assert "without TLS" in good["detail"]
    name = url.partition("?")[0].rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "no writes" in doctor_on_database(tmp_path, "--database", url)["detail"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u@db.example/fleet", "would not be verified"),
        ("postgresql://u:secret@/fleet", "password"),
        ("postgresql:///fleet?host=/nowhere", "cannot be used"),
    ],
)
def test_a_doctor_refuses_what_a_node_would(tmp_path: Path, url: str, words: str) -> None:
    pytest.importorskip("psycopg", reason="pip install 'overspill[dev]'")
    found = doctor_on_database(tmp_path, "--database", url)
    assert found["ok"] is False
    assert words in found["detail"]
    assert "secret" not in json.dumps(found)
