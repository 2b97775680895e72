"""`overspill demo`: the main job on loopback, measured as it runs.

It releases a node with a larger model, starts it, verifies its evidence, enrols this device, sends
held-back prompts of every skill and level through the policy, then sends the same prompts to the
device alone and to the cloud alone, so that the sum at the end compares what was measured.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill import event_loop
from overspill.cli.demo_release import release_demo
from overspill.cli.demo_table import print_evidence, print_summary, print_table
from overspill.cli.node_process import NodeProcess, enrolment_code, running_node
from overspill.client import AsyncOverspill
from overspill.config import Settings, load_settings
from overspill.errors import (
    DoesNotFit,
    ModelNotFound,
    OverspillError,
    PolicyRefusal,
    ReceiptInvalid,
)
from overspill.evals.grade import gradable, grade
from overspill.receipts import verify_receipt
from overspill.trust.template import ReleaseDemand, dev_policy, tpm_dev_policy
from overspill.types.chat import Privacy, Request
from overspill.types.reply import Reply
from overspill.types.route import Route, RouteReason

PROMPTS = Path(__file__).with_name("demo_prompts.json")
PRIVATE: tuple[dict[str, Any], ...] = (
    # One that says so, one in which personal data is found, whatever its floor says.
    {
        "skill": "dates",
        "level": "easy",
        "messages": [{"role": "user", "content": "What day is 4 days after Tuesday?"}],
        "privacy": "device",
        "grade": "exact",
        "expected": "Saturday",
        "max_tokens": 96,
    },
    {
        "skill": "classification",
        "level": "easy",
        "messages": [
            {
                "role": "user",
                "content": "Classify the sentiment as positive or negative: "
                "The bank lost my account DE89 3704 0044 0532 0130 00. It was dreadful.",
            }
        ],
        "grade": "label",
        "expected": "negative",
        "max_tokens": 96,
    },
)
RIVER = Path("examples/family/models/river-q8_0.gguf")


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("demo")(demo)


def demo(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was measured to this file.")
    ] = None,
    device_model: Annotated[str, typer.Option(help="The device's model.")] = "brook",
    cloud_model: Annotated[Path, typer.Option(help="The cloud's model file.")] = RIVER,
    attester: Annotated[
        str, typer.Option(help="dev, tpm (a software TPM, by swtpm), or auto: tpm where it is.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
) -> None:
    """Run the main job on this machine: device, proven cloud, and why each prompt went where."""
    if not cloud_model.exists():
        raise ModelNotFound(
            f"The cloud's model is not at {cloud_model}.",
            mend="Run the demo in a checkout, or give --cloud-model FILE.",
        )
    prompts = load_prompts()[:limit]
    # A demo that is ended from outside ends its node too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="overspill-demo-") as folder:
        state = Path(folder) / "node"
        state.mkdir()
        kind = choose_attester() if attester == "auto" else attester
        release = release_demo(Path(folder), "river", cloud_model, kind)
        with running_node("river", cloud_model, state, kind, release.file) as node:
            settings = demo_settings(Path(folder), node, device_model, release.demand)
            result = event_loop.run(play(settings, node, prompts))
    print_table(result["requests"])
    print_summary(result["summary"])
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load_prompts() -> list[dict[str, Any]]:
    """The held-back prompts that ship with the package, and two that have to stay."""
    return [*json.loads(PROMPTS.read_text("utf-8")), *PRIVATE]


def choose_attester() -> str:
    """A software TPM where swtpm and its client are installed, else a development key."""
    return "tpm" if shutil.which("swtpm") and find_spec("tpm2_pytss") else "dev"


def demo_settings(
    folder: Path, node: NodeProcess, device_model: str, released: ReleaseDemand | None = None
) -> Settings:
    """This user's settings, but all places in ``folder`` and a policy for that one node."""
    policy = folder / "trust.toml"
    models = {node.model_name: bytes.fromhex(node.model_sha256)}
    authority = node.state / "tpm-authority.pem"
    if authority.exists():
        text = tpm_dev_policy(authority.read_text("utf-8"), models, released)
    else:
        text = dev_policy(bytes.fromhex(node.started["dev_root"]), models, released)
    policy.write_text(text, "utf-8")
    home = folder / "device"
    settings = load_settings(environ={"OVERSPILL_HOME": str(home)})
    settings = replace(settings, model=device_model, device_key="file").with_floor(Privacy.ANY)
    return settings.with_cloud(node.listen, trust_policy=policy)


async def play(
    settings: Settings, node: NodeProcess, prompts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Send every prompt by policy, then to each side alone; return the demo's JSON."""
    async with AsyncOverspill(app="demo", settings=settings, daemon="never") as ai:
        await ai.enroll(enrolment_code(node.state))
        state = await ai.cloud_state()
        if state.problem is not None:
            raise state.problem
        print_evidence(node.listen, state.result)
        if ai.device_problem is not None:
            raise ai.device_problem
        device, cloud = [card.name for card in await ai.models()]
        requests = [await _row(ai, prompt) for prompt in prompts]
        all_device = [await _row(ai, prompt, device) for prompt in prompts]
        # What has to stay is refused to the cloud, and so not answered there.
        all_cloud = [await _row(ai, prompt, cloud) for prompt in prompts]
    kept = sum(row["route"] == Route.DEVICE for row in requests)
    return {
        "requests": requests,
        "summary": {
            "right": _right(requests),
            "right_all_device": _right(all_device),
            "right_all_cloud": _right(all_cloud),
            "device_share": round(kept / len(requests), 4),
            "assurance": state.result.assurance.name if state.result else "NONE",
        },
    }


async def _row(
    ai: AsyncOverspill, prompt: dict[str, Any], model: str | None = None
) -> dict[str, Any]:
    """One prompt by policy, or by the named model; a refusal is a row too, never a stop."""
    request = _request(ai, prompt, model)
    row: dict[str, Any] = {
        "prompt": prompt["messages"][-1]["content"],
        "skill": prompt["skill"],
        "level": prompt["level"],
        "expected": prompt["expected"],
    }
    try:
        reply = await ai.collect(request)
    except (PolicyRefusal, DoesNotFit) as error:
        return row | _refused(error)
    answer = gradable(reply.text, reply.tool_calls)
    return row | {
        "route": reply.route.route,
        "reason": reply.route.reason,
        "model": reply.model,
        "ttft_s": reply.ttft_s,
        "tokens_per_s": reply.usage.decode_tokens_per_s,
        "bytes_sent": reply.route.bytes_sent,
        "receipt_verified": _receipt_verified(reply),
        "answer": answer,
        "correct": grade(prompt["grade"], prompt["expected"], answer),
    }


def _request(ai: AsyncOverspill, prompt: dict[str, Any], model: str | None) -> Request:
    return ai.build(
        prompt["messages"],
        model=model,
        tools=prompt.get("tools", ()),
        max_tokens=prompt["max_tokens"],
        privacy=prompt.get("privacy", Privacy.ANY),
    )


def _receipt_verified(reply: Reply) -> bool | None:
    if reply.receipt is None:
        return None
    try:
        verify_receipt(reply.receipt)
    except ReceiptInvalid:
        return False
    return True


def _refused(error: OverspillError) -> dict[str, Any]:
    return {
        "route": Route.REFUSED,
        "reason": RouteReason.NO_ROUTE,
        "model": "",
        "ttft_s": None,
        "tokens_per_s": None,
        "bytes_sent": 0,
        "receipt_verified": None,
        "answer": f"{error.code}: {error}",
        "correct": False,
    }


def _right(rows: Sequence[dict[str, Any]]) -> int:
    return sum(row["correct"] is True for row in rows)
