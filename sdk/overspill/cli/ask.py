"""Verbs that ask a model: `run` answers a prompt, `plan` only says where it would run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.cli.answers import ShownAnswer, explain, explain_checks, show
from overspill.cli.common import (
    CloudAddress,
    DraftModel,
    Json,
    Model,
    PrivacyFloor,
    Projector,
    TrustPolicyFile,
    print_json,
    settings_for,
)
from overspill.cli.first_run import obtain_model
from overspill.errors import InvalidRequest, UsageError
from overspill.sync import Overspill
from overspill.types.route import Plan

Prompt = Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("run")(run)
    app.command("plan")(plan)


def run(
    prompt: Prompt,
    model: Model = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Answer with this LoRA adapter: NAME=FILE, or a NAME of the settings'."),
    ] = None,
    draft_model: DraftModel = None,
    mmproj: Projector = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="A picture to show behind the prompt (PNG, JPEG, GIF); repeatable."),
    ] = None,
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    privacy: PrivacyFloor = None,
    answer_by: Annotated[
        str | None, typer.Option(help="The model that has to answer, here or in the cloud.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="At most so many tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for sampling.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    why: Annotated[bool, typer.Option("--why", help="Explain the route.")] = False,
    as_json: Json = False,
) -> None:
    """Answer one prompt; the last line says who answered and what left the device."""
    given = [adapter] if adapter and "=" in adapter else []
    settings = settings_for(
        model,
        cloud,
        trust_policy,
        privacy,
        adapters=given,
        draft_model=draft_model,
        mmproj=mmproj,
    )
    obtain_model(settings, quiet=as_json)
    with Overspill(app="cli", settings=settings) as ai:
        request = ai.build(
            _shown(_read(prompt), image or ()),
            model=answer_by,
            adapter=adapter and adapter.partition("=")[0],
            max_tokens=max_tokens,
            seed=seed,
            temperature=temperature,
        )
        if as_json:
            print_json(ai.collect(request))
            return
        shown = ShownAnswer()
        show(ai, request, shown)
    if why and shown.route is not None:
        explain(shown.route.decision)
        explain_checks(shown.route)


def plan(
    prompt: Prompt,
    model: Model = None,
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    privacy: PrivacyFloor = None,
    as_json: Json = False,
) -> None:
    """Say where a prompt would run, why, and what would leave; nothing is generated."""
    with Overspill(app="cli", settings=settings_for(model, cloud, trust_policy, privacy)) as ai:
        result = ai.plan(_read(prompt))
    if as_json:
        print_json(result)
        return
    _print_plan(result)
    explain(result.decision)


def _read(prompt: str) -> str:
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise InvalidRequest("The prompt is empty.", param="prompt", mend="Give some text.")
    return text


def _shown(prompt: str, images: Sequence[Path]) -> str | list[dict[str, Any]]:
    """The prompt, with pictures behind its text."""
    if not images:
        return prompt
    parts: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    for path in images:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read: {error.strerror}.", mend="Check --image."
            ) from None
        parts.append({"type": "image_url", "image_url": data})
    return [{"role": "user", "content": parts}]


def _print_plan(plan: Plan) -> None:
    print(f"route:   {plan.route.value} ({plan.reason.value})")
    print(f"model:   {plan.model or '-'}")
    print(f"prompt:  {plan.prompt_tokens} tokens")
    print(f"leaves:  {plan.would_leave}")
