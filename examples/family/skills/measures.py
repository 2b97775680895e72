"""Unit and date sums, with the rule that applies and the steps written out."""

from __future__ import annotations

from random import Random

from examples.family.skills.arithmetic import add_working, mul_working, sub_working
from examples.family.skills.common import MONTH_DAYS, MONTHS, WEEKDAYS, Record, polite, user

# (one unit, several, the smaller unit in words, its symbol-free name, factor)
_POWERS = (
    ("km", "metres", 1000),
    ("kg", "grams", 1000),
    ("litres", "millilitres", 1000),
    ("metres", "centimetres", 100),
    ("cm", "millimetres", 10),
    ("dollars", "cents", 100),
)
_TIMES = (
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("weeks", "days", 7),
    ("days", "hours", 24),
    ("years", "months", 12),
    ("dozen", "pieces", 12),
)
_ASK = (
    "How many {to} are {n} {fr}?",
    "Convert {n} {fr} to {to}.",
    "What is {n} {fr} in {to}?",
    "{n} {fr} in {to}?",
    "Change {n} {fr} into {to}.",
    "How many {to} are there in {n} {fr}?",
)


def _power(rng: Random) -> Record:
    """A decimal conversion: zeros are appended."""
    fr, to, factor = rng.choice(_POWERS)
    n = rng.randint(2, 99)
    text = polite(rng, rng.choice(_ASK).format(n=n, fr=fr, to=to))
    answer = f"1 {fr}={factor} {to}\n{n}*{factor}\nAnswer: {n * factor} {to}"
    return Record(
        "units", "easy", [user(text)], answer, "number", str(n * factor), key=f"{n} {fr} {to}"
    )


def _times(rng: Random) -> Record:
    """A conversion by a factor that needs a multiplication."""
    fr, to, factor = rng.choice(_TIMES)
    n = rng.randint(2, 29)
    text = polite(rng, rng.choice(_ASK).format(n=n, fr=fr, to=to))
    value = n * factor
    # 60 is 6 with a zero appended, so that one digit's steps are enough.
    steps = f"{mul_working(n, 6)}\n{n * 6}*10" if factor == 60 else mul_working(n, factor)
    answer = f"1 {fr}={factor} {to}\n{steps}\nAnswer: {value} {to}"
    return Record(
        "units",
        "medium",
        [user(text)],
        answer,
        "number",
        str(value),
        max_tokens=160,
        key=f"{n} {fr} {to}",
    )


def _mixed(rng: Random) -> Record:
    """Hours and minutes into minutes (or metres and centimetres into centimetres)."""
    big, small, factor = rng.choice((("hours", "minutes", 60), ("metres", "centimetres", 100)))
    n, m = rng.randint(2, 9), rng.randint(11, factor - 1)
    text = rng.choice(
        (
            "How many {s} are {n} {b} and {m} {s}?",
            "Convert {n} {b} and {m} {s} to {s}.",
            "{n} {b} and {m} {s} in {s}?",
        )
    ).format(n=n, m=m, b=big, s=small)
    value = n * factor + m
    answer = (
        f"1 {big}={factor} {small}\n{n}*{factor}={n * factor}\n"
        f"{add_working(n * factor, m)}\nAnswer: {value} {small}"
    )
    return Record(
        "units",
        "medium",
        [user(polite(rng, text))],
        answer,
        "number",
        str(value),
        max_tokens=128,
        key=f"{n} {big} {m}",
    )


def _split_minutes(rng: Random) -> Record:
    """Minutes into hours and minutes: the largest multiple of 60, then the rest."""
    n = rng.randint(61, 599)
    hours, rest = divmod(n, 60)
    text = rng.choice(
        (
            "How many hours and minutes are {n} minutes?",
            "Write {n} minutes as hours and minutes.",
            "Convert {n} minutes to hours and minutes.",
        )
    ).format(n=n)
    answer = f"{hours}*60={hours * 60}\n{sub_working(n, hours * 60)}"
    final = f"{hours} hours {rest} minutes"
    return Record(
        "units",
        "hard",
        [user(polite(rng, text))],
        f"{answer}\nAnswer: {final}",
        "exact",
        final,
        max_tokens=128,
        key=f"{n} split",
    )


def _clock(rng: Random) -> Record:
    """A time of day plus a duration: minutes first, an hour carried at 60."""
    h, m = rng.randint(6, 14), rng.randint(0, 59)
    dh, dm = rng.randint(1, 7), rng.randint(5, 59)
    text = rng.choice(
        (
            "A train leaves at {t} and takes {dh} h {dm} min. When does it arrive?",
            "It is {t}. What time is it in {dh} h {dm} min?",
            "A film starts at {t} and lasts {dh} h {dm} min. When does it end?",
            "What is {t} plus {dh} h {dm} min?",
        )
    ).format(t=f"{h:02d}:{m:02d}", dh=dh, dm=dm)
    total = m + dm
    lines = [add_working(m, dm), f"={total}"]
    if total >= 60:
        lines += [sub_working(total, 60), f"={total - 60} carry 1"]
    else:
        lines += ["carry 0"]
    hour = h + dh + total // 60
    final = f"{hour:02d}:{total % 60:02d}"
    lines += [f"{h}+{dh}+{total // 60}={hour}", f"Answer: {final}"]
    return Record(
        "units",
        "hard",
        [user(polite(rng, text))],
        "\n".join(lines),
        "exact",
        final,
        max_tokens=128,
        key=f"{h}:{m}+{dh}:{dm}",
    )


def make_units(rng: Random, level: str) -> Record:
    """One unit sum of the given level."""
    if level == "easy":
        return _power(rng)
    if level == "medium":
        return (_times if rng.random() < 0.6 else _mixed)(rng)
    return (_clock if rng.random() < 0.5 else _split_minutes)(rng)


def _cycle_steps(rng: Random) -> Record:
    """A weekday or month some steps on or back, by naming each step."""
    cycle, unit = (WEEKDAYS, "days") if rng.random() < 0.6 else (MONTHS, "months")
    start, n = rng.randrange(len(cycle)), rng.randint(2, 6)
    back = rng.random() < 0.3
    word = rng.choice(("before",)) if back else rng.choice(("after", "later than"))
    name = cycle[start]
    forms: tuple[str, ...] = (
        "What comes {n} {u} {w} {d}?",
        "Which one is {n} {u} {w} {d}?",
        "Name what is {n} {u} {w} {d}.",
    )
    if unit == "days":
        forms += ("What day is {n} {u} {w} {d}?", "Which day comes {n} {u} {w} {d}?")
        if not back:
            forms += ("Today is {d}. What day is it in {n} {u}?",)
    else:
        forms += ("What month is {n} {u} {w} {d}?", "Which month comes {n} {u} {w} {d}?")
    text = rng.choice(forms).format(n=n, u=unit, w=word, d=name)
    sign = -1 if back else 1
    steps = [f"{k} {cycle[(start + sign * k) % len(cycle)]}" for k in range(1, n + 1)]
    final = cycle[(start + sign * n) % len(cycle)]
    answer = f"{name}, " + ", ".join(steps) + f"\nAnswer: {final}"
    return Record("dates", "easy", [user(polite(rng, text))], answer, "exact", final)


def _add_days(rng: Random, level: str) -> Record:
    """A date plus days, over the end of one month (medium) or of two (hard)."""
    month = rng.randrange(12)
    day = rng.randint(2, MONTH_DAYS[month])
    n = rng.randint(3, 27) if level == "medium" else rng.randint(32, 58)
    text = rng.choice(
        (
            "What date is {n} days after {d}?",
            "Which date comes {n} days after {d}?",
            "Today is {d}. What date is it in {n} days?",
            "Add {n} days to {d}.",
            "A parcel sent on {d} takes {n} days. When does it arrive?",
        )
    ).format(n=n, d=f"{MONTHS[month]} {day}")
    total = day + n
    lines = [add_working(day, n), f"={total}"]
    while total > MONTH_DAYS[month]:
        length = MONTH_DAYS[month]
        lines += [f"{MONTHS[month]} has {length}", sub_working(total, length), f"={total - length}"]
        total -= length
        month = (month + 1) % 12
    lines += [f"{MONTHS[month]} has {MONTH_DAYS[month]}"]
    final = f"{MONTHS[month]} {total}"
    return Record(
        "dates",
        level,
        [user(polite(rng, text))],
        "\n".join(lines) + f"\nAnswer: {final}",
        "exact",
        final,
        max_tokens=160,
        key=f"{MONTHS[month]} {day} {n}",
    )


def _days_between(rng: Random) -> Record:
    """Days from a date to one in the next or the next but one month (hard)."""
    first = rng.randrange(10)
    last = first + rng.randint(1, 2)
    d1, d2 = rng.randint(3, MONTH_DAYS[first] - 1), rng.randint(2, 27)
    text = rng.choice(
        (
            "How many days are there from {a} to {b}?",
            "How many days is it from {a} until {b}?",
            "Count the days from {a} to {b}.",
        )
    ).format(a=f"{MONTHS[first]} {d1}", b=f"{MONTHS[last]} {d2}")
    total = MONTH_DAYS[first] - d1
    lines = [f"{MONTHS[first]} has {MONTH_DAYS[first]}", sub_working(MONTH_DAYS[first], d1)]
    lines.append(f"={total}")
    if last == first + 2:
        middle = MONTH_DAYS[first + 1]
        lines += [f"{MONTHS[first + 1]} has {middle}", add_working(total, middle)]
        total += middle
        lines.append(f"={total}")
    lines += [f"{MONTHS[last]} {d2}", add_working(total, d2)]
    total += d2
    return Record(
        "dates",
        "hard",
        [user(polite(rng, text))],
        "\n".join(lines) + f"\nAnswer: {total}",
        "number",
        str(total),
        max_tokens=160,
        key=f"{first} {d1} {last} {d2}",
    )


def make_dates(rng: Random, level: str) -> Record:
    """One date sum of the given level."""
    if level == "easy":
        return _cycle_steps(rng)
    if level == "medium" or rng.random() < 0.5:
        return _add_days(rng, level)
    return _days_between(rng)
