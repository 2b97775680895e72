"""Telephone numbers: our own cautious pattern, and ``phonenumbers`` for the regions that are named.

The pattern knows the international form (E.164 with its plus or 00), national numbers with their
leading 0 in groups, and the North American grouping: national numbers in one piece look like any
other number to it. A policy that names ``phone_regions`` ("DE", "US" ...) also gets what Google's
metadata says is a number there; that needs the extra ``phones`` and is refused without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec

from overspill.errors import MissingExtra
from overspill.routing.spans import Span

_PHONE = re.compile(
    r"(?<![\w+.,])(?:"
    r"(?:\+|00)[1-9](?:[ ./-]?\(?\d{1,4}\)?){2,6}"
    r"|\(0\d{1,4}\)[ ./-]?\d{2,4}(?:[ ./-]?\d{2,4}){1,3}"
    r"|\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}"
    r"|\d{3}[.-]\d{3}[.-]\d{4}"
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5}"
    r"|0\d(?:[ .]\d\d){4}"
    r")(?![\w-])",
    re.ASCII,
)
_NOT_DIGITS = re.compile(r"\D")
_MIN_DIGITS, _MAX_DIGITS = 8, 15


def find_phones(text: str, start: int, end: int) -> Iterator[Span]:
    """Numbers in their usual groupings between two places, 8 to 15 digits (ITU-T E.164)."""
    for match in _PHONE.finditer(text, start, end):
        number = match.group()
        if _MIN_DIGITS <= len(_NOT_DIGITS.sub("", number)) <= _MAX_DIGITS:
            closes_what_it_did_not_open = number.endswith(")") and "(" not in number
            yield match.start(), match.end() - closes_what_it_did_not_open


def find_regional(text: str, start: int, end: int, regions: tuple[str, ...]) -> Iterator[Span]:
    """What is a valid number in one of the regions, or of another country with its plus."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    for region in regions:
        for match in PhoneNumberMatcher(text[start:end], region, leniency=Leniency.VALID):
            yield start + match.start, start + match.end


def check_regions(regions: tuple[str, ...]) -> None:
    """Raise ``MissingExtra`` where regions are named and nobody here knows them."""
    if regions and find_spec("phonenumbers") is None:
        raise MissingExtra("Telephone numbers by region (phone_regions)", "phones")
