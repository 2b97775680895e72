"""`overspill-cloud fleet up`: several nodes, as processes of this machine or placed by Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.config import default_places
from overspill.errors import EngineDied, UsageError
from overspill.terminal import Verbs
from overspill_cloud.cli_options import JsonOption, report
from overspill_cloud.limits import DRAIN_S

fleet = typer.Typer(cls=Verbs, no_args_is_help=True, help="Run several nodes as one cloud.")
_STOP_MARGIN_S = 40.0
"""After a drain: for readers to take what is left, for the ledger, and for models to be let go."""
_OWN = ("--listen", "--replicas", "--replicas-dns", "--json", "--metrics")


@fleet.callback()
def _group() -> None:
    """Kept, so that `up` is a verb of its own."""


@fleet.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def up(
    context: typer.Context,
    replicas: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 3,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="With --ray: scale up to so many.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Each node takes a free port there, and tells it. With --ray and beyond loopback: "
            "the address of the machine on which Ray places the node."
        ),
    ] = "127.0.0.1",
    addresses: Annotated[
        Path | None,
        typer.Option(
            help="File that names the nodes, kept up to date. Without --ray FILE.metrics.json "
            "beside it names where they show figures, for Prometheus (file_sd_configs)."
        ),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Let Ray Serve place the nodes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run several nodes; what follows `--` goes to each `overspill-cloud serve`.

    SIGHUP replaces the nodes one by one (a rolling upgrade); SIGTERM drains all of them and exits.
    """
    from overspill_cloud.fleet.supervisor import FleetOptions

    arguments = tuple(context.args)
    for argument in arguments:
        if argument.partition("=")[0] in _OWN:
            raise UsageError(
                f"{argument.partition('=')[0]} is not for a fleet's nodes.",
                mend="Each takes free ports of its own; see: overspill-cloud fleet up --help",
            )
    if _is_everywhere(host) and not ray:
        raise UsageError(
            f"--host {host} is no address that devices can be told.",
            mend="Give one address or name of this machine.",
        )
    options = FleetOptions(
        replicas=replicas,
        arguments=arguments,
        addresses=addresses or default_places().state / "cloud" / "fleet.addresses",
        listen=f"{host}:0",
        stop_timeout_s=_drain_s(arguments) + _STOP_MARGIN_S,
    )
    if ray:
        from overspill_cloud.fleet.ray_serve import run_on_ray

        run_on_ray(options, max_replicas or replicas, lambda facts: _report(facts, as_json))
        return
    if max_replicas is not None:
        raise UsageError("--max-replicas is Ray's to reach.", mend="Give --ray too.")
    asyncio.run(_run(options, as_json))


def _is_everywhere(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_unspecified
    except ValueError:  # a name
        return not host


def _drain_s(arguments: Sequence[str]) -> float:
    """What `serve` makes of --drain-s; what it does not understand is its own to refuse."""
    asked = str(DRAIN_S)
    for argument, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, sign, value = argument.partition("=")
        if name == "--drain-s":
            asked = value if sign else after
    try:
        return float(asked)
    except ValueError:
        return DRAIN_S


async def _run(options: Any, as_json: bool) -> None:
    from overspill_cloud.fleet.supervisor import Fleet, NodeNotUp

    stopped, upgrade = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(upgrade.set))
    running = Fleet(options, lambda what, where: print(what, where, file=sys.stderr, flush=True))  # noqa: T201 - the operator's log
    try:
        await running.start()
    except NodeNotUp as error:  # the first start: what is wrong there is wrong with the command
        raise error.why or error from None
    upgrading = asyncio.create_task(_upgrades(running, upgrade))
    try:
        facts = {
            "nodes": [node.facts for node in running.nodes],
            "pid": os.getpid(),
            "metrics": str(options.targets),
        }
        _report(facts, as_json)
        await stopped.wait()
    finally:
        upgrading.cancel()
        with suppress(asyncio.CancelledError):
            await upgrading
        await running.stop()


async def _upgrades(running: Any, asked: asyncio.Event) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            await running.upgrade()
        except EngineDied as error:
            print(error, file=sys.stderr, flush=True)  # noqa: T201 - the operator's log


def _report(facts: dict[str, Any], as_json: bool) -> None:
    nodes = ", ".join(str(node["listen"]) for node in facts["nodes"])
    report(facts, f"Serving on {nodes}.", as_json)
