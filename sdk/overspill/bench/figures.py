"""Figures: what a benchmark says, under a stable name, beside what was asked of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Relation(StrEnum):
    """Which side of the asked value is good."""

    AT_LEAST = "at_least"
    AT_MOST = "at_most"


@dataclass(frozen=True, slots=True)
class Asked:
    """A value to reach."""

    relation: Relation
    value: float

    def holds(self, measured: float) -> bool:
        """Whether a measured value reaches it."""
        if self.relation is Relation.AT_LEAST:
            return measured >= self.value
        return measured <= self.value


def at_least(value: float) -> Asked:
    """Good is ``value`` or more."""
    return Asked(Relation.AT_LEAST, value)


def at_most(value: float) -> Asked:
    """Good is ``value`` or less."""
    return Asked(Relation.AT_MOST, value)


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """What is to be measured: a stable dotted lower-case name, its unit, and what is asked.

    A figure without ``asked`` stands beside another to explain it. ``about`` says in a line what
    is compared with what.
    """

    name: str
    unit: str
    about: str
    asked: Asked | None = None

    def measured(self, value: float) -> Figure:
        """The figure with its value; what is not a number counts as not measured."""
        if not math.isfinite(value):
            return self.missing("the measurement gave no number")
        return Figure(self, value)

    def missing(self, reason: str) -> Figure:
        """The figure without a value, and why."""
        return Figure(self, None, reason)


@dataclass(frozen=True, slots=True)
class Figure:
    """A spec and what came of it; ``value`` None always has a ``reason``."""

    spec: FigureSpec
    value: float | None
    reason: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether it reaches what was asked; None where nothing was, or nothing was measured."""
        if self.value is None or self.spec.asked is None:
            return None
        return self.spec.asked.holds(self.value)

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape that all benchmarks share."""
        asked = self.spec.asked
        shape: dict[str, Any] = {
            "name": self.spec.name,
            "value": self.value,
            "unit": self.spec.unit,
            "asked": None if asked is None else asked.value,
            "bound": None if asked is None else asked.relation.value,
            "ok": self.ok,
            "about": self.spec.about,
        }
        if self.value is None:
            shape["reason"] = self.reason
        return shape
