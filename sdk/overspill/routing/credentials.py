"""API keys, tokens, private keys and passwords: by their makers' forms, by name, by randomness.

Forms as their makers document them and scanners of repositories use them. Nearly all are long
words, so only those are looked at closely.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from overspill.routing.classes import classes_of
from overspill.routing.spans import Span, apart

_SHORTEST = 15
"""No form below is shorter."""
_NOT_SPACES = bytes(32 if code in b" \n" else 97 for code in range(256))
_LONG = b"a" * _SHORTEST
_FORMS = re.compile(
    r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"  # Amazon
    r"|\bAIza[\w-]{35}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{28}"  # Google
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}"
    r"|\bgl(?:pat|dt|rt|ptt|cbt)-[\w-]{20,}"  # GitLab
    r"|\bsk-[\w-]{20,}|\b[srp]k_(?:live|test)_\w{16,}|\bwhsec_[\w+/=]{24,}"  # OpenAI's form, Stripe
    r"|\bgsk_\w{40,}|\bxai-\w{40,}|\br8_\w{30,}|\bpplx-\w{40,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\bxox[abeprs]-[\w-]{10,}|\bxapp-[\w-]{20,}"  # Slack
    r"|\bnpm_[A-Za-z0-9]{36}|\bpypi-[\w-]{50,}|\bdop_v1_[0-9a-f]{64}|\bdapi[0-9a-f]{32}\b"
    r"|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bSK[0-9a-f]{32}\b|\bkey-[0-9a-f]{32}\b"  # mail, telephony
    r"|\b\d{8,10}:[\w-]{35}\b"  # Telegram
    r"|\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|\blin_api_\w{32,}|\bntn_\w{40,}|\bsbp_[0-9a-f]{40}"
    r"|\bhv[sbr]\.[\w-]{24,}|\btskey-[\w-]{20,}|\bAGE-SECRET-KEY-1[0-9A-Z]{58}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"  # JSON Web Token (RFC 7519)
    r"|\b[a-z][a-z0-9+.-]{1,20}://[^\s:@/]{1,64}:[^\s:@/]{3,128}@",  # credentials in a URL
    re.ASCII,
)
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_RANDOM = re.compile(r"(?<![\w+/=-])[A-Za-z0-9_+-]{32,512}={0,2}(?![\w+/-])", re.ASCII)
_RANDOM_CHARS, _RANDOM_BITS = 32, 4.1

_HINTS = (
    "key",
    "secret",
    "token",
    "pass",
    "wort",
    "woord",
    "clave",
    "contrase",
    "senha",
    "heslo",
    "haslo",
)
_OTHER_HINTS = (
    "lösen",
    "hasł",
    "парол",
    "密码",
    "密碼",
    "口令",
    "パスワード",
    "비밀번호",
    "κωδικ",
    "סיסמ",
    "مرور",
)
_NAMED = re.compile(
    r"(?:\b(?:api[ _-]?key|secret|token|passw(?:or)?[dt]|passphrase|kennwort|wachtwoord|lösenord"
    r"|mot de passe|contraseña|clave|senha|heslo|has[łl]o|пароль)\b"
    r"|密码|密碼|口令|パスワード|비밀번호|κωδικός|סיסמה|كلمة المرور)"
    r"[\"']?(?:\s{0,4}[:=：]\s{0,4}|\s(?:is|ist|est|es|é|è)\s|是|は)"
    r"[\"']?(?=[^\s\"',;\d]{0,255}\d)([^\s\"',;]{8,256})",
    re.IGNORECASE,
)
# A number, in classes, among eight characters in one piece, as a value is: by its first digit. Four
# of the others stand on one side of that, which most numbers fail at once.
_ONE = rb"[^ \n,]"
_VALUE = re.compile(
    rb"0(?<!00)(?:(?=%(one)s{4})|(?<=%(one)s{4}0))" % {b"one": _ONE}
    + b"(?=%s)"
    % b"|".join(b"(?<=%s{%d}0)%s{%d}" % (_ONE, before, _ONE, 7 - before) for before in range(8))
)
_NAMED_BITS = 2.75
_NAME_CHARS, _NAMED_CHARS = 12, 300


def has_clue(text: str, classes: bytes) -> bool:
    """Whether a text, of which ``classes`` are the characters' classes, has a word as long as the
    shortest form, a value as one that is given by name has, or the words of a private key."""
    return (
        _LONG in classes.translate(_NOT_SPACES)
        or _VALUE.search(classes) is not None
        or "PRIVATE KEY" in text
    )


def find_credentials(text: str) -> list[Span]:
    """Where the text gives something away that opens a door; spans that overlap are one."""
    classes, spans = classes_of(text), []
    if "PRIVATE KEY" in text:
        spans += [match.span() for match in _PEM.finditer(text)]
    for start, end in _long_words(text, classes):
        spans += [match.span() for match in _FORMS.finditer(text, start, end)]
        if end - start >= _RANDOM_CHARS:
            spans += [m.span() for m in _RANDOM.finditer(text, start, end) if _is_random(m[0])]
    for start, end in _hinted(text, [match.start() for match in _VALUE.finditer(classes)]):
        named = _NAMED.finditer(text, start, end)
        spans += [m.span(1) for m in named if entropy_bits(m[1]) >= _NAMED_BITS]
    return apart(spans)


def entropy_bits(text: str) -> float:
    """Shannon entropy of the text's own characters, in bits per character."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def _long_words(text: str, classes: bytes) -> Iterator[Span]:
    """Words as long as the shortest form."""
    runs = classes.translate(_NOT_SPACES)
    at = runs.find(_LONG)
    while at >= 0:
        start, end = runs.rfind(b" ", 0, at) + 1, runs.find(b" ", at)
        end = len(text) if end < 0 else end
        for word in text[start:end].split():  # other scripts' spaces count as text until here
            start = text.index(word, start)
            if len(word) >= _SHORTEST:
                yield start, start + len(word)
            start += len(word)
        at = runs.find(_LONG, end)


def _hinted(text: str, values: Sequence[int]) -> list[Span]:
    """Where a word is that may name a secret, with the room that name and secret take, if one of
    the places is in it where a value may be: a secret counts with a digit only."""
    if not values:
        return []
    lower = text.lower()
    hints = _HINTS if text.isascii() else (*_HINTS, *_OTHER_HINTS)
    if len(lower) != len(text):  # then places in one are not those in the other
        return [(0, len(text))] if any(hint in lower for hint in hints) else []
    places = []
    for hint in hints:
        at = lower.find(hint)
        while at >= 0:
            value = bisect_left(values, at)
            if value < len(values) and values[value] < at + _NAMED_CHARS:
                places.append((max(0, at - _NAME_CHARS), at + _NAMED_CHARS))
            at = lower.find(hint, at + _NAME_CHARS)
    return apart(places)


def _is_random(word: str) -> bool:
    mixed = (
        any(ch.isdigit() for ch in word)
        and any(ch.isupper() for ch in word)
        and any(ch.islower() for ch in word)
    )
    return mixed and entropy_bits(word) >= _RANDOM_BITS
