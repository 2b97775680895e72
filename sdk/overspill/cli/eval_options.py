"""What the verbs of evaluation and calibration share: options, and writing files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overspill.errors import MissingExtra, UsageError

DataFile = Annotated[Path, typer.Option("--data", help="Results of two models: CSV or JSONL, .gz.")]
TrainFile = Annotated[
    Path | None, typer.Option("--train", help="Fit on this file instead of cross-fitting.")
]
PromptColumn = Annotated[str, typer.Option("--prompt", help="Column of the prompt.")]
SmallColumn = Annotated[str, typer.Option("--small", help="Small model: right, or 0 to 1.")]
LargeColumn = Annotated[str, typer.Option("--large", help="Large model: right, or 0 to 1.")]
GroupColumn = Annotated[
    str | None, typer.Option("--group", help="Column of the benchmark. Default: subject, or task.")
]
LargerColumn = Annotated[
    str | None,
    typer.Option("--larger-device", help="Column of a larger device model: right, or 0 to 1."),
]
ConfidenceColumn = Annotated[
    str | None, typer.Option("--confidence", help="Column of the small model's own confidence.")
]


def require_eval() -> None:
    """Raises :class:`MissingExtra` where numpy is not installed."""
    try:
        import numpy as _  # noqa: F401  # asked for its presence only
    except ImportError:
        raise MissingExtra("Evaluation", "eval") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file and the folders above it. Raises ``UsageError`` where that can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
