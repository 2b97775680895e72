"""How much a stranger's chat template may make: bounds that are looked at before, not after.

One rendering has a budget of steps and of characters. Whatever can make a text or a list longer
says how long first (:func:`spend`), so that no short template takes all memory.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import string
from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from typing import Any

from jinja2.utils import Namespace

MAX_STEPS = 200_000
MAX_PROMPT_CHARS = 16 * 1024 * 1024
MAX_MADE_CHARS = 8 * MAX_PROMPT_CHARS
"""Of all texts together that one rendering makes on its way."""
MAX_ITEMS = 200_000
"""Of one value that is written as text, with what its lists hold."""

_MAX_INTEGER_BITS = 1024
_MAX_PLACE_CHARS = 10_000
_LETTER_CHARS = 4
"""What a letter counts that becomes an item of its own."""
_WIDE = re.compile(r"[0-9]{5}")
_PERCENT = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*?(?:\*|[0-9]{5})")


class BudgetSpent(Exception):
    """The template ran for too many steps or made too much text."""


class _Budget:
    """What one rendering has left."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.chars = MAX_MADE_CHARS


_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("template_budget")


@contextlib.contextmanager
def budget() -> Iterator[None]:
    """A new budget for what is rendered inside."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def step() -> None:
    """Take one step; raises :class:`BudgetSpent` where none is left."""
    left = _budget.get()
    left.steps -= 1
    if left.steps < 0:
        raise BudgetSpent


def spend(chars: int) -> None:
    """Say that a text of this length is about to be made; raises :class:`BudgetSpent`."""
    left = _budget.get()
    left.chars -= chars
    if chars > MAX_PROMPT_CHARS or left.chars < 0:
        raise BudgetSpent


def weight(value: Any) -> int:
    """About how many characters a value is as text. Raises :class:`BudgetSpent` over the limit.

    A list that holds another one twice, and so on, is short to write and endless to read.
    """
    if isinstance(value, str):
        return len(value)
    total, seen, left = 0, 0, [value]
    while left:
        item, seen = left.pop(), seen + 1
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, list | tuple):
            left.extend(item)
        elif isinstance(item, int):
            total += item.bit_length() // 3
        elif isinstance(item, Mapping):
            left.extend(item)
            left.extend(item.values())
        elif isinstance(item, Set | ValuesView):
            left.extend(item)
        elif isinstance(item, Namespace):
            # What it holds is hidden, and no template means to write it.
            raise BudgetSpent
        if seen + len(left) > MAX_ITEMS or total > MAX_PROMPT_CHARS:
            raise BudgetSpent
    return total + 2 * seen


def text_of(value: Any) -> str:
    """A value as text, once that is known to be within bounds."""
    weight(value)
    return str(value)


def size(value: Any) -> int:
    """What a value that was just made counts; the texts of a list were there before."""
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def listed(value: Any) -> list[Any]:
    """The items of what a template gives as a list; a text's letters take more than the text."""
    if isinstance(value, str):
        spend(_LETTER_CHARS * len(value))
    return list(value)


def check_sum(left: Any, right: Any) -> None:
    """``left + right``."""
    if _is_sequence(left) and _is_sequence(right):
        spend(len(left) + len(right))


def check_product(left: Any, right: Any) -> None:
    """``left * right``: a text so many times, or integers."""
    for repeated, times in ((left, right), (right, left)):
        if _is_sequence(repeated) and isinstance(times, int):
            spend(len(repeated) * max(times, 0))
    integers = isinstance(left, int) and isinstance(right, int)
    if integers and left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
        raise BudgetSpent


def check_joined(separator: Any, items: Sequence[Any]) -> None:
    """``separator.join(items)``."""
    spend(weight(items) + len(items) * weight(separator))


def check_replaced(text: str, old: str, new: str) -> None:
    """``text.replace(old, new)``."""
    spend(len(text) + text.count(old) * max(0, len(new) - len(old)))


def check_indented(text: str, width: Any) -> None:
    """``text | indent(width)``: of each line."""
    each = width if isinstance(width, int) else weight(width)
    spend(len(text) + (text.count("\n") + 2) * max(each, 0))


def check_percent(text: str, values: Any) -> None:
    """``text % values``, in C's form."""
    if _PERCENT.search(text):
        raise BudgetSpent
    spend(len(text) + text.count("%") * (_MAX_PLACE_CHARS + weight(values)))


def check_format(text: str, values: Any) -> None:
    """``text.format(*values)``. Raises ``ValueError`` for a text that is no format."""
    places = [spec for _, field, spec, _ in string.Formatter().parse(text) if field is not None]
    if any(spec and ("{" in spec or _WIDE.search(spec)) for spec in places):
        raise BudgetSpent
    spend(len(text) + len(places) * (_MAX_PLACE_CHARS + weight(values)))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, str | list | tuple)
