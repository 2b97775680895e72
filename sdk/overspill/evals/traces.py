"""Traces: arrivals of requests, and a world whose device, road and cloud change under them.

Everything comes from one seed and nothing from a clock, so a trace can be replayed under every
rule: the same prompts at the same moments, of the same length, answered right or wrong by the same
draw, while the device throttles, the road slows down and the cloud queues up or is gone.

What is true of a prompt, that it is answered right on a route, is drawn around what the shipped
scorer says of it: a replay judges what is done with time, not the scorer. Speeds, prices and
powers are declared in :class:`World`; they are a laptop's and a small cloud's.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from overspill.types.card import ModelCard
from overspill.types.chat import Message, Privacy, Request, Tool
from overspill.types.route import Route


@dataclass(frozen=True, slots=True)
class World:
    """How fast things are when all is well, and how they change; dwell times are means, in seconds.

    ``device_states`` are factors on the device's speed with the weights of their dwell times,
    ``road_slow`` and ``queue_long`` factors while an episode lasts.
    """

    prefill_device: float = 800.0
    decode_device: float = 60.0
    prefill_cloud: float = 4000.0
    decode_cloud: float = 80.0
    rtt_s: float = 0.08
    queue_s: float = 0.05
    jitter: float = 0.12
    device_states: tuple[tuple[float, float], ...] = (
        (1.0, 0.5),
        (0.4, 0.25),
        (0.2, 0.25),
    )
    device_dwell_s: float = 180.0
    road_slow: float = 50.0
    queue_long: float = 100.0
    episode_every_s: float = 500.0
    episode_s: float = 150.0
    outage_every_s: float = 900.0
    outage_s: float = 60.0
    battery_share: float = 0.5


CALM = World(
    device_states=((1.0, 1.0),), episode_every_s=math.inf, outage_every_s=math.inf, jitter=0.05
)
"""Nothing changes: where only the device's own speed is to count."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: how often, how long, how soon, and prompts to make one of."""

    name: str
    weight: float
    prompt_tokens: float
    answer_tokens: float
    spread: float
    deadlines_s: tuple[float, ...]
    prompts: tuple[str, ...]
    has_tools: bool = False


KINDS = (
    Kind("chat", 0.4, 120, 90, 0.5, (4, 6, 10, 15), ("Hello, how are you {a}?", "Tell a story.")),
    Kind(
        "sums",
        0.25,
        40,
        30,
        0.3,
        (2, 3, 5, 8),
        ("What is {a} + {b}?", "What is {a} * {b}?", "What is {c} - {a}?"),
    ),
    Kind(
        "lists",
        0.15,
        180,
        60,
        0.4,
        (3, 5, 8),
        ("Sort these numbers: {a}, {b}, {c}, 4, 19.", "How many words are in: the sun is {a}?"),
    ),
    Kind(
        "papers",
        0.2,
        900,
        150,
        0.4,
        (6, 10, 20),
        ("Sum this up in a line: Ana sold {a} apples on Monday.", "Who sold {b} apples?"),
    ),
)
CHAIN_KIND = Kind(
    "agent", 0.0, 220, 40, 0.3, (), ("Use the clock, then add {a} and {b}.",), has_tools=True
)
"""One call of an agent's chain."""
_CLOCK = Tool("clock", "Tells the time.")


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a trace, and what is true of it whoever answers.

    ``luck`` in [0, 1) is under P(right) of a route where that route answers right; ``noise`` are
    standard normal draws for its times. ``gap_s`` passes between it and the chain's next call.
    """

    at_s: float
    request: Request
    prompt_tokens: int
    answer_tokens: int
    p_right: dict[Route, float]
    luck: float
    noise: tuple[float, float, float]
    gap_s: float = 0.0

    def is_right(self, route: Route) -> bool:
        """Whether the answer is right where ``route`` gives it."""
        return self.luck < self.p_right.get(route, 0.0)


@dataclass(frozen=True, slots=True)
class Steps:
    """A value that changes in steps: ``values[i]`` from ``starts[i]`` on."""

    starts: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, moment_s: float) -> float:
        """The value at a moment."""
        return self.values[bisect_right(self.starts, moment_s) - 1]


@dataclass(frozen=True, slots=True)
class Trace:
    """Jobs by arrival, chains of jobs, and how the world changes meanwhile."""

    jobs: tuple[Job, ...]
    chains: tuple[tuple[Job, ...], ...]
    device: Steps
    road: Steps
    queue: Steps
    outage: Steps
    world: World
    battery_from_s: float = field(default=math.inf)


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """``jobs`` arrive ``mean_gap_s`` apart on average, in bursts; ``chains`` beside them."""

    jobs: int = 1500
    chains: int = 150
    calls: tuple[int, int] = (6, 8)
    chain_s: float = 8.0
    mean_gap_s: float = 6.0
    seed: int = 0
    world: World = field(default_factory=World)


Truth = dict[Route, float]


def make_trace(options: TraceOptions, truth: Sequence[Truth] | None = None) -> Trace:
    """A trace from its seed. ``truth`` gives P(right) of each job before noise, by the order of
    :func:`requests_of`; without it every prompt is as good on both routes."""
    random = Random(f"{options.seed}/trace")  # noqa: S311 - a simulation
    requests = requests_of(options)
    truths = truth or [{Route.DEVICE: 1.0, Route.CLOUD: 1.0}] * len(requests)
    single = [
        _job(random, request, kind, one)
        for (request, kind), one in zip(requests, truths, strict=True)
    ]
    at_s, jobs = 0.0, []
    for job in single[: options.jobs]:
        burst = random.random() < 0.3
        at_s += random.expovariate(1 / (0.1 if burst else 1.4) / options.mean_gap_s)
        jobs.append(_moved(job, at_s))
    chains, rest = [], single[options.jobs :]
    while rest:
        calls = random.randint(*options.calls)
        start_s = random.uniform(0.0, at_s)
        chains.append(tuple(_moved(job, start_s) for job in rest[:calls]))
        rest = rest[calls:]
    return Trace(
        tuple(jobs), tuple(chains), *_world_steps(options, at_s + 3600.0), options.world,
        battery_from_s=at_s * (1.0 - options.world.battery_share),
    )  # fmt: skip


def requests_of(options: TraceOptions) -> list[tuple[Request, Kind]]:
    """The prompts of a trace, jobs first, then chains' calls; the same for the same seed."""
    random = Random(f"{options.seed}/prompts")  # noqa: S311 - a simulation
    weights = [kind.weight for kind in KINDS]
    found = [_request(random, random.choices(KINDS, weights)[0]) for _ in range(options.jobs)]
    calls = options.chains * options.calls[1]
    return found + [_request(random, CHAIN_KIND) for _ in range(calls)]


def _request(random: Random, kind: Kind) -> tuple[Request, Kind]:
    digits = random.choice((1, 2, 3, 5))
    a, b, c = (random.randint(10 ** (digits - 1), 10**digits - 1) for _ in range(3))
    text = random.choice(kind.prompts).format(a=a, b=b, c=c)
    deadline_s = random.choice(kind.deadlines_s) if kind.deadlines_s else None
    tools = (_CLOCK,) if kind.has_tools else ()
    request = Request(
        (Message("user", text),),
        id=f"{random.getrandbits(64):016x}",
        app=kind.name,
        tools=tools,
        deadline_s=deadline_s,
        privacy=Privacy.ANY,
    )
    return request, kind


def _job(random: Random, request: Request, kind: Kind, truth: Truth) -> Job:
    def tokens(mean: float) -> int:
        drawn = random.lognormvariate(math.log(mean) - kind.spread**2 / 2, kind.spread)
        return max(4, round(drawn))

    hardness = random.gauss(0.0, 0.1)
    return Job(
        at_s=0.0,
        request=request,
        prompt_tokens=tokens(kind.prompt_tokens),
        answer_tokens=min(1024, tokens(kind.answer_tokens)),
        p_right={route: min(1.0, max(0.0, p - hardness)) for route, p in truth.items()},
        luck=random.random(),
        noise=(random.gauss(0, 1), random.gauss(0, 1), random.gauss(0, 1)),
        gap_s=random.uniform(0.02, 0.15),
    )


def _moved(job: Job, at_s: float) -> Job:
    return Job(
        at_s, job.request, job.prompt_tokens, job.answer_tokens, job.p_right, job.luck, job.noise,
        job.gap_s,
    )  # fmt: skip


def _world_steps(options: TraceOptions, until_s: float) -> tuple[Steps, Steps, Steps, Steps]:
    random, world = Random(f"{options.seed}/world"), options.world  # noqa: S311 - a simulation
    return (
        _dwelling(random, world, until_s),
        _episodes(random, world.road_slow, world.episode_every_s, world.episode_s, until_s),
        _episodes(random, world.queue_long, world.episode_every_s, world.episode_s, until_s),
        _episodes(random, 0.0, world.outage_every_s, world.outage_s, until_s),
    )


def _dwelling(random: Random, world: World, until_s: float) -> Steps:
    factors = [factor for factor, _ in world.device_states]
    weights = [weight for _, weight in world.device_states]
    starts, values, at_s = [0.0], [factors[0]], 0.0
    while at_s < until_s:
        at_s += random.expovariate(1 / world.device_dwell_s)
        starts.append(at_s)
        values.append(random.choices(factors, weights)[0])
    return Steps(tuple(starts), tuple(values))


def _episodes(
    random: Random, value: float, every_s: float, length_s: float, until_s: float
) -> Steps:
    """1 in ordinary times, ``value`` in episodes."""
    starts, values, at_s = [0.0], [1.0], 0.0
    while math.isfinite(every_s) and at_s < until_s:
        begin_s = at_s + random.expovariate(1 / every_s)
        at_s = begin_s + random.expovariate(1 / length_s)
        starts += [begin_s, at_s]
        values += [value, 1.0]
    return Steps(tuple(starts), tuple(values))


def trace_cards(
    price_prompt_per_mtok: float = 0.4, price_completion_per_mtok: float = 1.6
) -> dict[Route, ModelCard]:
    """The cards that a trace is decided with: the pair that the shipped scorer was fitted on."""
    plain = ModelCard("brook", context=8192, runtime="trace", tools=True, json_schema=True)
    return {
        Route.DEVICE: plain,
        Route.CLOUD: replace(
            plain,
            name="river",
            price_prompt_per_mtok=price_prompt_per_mtok,
            price_completion_per_mtok=price_completion_per_mtok,
        ),
    }
