"""`overspill eval run` and `eval join`: prompts through real engines, and logs laid together."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overspill.cli.common import (
    CloudAddress,
    Json,
    Model,
    PrivacyFloor,
    TrustPolicyFile,
    print_json,
    settings_for,
)
from overspill.cli.eval_options import require_eval
from overspill.config import Settings
from overspill.errors import UsageError
from overspill.types.chat import Privacy

if TYPE_CHECKING:
    from overspill.evals.players import Place, SignalOptions
    from overspill.evals.prompt_set import Prompt
    from overspill.evals.run import Progress, RunOptions
    from overspill.evals.run_log import RunLog

_TELL_EVERY_S = 2.0
PromptsFile = Annotated[Path, typer.Option("--prompts", help="JSONL or CSV: one prompt a row.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `eval`."""
    app.command("run")(run)
    app.command("join")(join)


def run(
    prompts: PromptsFile,
    out: Annotated[Path, typer.Option(help="The log: JSONL, one line a prompt.")],
    route: Annotated[str, typer.Option(help="device, cloud or policy.")] = "device",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a log that is there.")
    ] = False,
    model: Model = None,
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    privacy: PrivacyFloor = None,
    streams: Annotated[int, typer.Option(min=1, max=256, help="Prompts asked at once.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="Where a prompt names no bound.")] = 256,
    signal_tokens: Annotated[
        int, typer.Option(min=0, help="Log the signals of so many first tokens.")
    ] = 129,
    state_logits: Annotated[
        int, typer.Option(min=0, max=2000, help="Log so many logits after the prompt (device).")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Ask each prompt greedily and log answer, correctness, tokens, times and signals.

    A prompt is {"prompt"} or {"messages"}, with "expected" and "grade" where answers are graded.
    Ctrl-C and kill lose nothing that was logged: --resume goes on.
    """
    require_eval()
    from overspill.evals.players import PLACES, SignalOptions
    from overspill.evals.prompt_set import load_prompts
    from overspill.evals.run import RunOptions

    place = next((known for known in PLACES if known == route), None)
    if place is None:
        raise UsageError(f"--route is '{route}'.", mend=f"Use {', '.join(PLACES)}.")
    settings = settings_for(model, cloud, trust_policy, privacy)
    settings = replace(settings, device_slots=streams)
    options = RunOptions(place, streams, max_tokens, _floor(settings, place))
    asked = load_prompts(prompts)
    signals = SignalOptions(signal_tokens, state_logits)
    done = _play(asked, settings, options, signals, (out, resume))
    if as_json:
        print_json(done)


def join(
    prompts: PromptsFile,
    small: Annotated[Path, typer.Option(help="The device model's log.")],
    large: Annotated[Path, typer.Option(help="The cloud model's log.")],
    out: Annotated[Path, typer.Option(help="Results of both, as calibrate reads them (JSONL).")],
    as_json: Json = False,
) -> None:
    """Lay two logs of the same prompts together: the data of `eval routing` and `calibrate`."""
    require_eval()
    from overspill.cli.eval_options import write_bytes
    from overspill.evals.join import join_logs, joined_text

    joined = join_logs(prompts, small, large)
    write_bytes(out, joined_text(joined).encode())
    if as_json:
        print_json(joined.summary)
    else:
        print(
            f"{joined.summary['n']} prompts; small {joined.summary['q_small']:.3f}, large "
            f"{joined.summary['q_large']:.3f}. Wrote {out}."
        )


def _floor(settings: Settings, place: Place) -> Privacy:
    """What asks the device alone stays there; else the floor is the user's."""
    return Privacy.DEVICE if place == "device" else settings.privacy


def _play(
    prompts: tuple[Prompt, ...],
    settings: Settings,
    options: RunOptions,
    signals: SignalOptions,
    out: tuple[Path, bool],
) -> Progress:
    import anyio

    from overspill.evals.players import open_player
    from overspill.evals.run import progress, run_prompts
    from overspill.evals.run_log import RunLog

    async def play(log: RunLog) -> Progress:
        async with open_player(options.place, settings, signals) as player:
            return await run_prompts(prompts, player, log, options, _Teller())

    path, resume = out
    with RunLog(path, resume=resume) as log:
        try:
            done = anyio.run(play, log)
        except BaseException:
            left = progress(log, len(prompts))
            print(
                f"{left.done} of {left.total} prompts are in {path}; --resume goes on.",
                file=sys.stderr,
            )
            raise
    print(f"{_shown(done)} Wrote {path}.", file=sys.stderr)
    return done


class _Teller:
    """Says how far a run is, now and then, on standard error."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, now: Progress) -> None:
        if time.monotonic() - self._told >= _TELL_EVERY_S:
            self._told = time.monotonic()
            print(_shown(now), file=sys.stderr, flush=True)


def _shown(now: Progress) -> str:
    right = f", {now.right} of {now.graded} right" if now.graded else ""
    return f"{now.done} of {now.total} prompts{right}."
