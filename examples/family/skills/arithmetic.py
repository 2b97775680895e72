"""Sums with their working: one short step per digit, least significant digit first.

Every step has a fixed width and names all it needs (both digits and the carry), so that the
next token depends on a few tokens at fixed distances. That is what a small model can learn.
"""

from __future__ import annotations

from random import Random

from examples.family.skills.common import NAMES, Record, polite, user

_ASK = {
    "+": (
        "What is {a} + {b}?",
        "{a} + {b}",
        "{a} + {b} = ?",
        "Add {a} and {b}.",
        "Calculate {a} + {b}.",
        "How much is {a} plus {b}?",
        "What's {a} plus {b}?",
        "Find the sum of {a} and {b}.",
        "Work out {a}+{b}.",
        "Compute {a} + {b} and show your working.",
        "Solve: {a} + {b}",
    ),
    "-": (
        "What is {a} - {b}?",
        "{a} - {b}",
        "{a} - {b} = ?",
        "Subtract {b} from {a}.",
        "Calculate {a} - {b}.",
        "How much is {a} minus {b}?",
        "What's {a} minus {b}?",
        "Take {b} away from {a}.",
        "Work out {a}-{b}.",
        "Compute {a} - {b} and show your working.",
    ),
    "*": (
        "What is {a} * {b}?",
        "What is {a} x {b}?",
        "{a} * {b} = ?",
        "Multiply {a} by {b}.",
        "Calculate {a} * {b}.",
        "How much is {a} times {b}?",
        "What's {a} times {b}?",
        "Find the product of {a} and {b}.",
        "Work out {a}*{b}.",
    ),
}
_STORY_ADD = (
    "{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?",
    "There are {a} {t} in one box and {b} in another. How many {t} are there in all?",
    "{n} picked {a} {t} on Monday and {b} on Tuesday. How many in total?",
    "A shop sold {a} {t} in the morning and {b} after lunch. How many did it sell?",
)
_STORY_SUB = (
    "{n} has {a} {t} and gives away {b}. How many {t} are left?",
    "There were {a} {t}. {n} took {b} of them. How many remain?",
    "A shop had {a} {t} and sold {b}. How many are left?",
    "{n} had {a} {t} but lost {b}. How many does {n} still have?",
)
_STORY_MUL = (
    "There are {a} boxes with {b} {t} each. How many {t} are there?",
    "{n} buys {a} bags of {b} {t}. How many {t} is that?",
    "One pack costs {b} dollars. How many dollars do {a} packs cost?",
)
_STORY_THINGS = "apples books coins cards eggs pens stamps stones shells tickets".split()


def add_working(a: int, b: int) -> str:
    """Write a + b digit by digit: ``347+038`` then ``7+8+0=15``, carry last."""
    width = max(len(str(a)), len(str(b)))
    left, right = str(a).zfill(width), str(b).zfill(width)
    steps, carry = [], 0
    for x, y in zip(reversed(left), reversed(right), strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return f"{left}+{right}\n" + "\n".join(steps)


def sub_working(a: int, b: int) -> str:
    """Write a - b (a >= b) digit by digit; a leading 1 in a step is what was borrowed."""
    width = len(str(a))
    left, right = str(a), str(b).zfill(width)
    steps, borrow = [], 0
    for x, y in zip(reversed(left), reversed(right), strict=True):
        taken = int(int(x) - int(y) - borrow < 0)
        rest = 10 * taken + int(x) - int(y) - borrow
        steps.append(f"{taken}{x}-{y}-{borrow}={rest}")
        borrow = taken
    return f"{left}-{right}\n" + "\n".join(steps)


def times_digit_steps(a: int, digit: int) -> str:
    """Write the steps of a * digit, one per digit of a, as ``7*6+0=42``."""
    steps, carry = [], 0
    for x in reversed(str(a)):
        total = int(x) * digit + carry
        steps.append(f"{x}*{digit}+{carry}={total:02d}")
        carry = total // 10
    return "\n".join(steps)


def mul_working(a: int, b: int) -> str:
    """Write a * b: partial products by the digits of b, then their sum (b below 100)."""
    if b < 10:
        return f"{a}*{b}\n{times_digit_steps(a, b)}"
    ones, tens = a * (b % 10), a * (b // 10) * 10
    return (
        f"{a}*{b}\n{times_digit_steps(a, b % 10)}\n={ones}\n"
        f"{times_digit_steps(a, b // 10)}\n={tens}\n{add_working(ones, tens)}"
    )


def solve(a: int, op: str, b: int) -> tuple[str, int]:
    """Return the working and the value of ``a op b``."""
    if op == "+":
        return add_working(a, b), a + b
    if op == "-":
        return sub_working(a, b), a - b
    return mul_working(a, b), a * b


def _operands(rng: Random, level: str) -> tuple[int, str, int]:
    """Draw a problem; the level sets the number of digits, hence of steps."""
    op = rng.choice("+-*")
    if level == "easy":
        if op == "*":
            return rng.randint(2, 12), op, rng.randint(2, 9)
        a, b = rng.randint(2, 99), rng.randint(1, 99)
    elif level == "medium":
        if op == "*":
            return rng.randint(12, 99), op, rng.randint(2, 9)
        a, b = rng.randint(100, 999), rng.randint(12, 999)
    else:
        if op == "*":
            if rng.random() < 0.5:
                return rng.randint(101, 999), op, rng.randint(3, 9)
            return rng.randint(12, 99), op, rng.randint(12, 99)
        a, b = rng.randint(1000, 99999), rng.randint(101, 99999)
    if op == "-" and a < b:
        a, b = b, a
    return a, op, b


def _three_terms(rng: Random) -> Record:
    """A sum of three numbers: two additions one after the other (hard)."""
    a, b, c = (rng.randint(11, 999) for _ in range(3))
    text = rng.choice(
        ("What is {a} + {b} + {c}?", "Add {a}, {b} and {c}.", "Work out {a} + {b} + {c}.")
    ).format(a=a, b=b, c=c)
    working = f"{add_working(a, b)}\n={a + b}\n{add_working(a + b, c)}"
    return Record(
        "arithmetic",
        "hard",
        [user(polite(rng, text))],
        f"{working}\nAnswer: {a + b + c}",
        "number",
        str(a + b + c),
        max_tokens=160,
        key=f"{a}+{b}+{c}",
    )


def make(rng: Random, level: str) -> Record:
    """One sum of the given level, bare or wrapped in a little story."""
    if level == "hard" and rng.random() < 0.15:
        return _three_terms(rng)
    a, op, b = _operands(rng, level)
    if rng.random() < 0.25 and level != "hard":
        forms = {"+": _STORY_ADD, "-": _STORY_SUB, "*": _STORY_MUL}[op]
        text = rng.choice(forms).format(a=a, b=b, n=rng.choice(NAMES), t=rng.choice(_STORY_THINGS))
    else:
        text = polite(rng, rng.choice(_ASK[op]).format(a=a, b=b))
    working, value = solve(a, op, b)
    return Record(
        "arithmetic",
        level,
        [user(text)],
        f"{working}\nAnswer: {value}",
        "number",
        str(value),
        max_tokens=160,
        key=f"{a}{op}{b}",
    )
