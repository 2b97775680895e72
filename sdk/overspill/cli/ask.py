"""Verbs that ask a model: `run` answers a prompt, `plan` only says where it would run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

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
from overspill.errors import InvalidRequest, UsageError
from overspill.sync import Overspill
from overspill.types.chat import Request
from overspill.types.route import Plan, RouteDecision, RouteTaken

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
        route = _stream(ai, request)
    if why:
        _explain(route.decision)


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
    _explain(result.decision)


def _stream(ai: Overspill, request: Request) -> RouteTaken:
    """Print the answer as it comes, then one line: who answered, how soon, what left."""
    started, ttft = time.perf_counter(), "no text"
    for chunk in ai.run_request(request):
        if chunk.text and ttft == "no text":
            ttft = f"{time.perf_counter() - started:.2f} s to the first token"
        print(chunk.text, end="", flush=True)
        for call in chunk.tool_calls:
            print(f"{call.name}({call.arguments})")
    print()
    route = chunk.route
    left = f"{route.bytes_sent} bytes left this device"
    print(f"[{route.route.value}: {route.model}, {ttft}, {left}]", file=sys.stderr)
    return route


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


def _explain(decision: RouteDecision) -> None:
    for stage in decision.stages:
        numbers = ", ".join(f"{k}={v:g}" for k, v in stage.numbers.items())
        removed = " removes " + ", ".join(stage.removed) if stage.removed else ""
        detail = f" ({stage.detail})" if stage.detail else ""
        print(f"  stage {stage.stage}: {stage.code}{removed} {numbers}{detail}", file=sys.stderr)
