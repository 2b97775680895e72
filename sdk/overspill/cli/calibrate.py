"""`overspill calibrate` and `policy`: a routing policy with a guarantee, and its checks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overspill.cli.common import Json, print_json
from overspill.cli.eval_options import (
    ConfidenceColumn,
    DataFile,
    GroupColumn,
    LargeColumn,
    LargerColumn,
    PromptColumn,
    SmallColumn,
    TrainFile,
    require_eval,
    write_bytes,
)
from overspill.errors import ConfigurationError, UsageError
from overspill.policy_certificate import scorer_path, verify
from overspill.terminal import Verbs

if TYPE_CHECKING:
    from overspill.evals.calibrate import Calibration, CalibrationOptions
    from overspill.evals.fit_monitor import FittedMonitor

policy_app = typer.Typer(
    cls=Verbs, help="Show the rules in force; check a calibrated routing policy."
)
PolicyFile = Annotated[Path, typer.Argument(help="policy.toml; its certificate lies beside it.")]


def register(parent: typer.Typer) -> None:
    """Add the verbs of this file."""
    parent.command("calibrate")(calibrate)
    parent.add_typer(policy_app, name="policy")


def calibrate(
    data: DataFile,
    epsilon: Annotated[float, typer.Option(help="Most mean regret, in quality from 0 to 1.")],
    delta: Annotated[float, typer.Option(help="Chance that the guarantee fails, at most.")],
    out: Annotated[Path, typer.Option(help="The policy file; the others get its name.")],
    train: TrainFile = None,
    prompt: PromptColumn = "prompt",
    small: SmallColumn = "small_correct",
    large: LargeColumn = "large_correct",
    group: GroupColumn = None,
    confidence: ConfidenceColumn = None,
    larger_device: LargerColumn = None,
    device_model: Annotated[str, typer.Option(help="Name on the small model's card.")] = "small",
    cloud_model: Annotated[str, typer.Option(help="Name on the large model's card.")] = "large",
    device_log: Annotated[
        Path | None,
        typer.Option(help="What `eval run` logged of the small model: fits the monitor too."),
    ] = None,
    lean: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Gain over the threshold that the monitor may judge."),
    ] = 0.0,
    quantization: Annotated[
        str, typer.Option(help="The small model's, which the certificate is for.")
    ] = "",
    lifetime_days: Annotated[int, typer.Option(min=1, help="The policy expires after this.")] = 180,
    seed: Annotated[int, typer.Option(help="For the parts that are fitted and certified on.")] = 0,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Signing key; made where it is missing. Default: the user's."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Write a policy whose regret is at most EPSILON with a chance of 1 - DELTA, or exit 4.

    Beside policy.toml: .cert.json, signed; .scorer.json, which it is for; .png and .html.
    """
    require_eval()
    from overspill.evals.calibrate import CalibrationOptions
    from overspill.evals.calibrate import calibrate as run
    from overspill.evals.data import Columns, load

    if out.suffix != ".toml":
        raise UsageError(f"--out is {out}.", mend="Name a .toml file.")
    columns = Columns(prompt, small, large, group, confidence, larger_device)
    options = CalibrationOptions(
        epsilon,
        delta,
        seed,
        (device_model, cloud_model),
        lifetime_days=lifetime_days,
        device_log=device_log,
        lean=lean,
        quantization=quantization,
    )
    known = load(train, columns) if train else None
    found = run(load(data, columns), known, options)
    facts, written = _write_policy(found, options, out, key_file)
    if as_json:
        print_json(facts)
    else:
        print(
            f"{100 * facts['device_share']:.1f}% of requests may stay on the device: regret <= "
            f"{epsilon:g} with {100 * (1 - delta):g}% confidence, by {facts['n']} prompts. "
            f"Wrote {', '.join(path.name for path in written)} to {out.parent}."
        )
        _tell_monitor(found.monitor)
    return 0


def _write_policy(
    found: Calibration, options: CalibrationOptions, out: Path, key_file: Path | None
) -> tuple[dict[str, Any], list[Path]]:
    """The certificate's facts, and the files, which lie beside each other."""
    from overspill.config import default_places
    from overspill.evals.policy_file import certificate, policy_toml
    from overspill.evals.report import page, plot_png
    from overspill.identity.file import load_or_create

    policy = policy_toml(found, options, int(time.time()))
    key = load_or_create(key_file or default_places().state / "policy-key")
    facts = certificate(found, options, policy, key)
    files = {
        scorer_path(out): found.scorer_text.encode(),
        out.with_suffix(".cert.json"): _pretty(facts).encode(),
        out.with_suffix(".png"): plot_png(found, options),
        out.with_suffix(".html"): page(found, options, facts).encode(),
        out: policy.encode(),  # last: where it is, all of it is
    }
    for path, content in files.items():
        write_bytes(path, content)
    return facts, list(files)


def _tell_monitor(found: FittedMonitor | None) -> None:
    if found is None:
        return
    if found.policy is None:
        print(f"No monitor: {found.reason}.")
        return
    report = found.report
    print(
        f"The monitor alone keeps {100 * report['device_share']:.1f}% on the device, after a "
        f"median of {report['wasted_median']:g} tokens for what leaves."
    )


@policy_app.command("verify")
def verify_policy(
    policy: PolicyFile,
    key_file: Annotated[
        Path | None, typer.Option(help="Public key (DER) that has to have signed.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check that policy, scorer and certificate belong together and are signed."""
    from overspill.routing.policy import parse_policy

    facts = verify(policy, _read(key_file) if key_file else None)
    parsed = parse_policy(_read(policy).decode(), str(policy))
    expired = parsed.is_expired(int(time.time()))
    if as_json:
        print_json({**facts, "expired": expired})
    else:
        print(
            f"{policy} is as certified: regret <= {facts['epsilon']:g} at delta = "
            f"{facts['delta']:g} by {facts['n']} prompts, signed by {facts['signed_by'][:16]}."
        )
        if expired:
            print("It has EXPIRED: routing is strict until it is calibrated again.")
    return 0


@policy_app.command("drift")
def drift_policy(
    policy: PolicyFile,
    data: DataFile,
    prompt: PromptColumn = "prompt",
    as_json: Json = False,
) -> int:
    """Whether new prompts still look as those did that the policy was calibrated on.

    Labels are not needed. Exit 4 where they don't: the guarantee says nothing about them.
    """
    require_eval()
    from overspill.evals.calibrate import drifted
    from overspill.evals.data import load_asked
    from overspill.routing.complexity import Scorer

    facts = verify(policy)
    scorer = Scorer.from_json(_read(scorer_path(policy)).decode())
    found = drifted(scorer, facts["gain_quantiles"], load_asked(data, prompt))
    if as_json:
        print_json(found)
    else:
        verdict = "have drifted: calibrate again" if found["drifted"] else "have not drifted"
        print(f"{found['n']} prompts {verdict} (distance {found['distance']:.3f}).")
    return 4 if found["drifted"] else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error


def _pretty(value: object) -> str:
    import json

    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
