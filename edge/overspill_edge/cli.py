"""Verbs that the daemon adds to ``overspill``: ``serve``, ``service``, ``token``, ``batch``.

The daemon's libraries are imported when a verb runs: the command starts fast without them, and
where they are missing it says which extra brings them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overspill.cli.common import (
    Adapters,
    CloudAddress,
    DraftModel,
    Model,
    PrivacyFloor,
    Projector,
    TrustPolicyFile,
    print_json,
    settings_for,
)
from overspill.cli.units import UPGRADE, how_to_replace
from overspill.config import child_environment, load_settings
from overspill.errors import Cancelled, ConfigurationError, UsageError
from overspill.garbage import collect_less
from overspill.terminal import Verbs
from overspill_edge import model_commands, ui_command
from overspill_edge.batch_command import batch
from overspill_edge.extra import needs_edge
from overspill_edge.service_command import service_app

if TYPE_CHECKING:
    from overspill_edge.app import Ready
    from overspill_edge.tokens import TokenStore

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
LOG_FILE_BYTES = 1 << 20

token_app = typer.Typer(
    cls=Verbs,
    help="Issue, list and revoke tokens of programs that use the daemon.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the daemon's verbs; named by the entry point group ``overspill.commands``."""
    app.command("serve")(serve)
    app.command("batch")(batch)
    app.add_typer(token_app, name="token")
    app.add_typer(service_app, name="service")
    model_commands.register()
    ui_command.register(app)


def serve(
    socket: Annotated[
        Path | None, typer.Option("--socket", help="Unix socket; default: the runtime folder's.")
    ] = None,
    tcp: Annotated[
        str | None, typer.Option("--tcp", help="Also HOST:PORT on loopback; needs a token.")
    ] = None,
    model: Model = None,
    adapter: Adapters = None,
    draft_model: DraftModel = None,
    mmproj: Projector = None,
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    privacy: PrivacyFloor = None,
    origin: Annotated[
        list[str] | None, typer.Option("--origin", help="A web origin to allow; repeatable.")
    ] = None,
    drain_s: Annotated[
        int, typer.Option("--drain-s", min=0, help="Seconds for running answers at the end.")
    ] = 30,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="Log to FILE, not to standard error.")
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option("--keep-alive", help="Let go of a model unused for so long: 10m, forever."),
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Take over from the daemon that runs, losing nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help='First line: {"socket", "tcp", "pid"}.')
    ] = False,
) -> None:
    """Serve the model to other programs until SIGTERM or Ctrl-C."""
    with needs_edge():
        from overspill_edge.app import ServeOptions
        from overspill_edge.app import serve as run_daemon
        from overspill_edge.listen import parse_tcp, passed_socket
    _log_to(log_file)
    passed = passed_socket(child_environment())
    if passed is not None and (socket is not None or upgrade):
        raise UsageError(
            f"{'--upgrade' if upgrade else '--socket'} beside a socket that was passed.",
            mend="Leave it out: the service manager keeps the socket while it restarts the daemon.",
        )
    if upgrade and socket is None and (how := how_to_replace()) != UPGRADE:
        raise UsageError("The daemon is the service manager's.", mend=f"Restart it: {how}")
    settings = settings_for(
        model,
        cloud,
        trust_policy,
        privacy,
        adapters=adapter or (),
        draft_model=draft_model,
        mmproj=mmproj,
    )
    options = ServeOptions(
        settings=settings if keep_alive is None else replace(settings, keep_alive=keep_alive),
        socket_path=socket,
        tcp=None if tcp is None else parse_tcp(tcp),
        origins=tuple(origin or ()),
        drain_s=drain_s,
        passed=passed,
        replaceable=True,
        upgrade=upgrade,
    )
    collect_less()
    received = asyncio.run(run_daemon(options, _announce_json if as_json else _announce))
    if received == signal.SIGINT:
        raise Cancelled("The daemon was stopped from the keyboard.")


def _log_to(file: Path | None) -> None:
    """Our own lines from INFO on; other libraries' from WARNING on, for theirs may hold content.

    A file is for this user alone, and turned over at a megabyte.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            handler = logging.handlers.RotatingFileHandler(
                file, maxBytes=LOG_FILE_BYTES, backupCount=1, encoding="utf-8"
            )
        except OSError as error:
            raise ConfigurationError(
                f"{file} cannot be written: {error.strerror}.", mend="Name another --log-file."
            ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("overspill_edge").setLevel(logging.INFO)


def _announce_json(ready: Ready) -> None:
    typer.echo(json.dumps(ready.as_dict()))


def _announce(ready: Ready) -> None:
    where = [f"unix:{ready.socket}"] if ready.socket else []
    where += [f"http://{ready.tcp}"] if ready.tcp else []
    typer.echo(f"Serving on {' and '.join(where)} (pid {ready.pid}).")


@token_app.command("new")
def new_token(
    app: Annotated[str, typer.Option("--app", help="The program that will use it.")],
    scope: Annotated[str, typer.Option("--scope", help="infer, models, admin; by comma.")],
    ttl: Annotated[str | None, typer.Option("--ttl", help="For how long, as 12h or 30d.")] = None,
    as_json: Json = False,
) -> None:
    """Issue a token. It is shown this once; a running daemon accepts it at once."""
    store = _store()
    from overspill_edge.tokens import parse_scopes, parse_ttl_s

    ttl_s = None if ttl is None else parse_ttl_s(ttl)
    token, record = store.issue(app, parse_scopes(scope), ttl_s)
    document = record.as_dict()
    if as_json:
        print_json({"id": document.pop("id"), "token": token, **document})
        return
    typer.echo(token)
    expires = document["expires"] or "never"
    typer.echo(f"{record.id} for {app}: {', '.join(record.scopes)}; expires {expires}", err=True)


@token_app.command("list")
def list_tokens(as_json: Json = False) -> None:
    """List the tokens by id, app, scopes and expiry."""
    documents: list[dict[str, Any]] = [record.as_dict() for record in _store().records()]
    if as_json:
        print_json({"tokens": documents})
        return
    for document in documents:
        scopes, expires = ",".join(document["scopes"]), document["expires"] or "never"
        typer.echo(f"{document['id']}\t{document['app']}\t{scopes}\texpires {expires}")


@token_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.")],
    as_json: Json = False,
) -> None:
    """Revoke a token; a running daemon refuses it at once."""
    record = _store().revoke(token_id)
    if as_json:
        print_json({"id": record.id, "app": record.app, "revoked": True})
        return
    typer.echo(f"Revoked {record.id} of {record.app}.")


def _store() -> TokenStore:
    with needs_edge():
        from overspill_edge.tokens import user_tokens
    return user_tokens(load_settings().places)
