"""Stage 2's detectors: what they find, what they leave alone, and the check sums' properties."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.credentials import entropy_bits
from overspill.routing.detectors import (
    KINDS,
    Finding,
    Wanted,
    detect,
    find,
    find_ibans,
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
    ("email", "邮箱是wang@example.com。"),
    ("email", "Почта: иван@пример.рф, пишите"),
    ("email", "full width: jo＠example．org"),
    ("phone", "アメリカは+1 415 555 2671です"),
    ("phone", "06 12 34 56 78 est mon numéro"),
    ("phone", "call +49\u00a030\u00a01234567 (no-break spaces)"),
    ("phone", "+٤٩ ٣٠ ١٢٣٤٥٦٧"),
    ("card", "卡号4111 1111 1111 1111。"),
    ("card", "5555\u20115555\u20115555\u20114444 with non-breaking hyphens"),
    ("card", "in full width ４１１１１１１１１１１１１１１１"),
    ("card", "6011000990139424 and nothing else"),
    ("iban", "Meine IBAN: DE02\u202f1203\u202f0000\u202f0000\u202f2020\u202f51"),
    ("iban", "MT84MALT011000012345MTLCAST001S"),
    ("iban", "NO9386011117947"),
    ("api_key", "Mein Passwort ist gans7uendwolf"),
    ("api_key", "mot de passe : Gr4ndPere!"),
    ("api_key", "la contraseña es p3rroGris22"),
    ("api_key", "пароль: k0t1kMurz9"),
    ("api_key", "密码：abc12345xyz"),
    ("api_key", "DATABASE=postgres://app:s3cr3t9@localhost/x"),
    ("api_key", "-----BEGIN PGP PRIVATE KEY BLOCK-----"),
    ("api_key", "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"),
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
    "meet @anna and @ben at 10:30",
    "What is 17.25 + 3.5 - 1,000,000.75 / 12?",
    "0.123456789012345 and 3.14159265358979",
    "timestamps 1700000000 and 1700000000123",
    "from 2019-2020 to 2021-2022, pages 100-200, 300-400",
    "ISBN 978-3-16-148410-0",
    "the score was 21-19, 18-21, 21-15, 21-17",
    "4111 1111 1111 1112",
    "1234 5678 9012 3452",  # Luhn holds, but no network issues numbers that begin with 1
    "The key idea is that 12 keys open 12 doors; a token is a word.",
    "Which password is safer, a long one or one with 2 digits?",
    "https://example.org/a/very/long/path/that/goes/on/and/on/index.html",
    "pneumonoultramicroscopicsilicovolcanoconiosis is the longest word",
    "risk-adjusted-returns-over-a-very-long-time",
    "AT 12 o'clock, in DE 10 people, at 15 PM",
    "法国的首都是哪里？在1234年有5678人。",
    "ما هي عاصمة فرنسا؟ ١٢٣٤",
]


@pytest.mark.parametrize(("kind", "text"), FOUND)
def test_personal_data_is_found(kind: str, text: str) -> None:
    assert detect(text, Wanted()) == {kind: 1}


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert detect(text, Wanted()) == {}


def test_the_users_own_terms_count_as_whole_words_in_any_case() -> None:
    terms = ("Project Heron", "Ümit")
    assert detect("PROJECT HERON and ümit", Wanted(terms=terms)) == {"listed": 2}
    assert detect("project herons, ümitsiz", Wanted(terms=terms)) == {}


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("张伟", "我叫张伟，今年三十岁"),
        ("田中", "田中さんはどこですか"),
        ("김민준", "김민준은 학생입니다"),
        ("Straße", "in der STRASSE"),
        ("Jürgen", "ju\u0308rgen ist da"),
        ("Ελένη", "ΕΛΈΝΗ"),
        ("محمد", "اسمي محمد ."),
    ],
)
def test_listed_names_are_found_in_their_scripts(term: str, text: str) -> None:
    (found,) = find(text, Wanted(("listed",), (term,)))
    assert detect(text[: found.start] + text[found.end :], Wanted(("listed",), (term,))) == {}


def test_the_longer_of_two_terms_is_what_is_found() -> None:
    wanted = Wanted(("listed",), ("Heron", "Project Heron"))
    assert find("on project heron", wanted) == [Finding("listed", 3, 16)]


@pytest.mark.parametrize(
    ("number", "region", "found"),
    [("030 901820", "DE", 1), ("1234567890", "US", 0), ("2128675309", "US", 1)],
)
def test_national_numbers_count_where_their_region_is_named(
    number: str, region: str, found: int
) -> None:
    pytest.importorskip("phonenumbers")
    text = f"ring {number} today"
    assert detect(text, Wanted(phone_regions=(region,))).get("phone", 0) == found


@pytest.mark.parametrize("kind_and_text", FOUND)
def test_nothing_is_left_where_the_spans_are_cut_out(kind_and_text: tuple[str, str]) -> None:
    kind, text = kind_and_text
    (span,) = find(text, Wanted((kind,)))
    assert detect(text[: span.start] + "…" + text[span.end :], Wanted((kind,))) == {}


def test_a_detector_that_is_off_finds_nothing() -> None:
    assert detect("a@b.example, 4111 1111 1111 1111", Wanted(("card",))) == {"card": 1}


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
    assert len(find_ibans(f"Please PAY {grouped} TODAY OR TOMORROW")) == 1


_ISSUED = st.one_of(
    st.tuples(st.sampled_from(["4"]), st.just(16)),
    st.tuples(st.sampled_from(["51", "55", "2221", "2720"]), st.just(16)),
    st.tuples(st.sampled_from(["34", "37"]), st.just(15)),
    st.tuples(st.sampled_from(["6011", "65", "62"]), st.just(16)),
)


@st.composite
def cards(draw: st.DrawFn) -> str:
    """A number that an issuer could have given, with its check digit."""
    prefix, length = draw(_ISSUED)
    rest = length - 1 - len(prefix)
    payload = prefix + draw(st.text(string.digits, min_size=rest, max_size=rest))
    return next(payload + digit for digit in string.digits if luhn_valid(payload + digit))


around = st.sampled_from(["{}", "card: {}.", "({})", "我的卡号{}。", '"{}",', "a\n{}\nb"])


@given(cards(), st.sampled_from(["", " ", "-", "\u00a0", "\u2011"]), around)
def test_every_issued_number_is_found_in_one_piece_or_in_fours(
    number: str, separator: str, frame: str
) -> None:
    pieces = [number] if len(number) != 16 else re.findall("....", number)
    text = frame.format(separator.join(pieces))
    assert detect(text, Wanted(("card",))) == {"card": 1}


@given(cards(), st.data())
def test_a_card_with_one_wrong_digit_is_just_a_number(number: str, data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(number) - 1))
    wrong = data.draw(st.sampled_from(string.digits.replace(number[where], "")))
    text = number[:where] + wrong + number[where + 1 :]
    assert detect(f"is {text} fine", Wanted(("card",))) == {}


_LOCAL = string.ascii_letters + string.digits
locals_ = st.builds(
    lambda a, b: f"{a}{b}", st.text(_LOCAL, min_size=1), st.sampled_from(["", ".x", "+tag", "_1"])
).filter(lambda local: len(local) <= 64)
labels = st.text(string.ascii_lowercase + "éüß中", min_size=1, max_size=10)


@given(locals_, labels, st.sampled_from(["org", "de", "рф", "中国"]), around)
def test_every_address_is_found_and_its_span_is_the_address(
    local: str, label: str, top: str, frame: str
) -> None:
    address = f"{local}@{label}.{top}"
    text = frame.format(f" {address} ")
    (found,) = find(text, Wanted(("email",)))
    assert text[found.start : found.end] == address


@given(st.from_regex(r"\+[1-9][0-9]{1,2} [0-9]{2,3} [0-9]{3} [0-9]{2,4}", fullmatch=True), around)
def test_international_numbers_are_found(number: str, frame: str) -> None:
    assert detect(frame.format(f" {number} "), Wanted(("phone",))) == {"phone": 1}


@given(
    st.sampled_from(["sk-", "sk-ant-api03-", "ghp_", "glpat-", "hf_", "xoxb-", "npm_", "gsk_"]),
    st.text(_LOCAL, min_size=48, max_size=60),
    around,
)
def test_keys_are_found_by_their_makers_forms(prefix: str, rest: str, frame: str) -> None:
    assert detect(frame.format(f" {prefix}{rest} "), Wanted(("api_key",))) == {"api_key": 1}


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=40))
def test_lists_of_small_numbers_are_nobodys_business(numbers: list[int]) -> None:
    text = "Sort " + ", ".join(map(str, numbers))
    assert detect(text, Wanted()) == {}


@given(st.text(min_size=1))
def test_entropy_lies_between_none_and_that_of_distinct_characters(text: str) -> None:
    assert -1e-9 <= entropy_bits(text) <= entropy_bits("".join(map(chr, range(len(text))))) + 1e-9


@given(st.text(max_size=300))
def test_any_text_can_be_searched(text: str) -> None:
    assert set(detect(text, Wanted(terms=("term",)))) <= set(KINDS)
