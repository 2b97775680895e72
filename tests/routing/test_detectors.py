"""Stage 2's detectors: what they find, what they leave alone, and the check sums' properties."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.detectors import (
    KINDS,
    count_ibans,
    detect,
    entropy_bits,
    iban_valid,
    luhn_valid,
)

FOUND = [
    ("email", "write to jane.doe+x@mail.example.org today"),
    ("email", "Grüße an jürgen@büro.example."),
    ("phone", "call +49 30 1234567 after six"),
    ("phone", "my number is (030) 123 4567"),
    ("phone", "(212) 555-0187 is hers"),
    ("phone", "0171 2345678"),
    ("card", "card 4111 1111 1111 1111, thanks"),
    ("card", "378282246310005"),
    ("card", "3782-822463-10005"),
    ("iban", "pay to GB82 WEST 1234 5698 7654 32 please"),
    ("iban", "de89370400440532013000"),
    ("iban", "my id de44 and GB82WEST12345698765432"),
    ("api_key", "use sk-proj-abcdefghijklmnopqrstuvwx"),
    ("api_key", "AKIAIOSFODNN7EXAMPLE is the id"),
    ("api_key", "-----BEGIN EC PRIVATE KEY-----"),
    ("api_key", 'the api_key = "hunter2hunter2"'),
    ("api_key", "password: Tr0ub4dor&3"),
    ("api_key", "try h8Kq2Lz9Xw4Rt7Yp1Vb6Nm3Js5Dg0Fc8 now"),
]
INNOCENT = [
    "What is 4821 * 377 - 12?",
    "Sort these: 12, 4, 88, 102, 7, 5512, 31",
    "Sort 2345 6789 1234 4567 and 8888",
    "What is 1234567890123456 + 1?",  # sixteen digits, but no card: the check digit is wrong
    "What is 12 +3456 and 99 - 100?",
    "How many days from 2024-01-15 to 2024-03-02?",
    "The token budget is 300; the secret recipe needs 20 g of salt.",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "the class AbstractSingletonProxyFactoryBeanConfiguration",
    "GB82 WEST 1234 5698 7654 33",
    "version 10.0.2.15 @ home",
]


@pytest.mark.parametrize(("kind", "text"), FOUND)
def test_personal_data_is_found(kind: str, text: str) -> None:
    assert detect(text, KINDS) == {kind: 1}


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert detect(text, KINDS) == {}


def test_the_users_own_terms_count_as_whole_words_in_any_case() -> None:
    terms = ("Project Heron", "Ümit")
    assert detect("PROJECT HERON and ümit", KINDS, terms) == {"listed": 2}
    assert detect("project herons, ümitsiz", KINDS, terms) == {}


def test_a_detector_that_is_off_finds_nothing() -> None:
    assert detect("a@b.example, 4111 1111 1111 1111", ["card"]) == {"card": 1}


@given(st.text(string.digits, min_size=1, max_size=30))
def test_every_number_has_exactly_one_luhn_check_digit(payload: str) -> None:
    assert sum(luhn_valid(payload + digit) for digit in string.digits) == 1


@given(st.text(string.digits, min_size=2, max_size=20), st.data())
def test_luhn_catches_every_single_wrong_digit(payload: str, data: st.DataObject) -> None:
    number = next(payload + digit for digit in string.digits if luhn_valid(payload + digit))
    where = data.draw(st.integers(0, len(number) - 1))
    other = data.draw(st.sampled_from(string.digits.replace(number[where], "")))
    assert not luhn_valid(number[:where] + other + number[where + 1 :])


def make_iban(country: str, account: str) -> str:
    """An IBAN with its check digits, as ISO 13616 says to compute them."""
    digits = "".join(str(int(ch, 36)) for ch in f"{account}{country}00")
    return f"{country}{98 - int(digits) % 97:02d}{account}"


accounts = st.text(string.digits + string.ascii_uppercase, min_size=18, max_size=18)


@given(accounts, st.data())
def test_iban_holds_with_its_check_digits_and_with_no_other_character(
    account: str, data: st.DataObject
) -> None:
    iban = make_iban("DE", account)
    assert iban_valid(iban)
    where = data.draw(st.integers(4, len(iban) - 1))
    other = data.draw(st.sampled_from(string.digits.replace(iban[where], "")))
    if iban[where].isdigit():
        assert not iban_valid(iban[:where] + other + iban[where + 1 :])
    assert not iban_valid(iban + "0")
    assert not iban_valid("ZZ" + iban[2:])


@given(accounts)
def test_an_iban_in_fours_amid_words_is_found(account: str) -> None:
    grouped = " ".join(re.findall(".{1,4}", make_iban("DE", account)))
    assert count_ibans(f"Please PAY {grouped} TODAY OR TOMORROW") == 1


@given(st.text(min_size=1))
def test_entropy_lies_between_none_and_that_of_distinct_characters(text: str) -> None:
    assert -1e-9 <= entropy_bits(text) <= entropy_bits("".join(map(chr, range(len(text))))) + 1e-9


@given(st.text(max_size=300))
def test_any_text_can_be_searched(text: str) -> None:
    assert set(detect(text, KINDS, ("term",))) <= set(KINDS)
