"""Figures of a node: what is counted, under which names, and that a dashboard asks for no other."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from overspill.engines.options import EngineOptions
from overspill.engines.registry import open_engine
from overspill.errors import ConfigurationError, DeviceRejected, UsageError
from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.types.chat import Message, Request
from overspill.types.usage import Usage
from overspill_cloud import events
from overspill_cloud.app import ModelSpec, NodeOptions, serve
from overspill_cloud.ops.endpoint import OpsEndpoint, parse_ops_address, serving_ops
from overspill_cloud.ops.metered import ABANDONED, Answered, MeteredEngine
from overspill_cloud.ops.metrics import ModelFigures, NodeFigures, NodeMetrics, metric_names
from overspill_cloud.store import Store

pytestmark = pytest.mark.anyio
FAR = 1 << 40
CANARY = "canary-7f3a"
ASK = Request((Message("user", CANARY),), max_tokens=64)


def value(text: str, name: str, **labels: str) -> float:
    """One sample of an exposition."""
    wanted = {f'{key}="{word}"' for key, word in labels.items()}
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found and found[1] == name and wanted <= set((found[2] or "").split(",")):
            return float(found[3])
    raise AssertionError(f"{name} {labels} is not in:\n{text}")


class Heard:
    """A watcher that keeps what it hears."""

    def __init__(self) -> None:
        self.all: list[Answered] = []

    def answered(self, answered: Answered) -> None:
        self.all.append(answered)


async def test_an_answer_is_told_once_with_its_numbers() -> None:
    heard, ticks = Heard(), iter(range(100))
    async with open_engine("echo") as echo:
        engine = MeteredEngine(echo, "m", (heard,), clock=lambda: 5.0, timer=lambda: next(ticks))
        chunks = [chunk async for chunk in engine.generate(ASK)]
    (told,) = heard.all
    assert (told.model, told.outcome, told.began_unix_s) == ("m", "stop", 5.0)
    assert told.usage == chunks[-1].finish.usage
    assert (told.first_token_s, told.duration_s) == (1, 2)
    assert told.per_output_token_s == 1 / (told.usage.completion_tokens - 1)


async def test_leaving_and_failing_are_told_too() -> None:
    heard = Heard()
    async with open_engine("echo", options=EngineOptions(token_delay_s=0.001)) as echo:
        engine = MeteredEngine(echo, "m", (heard,))
        stream = engine.generate(ASK)
        await anext(stream)
        await stream.aclose()
        with pytest.raises(UsageError):
            [c async for c in engine.generate(Request((Message("user", "x"),), max_tokens=0))]
    assert [told.outcome for told in heard.all] == [ABANDONED, "invalid_request"]
    assert heard.all[1].first_token_s is None


def test_every_event_of_the_log_is_counted_or_has_a_figure_of_its_own() -> None:
    metrics = NodeMetrics()
    for event in (
        events.NodeStarted("r", "NONE", "00", ("m",)),
        events.RequestRefused("busy", "QUEUE_FULL"),
        events.InternalError("KeyError", "stream"),
        events.EvidenceRenewed("00", True),
        events.CertificateReplaced(False),
        events.EngineRestarted("m", ok=True),
        events.DeviceEnrolled(),
        events.StreamResumed(),
        events.StreamEnded("stop", "m", 4, 4),
        events.NodeDraining(),
        events.NodeStopped(),
    ):
        metrics.logged(event)
    metrics.answered(Answered("m", "batch", "stop", 0.0, 3.0, 1.0, Usage(7, 5)))
    now = NodeFigures({"m": ModelFigures(True, 2, 3, 50, 100)}, {"batch": 1}, 4, False)
    text = metrics.exposition(now).decode()
    for name, labels, expected in (
        ("overspill_refusals_total", {"code": "busy", "reason": "QUEUE_FULL"}, 1),
        ("overspill_internal_errors_total", {"where": "stream"}, 1),
        ("overspill_evidence_renewals_total", {}, 1),
        ("overspill_certificate_replacements_total", {"ok": "false"}, 1),
        ("overspill_engine_restarts_total", {"model": "m", "ok": "true"}, 1),
        ("overspill_devices_enrolled_total", {}, 1),
        ("overspill_streams_resumed_total", {}, 1),
        ("overspill_build_info", {"assurance": "NONE"}, 1),
        ("overspill_prompt_tokens_total", {"model": "m"}, 7),
        ("overspill_generation_tokens_total", {"model": "m"}, 5),
        ("overspill_requests_total", {"outcome": "stop"}, 1),
        ("overspill_time_per_output_token_seconds_sum", {"model": "m"}, 0.5),
        ("overspill_time_to_first_token_seconds_sum", {"model": "m"}, 1),
        ("overspill_requests_running", {"model": "m"}, 2),
        ("overspill_requests_waiting", {"model": "m"}, 3),
        ("overspill_kv_usage_ratio", {"model": "m"}, 0.5),
        ("overspill_queue_usage_ratio", {}, 0.25),
        ("overspill_streams", {"lane": "batch"}, 1),
        ("overspill_draining", {}, 0),
        ("overspill_engine_up", {"model": "m"}, 1),
    ):
        assert value(text, name, **labels) == expected, name


async def page(shown_at: str, path: str) -> tuple[int, str]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        response = await client.get(f"http://{shown_at}{path}")
        return response.status_code, response.text


async def test_a_node_shows_its_figures_and_not_a_word_of_what_was_said(tmp_path: Path) -> None:
    options = NodeOptions(
        (ModelSpec("echo", "echo"),),
        f"unix:{tmp_path}/n.sock",
        tmp_path / "state",
        metrics="127.0.0.1:0",
    )
    log = io.StringIO()
    async with serve(options, log_to=log) as node:
        digests = {"echo": node.models["echo"].sha256}
        policy = parse_policy(dev_policy(bytes.fromhex(node.dev_root), digests))
        transport = GrpcTransport(node.listen)
        client = RemoteEngine(transport, policy, SoftwareKey.generate(FAR))
        stranger = RemoteEngine(GrpcTransport(node.listen), policy, SoftwareKey.generate(FAR))
        store = Store(options.state)
        await client.enroll(store.new_code(FAR))
        store.close()
        async with client, stranger:
            chunks = [chunk async for chunk in client.generate(ASK)]
            with pytest.raises(DeviceRejected):
                [chunk async for chunk in stranger.generate(ASK)]
        status, text = await page(node.metrics, "/metrics")
        assert status == 200
        usage = chunks[-1].finish.usage
        assert value(text, "overspill_generation_tokens_total") == usage.completion_tokens
        assert value(text, "overspill_requests_total", model="echo", outcome="stop") == 1
        refused = {"code": "device_rejected", "reason": "not_enrolled"}
        assert value(text, "overspill_refusals_total", **refused) == 1
        assert value(text, "overspill_engine_up", model="echo") == 1
        assert value(text, "overspill_streams_limit") == 64
        assert CANARY not in text
        assert (await page(node.metrics, "/readyz"))[0] == 200
        assert (await page(node.metrics, "/livez"))[0] == 200
        assert (await page(node.metrics, "/else"))[0] == 404
        node.node._draining = True
        assert (await page(node.metrics, "/readyz"))[0] == 503
        assert value((await page(node.metrics, "/metrics"))[1], "overspill_draining") == 1
    assert CANARY not in log.getvalue()


async def test_frozen_engines_are_down_and_the_figures_come(monkeypatch, tmp_path: Path) -> None:
    """Together, not one after the other, and before who reads the figures gives up."""
    monkeypatch.setattr("overspill_cloud.ops.observing.ASK_S", 0.1)
    monkeypatch.setattr("overspill_cloud.ops.endpoint.ASK_TIMEOUT_S", 1.0)
    options = NodeOptions(
        tuple(ModelSpec(f"m{number}", "echo") for number in range(20)),
        f"unix:{tmp_path}/n.sock",
        tmp_path / "state",
        metrics="127.0.0.1:0",
    )
    async with serve(options, log_to=io.StringIO()) as node:
        for name, model in node.models.items():
            if name != "m0":
                monkeypatch.setattr(model.engine, "health", asyncio.Event().wait)
        status, text = await page(node.metrics, "/metrics")
    assert status == 200
    up = [value(text, "overspill_engine_up", model=name) for name in node.models]
    assert up == [1] + [0] * 19


async def test_a_loop_that_does_not_turn_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overspill_cloud.ops.endpoint.ASK_TIMEOUT_S", 0.05)
    never = asyncio.Event()

    async def figures() -> bytes:
        await never.wait()
        return b""

    async def is_ready() -> bool:
        return True

    async with serving_ops(("127.0.0.1", 0), OpsEndpoint(figures, is_ready)) as shown_at:
        assert (await page(shown_at, "/metrics"))[0] == 503
        assert (await page(shown_at, "/readyz"))[0] == 200
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.post(f"http://{shown_at}/metrics")).status_code == 405
        with pytest.raises(ConfigurationError):
            async with serving_ops(
                ("127.0.0.1", int(shown_at.rpartition(":")[2])), OpsEndpoint(figures, is_ready)
            ):
                raise AssertionError("two on one port")
    await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("127.0.0.1", UsageError),
        ("localhost:9", UsageError),
        ("127.0.0.1:x", UsageError),
        ("127.0.0.1:70000", UsageError),
        ("0.0.0.0:9464", ConfigurationError),
        ("10.1.2.3:9464", ConfigurationError),
        ("[::]:9464", ConfigurationError),
    ],
)
def test_the_ops_port_is_loopbacks_unless_it_is_meant_to_be_open(text: str, error: Any) -> None:
    with pytest.raises(error):
        parse_ops_address(text, ())


def test_an_ops_port_that_is_meant_to_be_open_may_be() -> None:
    assert parse_ops_address("0.0.0.0:9464", (9464,)) == ("0.0.0.0", 9464)
    assert parse_ops_address("[::1]:0", ()) == ("::1", 0)


def test_every_query_of_the_dashboard_names_a_metric_that_exists(repository: Path) -> None:
    dashboard = json.loads((repository / "cloud/deploy/grafana/overspill-node.json").read_text())
    known = metric_names()
    queries = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", ())]
    assert len(queries) >= 12
    asked = {name for query in queries for name in re.findall(r"\boverspill_\w+", query)}
    assert asked <= known
    assert all(re.search(r"\boverspill_", query) for query in queries)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_metrics_names_follow_prometheus_habit() -> None:
    for family in NodeMetrics().registry.collect():
        if family.name.startswith("process_"):
            continue
        assert re.fullmatch(r"overspill_[a-z_]+", family.name)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        assert family.documentation
