"""Stage 2's detectors: what should make a request stay, found on the device by rule.

A finding says what kind and where, never what: counts can be logged, matches cannot. They miss
little of what has a check sum or a fixed form; names and free text are the user's own list's
business. Digits, dashes and spaces of other scripts count as what they look like.

Each detector first asks for something that its finding cannot do without (an ``@``, eight digits
near each other, a long word), so that text without any costs little more than being read once. What
is written in ASCII alone is looked for in ASCII: a Chinese sentence has no space before a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from overspill.routing.classes import classes_of
from overspill.routing.credentials import find_credentials, has_clue
from overspill.routing.lexis import not_ascii
from overspill.routing.listed import find_listed
from overspill.routing.phones import find_phones, find_regional
from overspill.routing.spans import Span, apart

_DOMAIN = re.compile(r"(?:[\w-]{1,63}\.)+[^\W\d_]{2,63}(?![\w-])")
_LOCAL_PART = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}\Z")
_LOCAL_CHARS = 64
# Eight digits, close enough to be one number: cards and telephone numbers are at least that. In
# classes, where a search for a digit is one for a character.
_NUMBERS = re.compile(rb"0(?:[ ()./-]{0,3}0){7,}")
# In one piece, in fours, or as American Express and Diners print it.
_CARD = re.compile(
    r"(?<![\w.,-])(?:[2-6]\d{12,18}|[2-6]\d{3}(?:[ -]\d{4}){3}(?:[ -]\d{1,3})?"
    r"|3\d{3}[ -]\d{6}[ -]\d{4,5})(?![\w-])",
    re.ASCII,
)
# First digits of the networks that issue, with their numbers' lengths (ISO/IEC 7812-1).
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11,16}"  # Diners
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    r"|(?:5[06-8]|6\d)\d{11,17}"  # Maestro, Discover, UnionPay, RuPay
)
# Two letters and the check digits, in classes; digits are searched for, there are fewer of them.
_IBAN_CHECK = re.compile(rb"00(?<=aa00)(?<![a0]aa00)(?=[ -]?[a0])")
_IBAN = re.compile(r"[A-Za-z]{2}\d\d(?:[ -]?[A-Za-z0-9]){11,30}")
_FEWEST_DIGITS = 8
_IBAN_BEGINS = b"aa00"

# Lengths by country from the registry of ISO 13616.
_IBAN_LENGTH = {
    code: int(length)
    for length, codes in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FO GL NL FK SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH CR HR LI LV",
        "22": "BG BH DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HN HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for code in codes.split()
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: its kind, and where it stands in the text."""

    kind: str
    start: int
    end: int


def luhn_valid(digits: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812-1, annex B."""
    total = 0
    for index, character in enumerate(reversed(digits)):
        digit = int(character)
        if index % 2:
            digit = digit * 2 - 9 * (digit > 4)
        total += digit
    return total % 10 == 0


def iban_valid(text: str) -> bool:
    """Whether the text (no spaces, upper case) has its country's length and mod 97 is 1.

    ISO 13616 with ISO/IEC 7064, MOD 97-10.
    """
    if _IBAN_LENGTH.get(text[:2]) != len(text) or not (text.isascii() and text.isalnum()):
        return False
    return int("".join(str(int(ch, 36)) for ch in text[4:] + text[:4])) % 97 == 1


def find_emails(text: str) -> list[Span]:
    """Addresses as people write them (RFC 5322 allows more)."""
    spans = []
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        if domain:
            # One more character than a local part may have, to see that it begins there.
            before = text[max(0, at - _LOCAL_CHARS - 1) : at]
            local = _LOCAL_PART.search(before)
            if local:
                spans.append((at - len(local.group()), domain.end()))
        at = text.find("@", at + 1)
    return spans


def find_cards(text: str, numbers: Iterable[Span]) -> list[Span]:
    """Payment card numbers among the long ones: an issuer's range and length, Luhn's check."""
    return [
        match.span()
        for start, end in numbers
        for match in _CARD.finditer(text, start, end)
        if _is_card(match.group())
    ]


def _is_card(text: str) -> bool:
    number = text.replace(" ", "").replace("-", "")
    return _ISSUERS.fullmatch(number) is not None and luhn_valid(number)


def long_numbers(classes: bytes) -> list[Span]:
    """Where many digits stand together, with what a number may begin and end with."""
    if classes.count(b"0") < _FEWEST_DIGITS:
        return []
    found = [match.span() for match in _NUMBERS.finditer(classes)]
    return [(max(0, start - 2), min(len(classes), end + 2)) for start, end in found]


def find_ibans(text: str) -> list[Span]:
    """International bank account numbers whose check digits hold."""
    spans = []
    for check in _IBAN_CHECK.finditer(classes_of(text)):
        start = check.start() - 2
        match = _IBAN.match(text, start)
        length = _IBAN_LENGTH.get(text[start : start + 2].upper())
        if match is None or length is None:
            continue
        # Words that follow look like more of the number: its country says where it ends.
        places = [start + i for i, ch in enumerate(match.group()) if ch not in " -"][:length]
        if iban_valid("".join(text[place] for place in places).upper()):
            spans.append((start, places[-1] + 1))
    return spans


def find_phone_numbers(
    text: str, numbers: Iterable[Span], regions: tuple[str, ...] = ()
) -> list[Span]:
    """Telephone numbers among the long ones, and what is one in ``regions``; see ``phones.py``."""
    spans: list[Span] = []
    for start, end in numbers:
        spans += find_phones(text, start, end)
        spans += find_regional(text, start, end, regions)
    return apart(spans)


KINDS = ("email", "phone", "card", "iban", "api_key", "listed")
"""What can be looked for; ``listed`` is the user's own list, see ``listed.py``."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for: kinds, the user's own terms, and regions whose telephone numbers count
    (ISO 3166-1, two letters)."""

    kinds: tuple[str, ...] = KINDS
    terms: tuple[str, ...] = ()
    phone_regions: tuple[str, ...] = ()


def find(text: str, wanted: Wanted) -> list[Finding]:
    """All that was found, kind by kind. Findings of two kinds may overlap, but what looks like a
    telephone number within a card's or an account's number is none."""
    plain = text if text.isascii() else _plain(text)
    classes = classes_of(plain)
    numbers = long_numbers(classes)
    possible = _possible(plain, classes, numbers, wanted)
    found = []
    for kind in [kind for kind in wanted.kinds if kind in possible] if possible else ():
        for start, end in _spans(kind, text, plain, numbers, wanted):
            found.append(Finding(kind, start, end))
    return [one for one in found if not _is_part(one, found)] if len(found) > 1 else found


def _possible(plain: str, classes: bytes, numbers: Sequence[Span], wanted: Wanted) -> list[str]:
    """The kinds of which a text, of which ``classes`` are the characters' classes, has what a
    finding cannot do without."""
    possible = ["phone", "card"] if numbers else []
    if "@" in plain:
        possible.append("email")
    if _IBAN_BEGINS in classes:
        possible.append("iban")
    if has_clue(plain, classes):
        possible.append("api_key")
    if wanted.terms:
        possible.append("listed")
    return possible


def _spans(
    kind: str, text: str, plain: str, numbers: Sequence[Span], wanted: Wanted
) -> Sequence[Span]:
    match kind:
        case "email":
            return find_emails(plain)
        case "phone":
            return find_phone_numbers(plain, numbers, wanted.phone_regions)
        case "card":
            return find_cards(plain, numbers)
        case "iban":
            return find_ibans(plain)
        case "api_key":
            return find_credentials(plain)
        case _:
            return find_listed(text, wanted.terms)


def _is_part(one: Finding, found: Sequence[Finding]) -> bool:
    return one.kind == "phone" and any(
        other.kind in ("card", "iban") and other.start <= one.start and one.end <= other.end
        for other in found
    )


def detect(text: str, wanted: Wanted) -> dict[str, int]:
    """Counts of what was found; kinds with none are left out."""
    found = find(text, wanted)
    return dict(Counter([one.kind for one in found])) if found else {}


def _plain(text: str) -> str:
    """The text with digits, dashes, spaces and letters of full width as ASCII has them.

    Character by character, so that what is found stands at the same place in the text.
    """
    for character in not_ascii(text):
        if (look := _look_of(character)) != character:
            text = text.replace(character, look)
    return text


@lru_cache(maxsize=8192)
def _look_of(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    category = unicodedata.category(character)
    if category in ("Pd", "Zs"):
        return "-" if category == "Pd" else " "
    narrow = unicodedata.normalize("NFKC", character)
    return narrow if len(narrow) == 1 and narrow.isascii() else character
