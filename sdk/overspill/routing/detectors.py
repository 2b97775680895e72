"""Stage 2's detectors: what should make a request stay, found on the device by rule.

Each returns how many it found and never what: counts can be logged, matches cannot. They are
meant to miss little of what has a check sum or a fixed form; names and free text are the user's
own list's business.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,63}(?![\w-])")
# E.164 with its plus, (0xx) and 0xx national forms, and the North American grouping.
_PHONE = re.compile(
    r"(?<![\w+.,])(?:"
    r"(?:\+|00)[1-9](?:[ ./-]?\(?\d{1,4}\)?){2,6}"
    r"|\(0\d{1,4}\)[ ./-]?\d{2,4}(?:[ ./-]?\d{2,4}){1,3}"
    r"|\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}"
    r"|\d{3}[.-]\d{3}[.-]\d{4}"
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5}"
    r")(?![\w-])"
)
# In one piece, in fours, or as American Express prints it.
_CARD = re.compile(
    r"(?<![\w.,-])(?:[2-6]\d{12,18}|[2-6]\d{3}(?:[ -]\d{4}){3}(?:[ -]\d{1,3})?"
    r"|3\d{3}[ -]\d{6}[ -]\d{4,5})(?![\w-])"
)
# A lookahead, so that a false start does not swallow the number behind it.
_IBAN = re.compile(r"(?<![A-Za-z0-9])(?=([A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}))")
_KEY_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20,}"
    r"|\bsk-[\w-]{20,}|\bsk_(?:live|test)_\w{16,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"
)
_KEY_NAMED = re.compile(
    r"(?i:\b(?:api[ _-]?key|secret|token|passw(?:or)?d|passphrase)\b[\"']?(?:\s*[:=]|\s+is)\s*)"
    r"[\"']?(?=\D*\d)([^\s\"',;]{8,256})"
)
_KEY_RANDOM = re.compile(r"(?<![\w+/=-])[A-Za-z0-9_+-]{32,512}={0,2}(?![\w+/-])")
_NAMED_BITS, _RANDOM_BITS = 2.75, 4.1

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


def entropy_bits(text: str) -> float:
    """Shannon entropy of the text's own characters, in bits per character."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def count_emails(text: str) -> int:
    """Addresses as people write them (RFC 5322 allows more)."""
    return len(_EMAIL.findall(text)) if "@" in text else 0


def count_phones(text: str) -> int:
    """Phone numbers in their usual groupings, 8 to 15 digits (ITU-T E.164)."""
    numbers = (re.sub(r"\D", "", match.group()) for match in _PHONE.finditer(text))
    return sum(8 <= len(number) <= 15 for number in numbers)


def count_cards(text: str) -> int:
    """Payment card numbers: 13 to 19 digits, in groups or not, that pass Luhn's check."""
    numbers = (re.sub(r"[ -]", "", match.group()) for match in _CARD.finditer(text))
    return sum(luhn_valid(number) for number in numbers)


def count_ibans(text: str) -> int:
    """International bank account numbers whose check digits hold."""
    found = 0
    for match in _IBAN.finditer(text):
        compact = re.sub(r"[ -]", "", match.group(1)).upper()
        # Words that follow look like more of the number: its country says where it ends.
        found += iban_valid(compact[: _IBAN_LENGTH.get(compact[:2], 0)])
    return found


def count_keys(text: str) -> int:
    """API keys, tokens and private keys: by their makers' forms, by name, by randomness."""
    formed = len(_KEY_FORMS.findall(text))
    named = sum(entropy_bits(secret) >= _NAMED_BITS for secret in _KEY_NAMED.findall(text))
    loose = sum(_looks_random(match.group()) for match in _KEY_RANDOM.finditer(text))
    return max(formed, named, loose)


def _looks_random(word: str) -> bool:
    mixed = (
        any(ch.isdigit() for ch in word)
        and any(ch.isupper() for ch in word)
        and any(ch.islower() for ch in word)
    )
    return mixed and entropy_bits(word) >= _RANDOM_BITS


DETECTORS: Mapping[str, Callable[[str], int]] = {
    "email": count_emails,
    "phone": count_phones,
    "card": count_cards,
    "iban": count_ibans,
    "api_key": count_keys,
}
"""Kind to detector. The kind ``listed`` is the user's own list, see :func:`count_listed`."""

KINDS = (*DETECTORS, "listed")


def count_listed(text: str, terms: Iterable[str]) -> int:
    """How often the user's terms occur as whole words, in any case."""
    folded = text.casefold()
    return sum(
        len(re.findall(rf"(?<!\w){re.escape(term.casefold())}(?!\w)", folded)) for term in terms
    )


def detect(text: str, kinds: Iterable[str], listed_terms: Iterable[str] = ()) -> dict[str, int]:
    """Counts of what was found, for the kinds asked for; kinds with none are left out."""
    terms = tuple(listed_terms)
    counts = {
        kind: count_listed(text, terms) if kind == "listed" else DETECTORS[kind](text)
        for kind in kinds
    }
    return {kind: count for kind, count in counts.items() if count}
