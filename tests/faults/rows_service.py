"""Rows about what the service costs: its seal, and itself beside the engine alone."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from faults.nodes import running
from faults.rows_load import stamped
from faults.scale import Measured, Scale
from faults.unsealed import unsealed

from overspill.bench.models import made_model
from overspill.bench.vocabulary import make_words
from overspill.engines.base import Engine
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcOptions, GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.types.chat import Lane, Message, Request, Sampling, new_request_id
from overspill.worker.engine import WorkerEngine
from overspill_cloud.models import measure

EACH_TURN = -1.0
"""The rate of an engine that gives a token at each turn of its loop."""
STREAMS = 16


async def s3(scale: Scale, folder: Path) -> Measured:
    """Throughput sealed, beside that of the same service whose frames are not sealed."""
    rounds, tokens = scale.of(7, short=2), scale.of(4000, short=300)
    async with AsyncExitStack() as stack:
        engines = []
        for flags in ((), ("--unsealed",)):
            place = Path(mkdtemp(dir=folder))
            with unsealed() if flags else nullcontext():  # the enrolment is of the same kind
                fleet = await stack.enter_async_context(stamped(place, EACH_TURN, *flags))
                engines.append(fleet.client())
                await engines[-1].attest()
        ratios = []
        for number in range(rounds + 1):
            sealed = await _tokens_per_s(engines[0], _plain(tokens))
            with unsealed():
                clear = await _tokens_per_s(engines[1], _plain(tokens))
            if number:  # the first is to warm up
                ratios.append(sealed / clear)
        for engine in engines:
            await engine.aclose()
    return {"sealed_ratio": statistics.median(ratios)}


async def s4(scale: Scale, folder: Path) -> Measured:
    """Sixteen streams of a real model through the service, beside the engine alone: long enough
    answers that they go on, and do not mostly begin."""
    rounds, tokens = scale.of(3, short=2), scale.of(96, short=64)
    path = await asyncio.to_thread(made_model, "tiny" if scale.is_short else "q05", _models())
    async with _both(path, folder) as (through, alone):
        ratios: dict[Lane, list[float]] = {"interactive": [], "batch": []}
        for number in range(rounds + 1):
            request = _asked(number, tokens)
            plain = await _tokens_per_s(alone, request)
            for lane, found in ratios.items():
                served = await _tokens_per_s(through, replace(request, lane=lane))
                if number:
                    found.append(served / plain)
    medians = {lane: statistics.median(found) for lane, found in ratios.items()}
    return {"aggregate_ratio": medians["interactive"], "batch_ratio": medians["batch"]}


def _models() -> Path:
    return Path("~/.cache/overspill/bench").expanduser()


def _plain(tokens: int) -> Request:
    return Request((Message("user", "x"),), max_tokens=tokens)


def _asked(number: int, tokens: int) -> Request:
    words = make_words(32, (number,))
    return Request((Message("user", words),), max_tokens=tokens, sampling=Sampling(temperature=0))


@asynccontextmanager
async def _both(path: Path, folder: Path) -> AsyncGenerator[tuple[Engine, Engine]]:
    """The model behind a node, and the same in a worker of our own."""
    named = f"model={path}"
    with running(folder, 1, "--model", named, "--context", "256") as fleet:
        root = bytes.fromhex(fleet.nodes[0].dev_root)
        digest = await asyncio.to_thread(measure, path)
        through = RemoteEngine(
            GrpcTransport(
                fleet.nodes[0].listen, GrpcOptions(ca_pem=fleet.certificate.read_bytes())
            ),
            parse_policy(dev_policy(root, {"model": digest.sha256})),
            fleet.key,
        )
        await through.enroll(await asyncio.to_thread(fleet.code))
        options = EngineOptions(
            context_tokens=256,
            max_sequences=STREAMS,
            scheduler=SchedulerOptions(speculation="off"),
        )
        async with WorkerEngine(str(path), options=options) as alone, through:
            yield through, alone


async def _tokens_per_s(engine: Engine, request: Request) -> float:
    begun = time.monotonic()
    taken = await asyncio.gather(*(_tokens(engine, request, n) for n in range(STREAMS)))
    return sum(taken) / (time.monotonic() - begun)


async def _tokens(engine: Engine, request: Request, number: int) -> int:
    own = replace(request, id=new_request_id(), app=f"{number}")
    tokens = 0
    async with aclosing(engine.generate(own)) as chunks:
        async for chunk in chunks:
            tokens += len(chunk.token_ids)
    return tokens
