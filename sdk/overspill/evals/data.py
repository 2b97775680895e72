"""Reads results of two models, prompt by prompt: CSV or JSONL, ``.gz`` too.

A column may stand in a nested object: ``scores:llama-3.1-8b`` is the value under
``llama-3.1-8b`` in the object ``scores`` (only the first colon splits). In a CSV file such an
object is JSON in its cell. Where rows have ``messages`` (and ``tools``), they are what was asked,
turns before the last one and all; ``prompt`` names it to people and finds near-duplicates.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from overspill.arguments import build_request
from overspill.errors import InvalidRequest, UsageError
from overspill.evals.metrics import Floats, Outcomes
from overspill.types.chat import Privacy, Request

_LABELS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
_GROUPS = ("subject", "task")
_MAX_CELL_CHARS = 16 * 2**20
Record = Mapping[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what. ``group`` None: ``subject``, else ``task``, else none. ``larger`` is
    the result of a larger model on the device."""

    prompt: str = "prompt"
    small: str = "small_correct"
    large: str = "large_correct"
    group: str | None = None
    confidence: str | None = None
    larger: str | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """Prompts with both models' results; all sequences are equally long.

    ``groups`` is a benchmark, subject or task of each prompt; ``confidence`` the small model's own
    (any scale, more is surer), shape (n,). ``requests`` are the conversations and ``ids`` the
    prompts' names in logs, where there are any. ``larger`` is a larger device model's quality.
    """

    prompts: tuple[str, ...]
    outcomes: Outcomes
    groups: tuple[str, ...] | None = None
    confidence: Floats | None = None
    requests: tuple[Request, ...] | None = None
    ids: tuple[str, ...] | None = None
    larger: Floats | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def asked(self) -> Sequence[str | Request]:
        """What a router sees of each row."""
        return self.prompts if self.requests is None else self.requests

    def take(self, rows: Any) -> Results:
        """Some of the rows, by their numbers."""
        return Results(
            tuple(self.prompts[i] for i in rows),
            self.outcomes.take(np.asarray(rows, dtype=np.intp)),
            None if self.groups is None else tuple(self.groups[i] for i in rows),
            None if self.confidence is None else self.confidence[rows],
            None if self.requests is None else tuple(self.requests[i] for i in rows),
            None if self.ids is None else tuple(self.ids[i] for i in rows),
            None if self.larger is None else self.larger[rows],
        )


def load(path: Path, columns: Columns) -> Results:
    """Read a file of results.

    Raises :class:`~overspill.errors.UsageError`, naming file, row and column, for what is not
    there, not readable or not a label from 0 to 1.
    """
    records = list(read_records(path))
    if not records:
        raise UsageError(f"{path} holds no rows.", mend="One row is one prompt.")
    cells = _Cells(path, records)
    group = columns.group or next((name for name in _GROUPS if name in records[0]), None)
    return Results(
        prompts=tuple(cells.read(columns.prompt, _prompt)),
        outcomes=Outcomes(
            np.array(cells.read(columns.small, _label)), np.array(cells.read(columns.large, _label))
        ),
        groups=None if group is None else tuple(cells.read(group, str)),
        confidence=np.array(cells.read(columns.confidence, _number))
        if columns.confidence
        else None,
        requests=cells.requests() if "messages" in records[0] else None,
        ids=tuple(cells.read("id", str)) if "id" in records[0] else None,
        larger=np.array(cells.read(columns.larger, _label)) if columns.larger else None,
    )


def load_asked(path: Path, column: str) -> Sequence[str | Request]:
    """What a file's rows ask, without results. Raises as :func:`load`."""
    records = list(read_records(path))
    if not records:
        raise UsageError(f"{path} holds no rows.", mend="One row is one prompt.")
    cells = _Cells(path, records)
    return cells.requests() if "messages" in records[0] else tuple(cells.read(column, _prompt))


@dataclass(frozen=True, slots=True)
class _Cells:
    path: Path
    records: list[Record]

    def read(self, column: str, parse: Callable[[Any], _T]) -> list[_T]:
        return [self._one(row, column, parse) for row in range(len(self.records))]

    def requests(self) -> tuple[Request, ...]:
        """Each row's conversation."""
        found = []
        for row, record in enumerate(self.records, 1):
            try:
                found.append(request_of(record))
            except (ValueError, InvalidRequest) as error:
                raise UsageError(f"{self.path}: row {row}, 'messages': {error}") from None
        return tuple(found)

    def _one(self, row: int, column: str, parse: Callable[[Any], _T]) -> _T:
        record = self.records[row]
        try:
            return parse(_cell(record, column))
        except KeyError:
            known = ", ".join(sorted(map(str, record))[:12])
            raise UsageError(
                f"{self.path}: row {row + 1} has no '{column}'.",
                mend=f"It has: {known}. Name the column by an option; KEY in an object is "
                "written OBJECT:KEY.",
            ) from None
        except ValueError as error:
            raise UsageError(f"{self.path}: row {row + 1}, '{column}': {error}.") from None


def request_of(record: Record) -> Request:
    """A row's messages and tools as a request. Raises ``ValueError`` or ``InvalidRequest``."""
    messages, tools = (objects_of(record.get(name), name) for name in ("messages", "tools"))
    return build_request(messages, app="evals", floor=Privacy.ANY, tools=tools)


def json_of(text: str) -> Any:
    """A JSON text's value. Raises ``ValueError``, also for what is nested beyond reading."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None


def objects_of(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of objects; in a CSV file it is JSON in its cell."""
    if isinstance(value, str) and value.strip():
        value = json_of(value)
    found = value or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"'{name}' is no list of objects.")
    return found


def _cell(record: Record, column: str) -> Any:
    if column in record:
        return record[column]
    outer, colon, key = column.partition(":")
    if not colon:
        raise KeyError(column)
    value = record[outer]
    if isinstance(value, str):
        try:
            value = json_of(value)
        except ValueError:
            raise ValueError(f"'{outer}' is no JSON object") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"'{outer}' is no object")
    return value[key]


def _prompt(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a prompt is a text that is not empty")
    # Routing refuses a lone surrogate: here it would end a whole evaluation.
    return value.encode("utf-8", "replace").decode()


def _label(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{number:g} is no label: a boolean, 0 or 1, or a score from 0 to 1")
    return number


def _number(value: Any) -> float:
    text = str(value).strip().lower()
    if value is None or not text:
        raise ValueError("the value is missing")
    try:
        number = _LABELS[text] if text in _LABELS else float(text)
    except ValueError:
        raise ValueError(f"{str(value)[:40]!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a file, CSV or JSONL by its ending. Raises ``UsageError`` by file and line."""
    text = _text(path)
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if kind == ".csv":
        csv.field_size_limit(_MAX_CELL_CHARS)
        yield from csv.DictReader(io.StringIO(text, newline=""))
    elif kind in (".jsonl", ".ndjson", ".json"):
        yield from _json_lines(path, text)
    else:
        raise UsageError(
            f"{path} is neither CSV nor JSONL by its ending.", mend="Use .csv or .jsonl, or .gz."
        )


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json_of(line)
        except ValueError as error:
            raise UsageError(f"{path}: line {number} is no JSON: {error}.") from error
        if not isinstance(record, dict):
            raise UsageError(f"{path}: line {number} is no JSON object.")
        yield record


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except OSError as error:
        why = error.strerror or "it is no gzip file"
        raise UsageError(f"{path} cannot be read: {why}.") from error
    except (EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is cut short or is not UTF-8.") from error
