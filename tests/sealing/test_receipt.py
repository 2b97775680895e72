"""Receipts: for exactly this node, stream, request and answer, or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ReceiptInvalid, UsageError
from overspill.sealing.receipt import (
    ReceiptClaims,
    ReceiptKey,
    check_cards,
    check_receipt,
    check_replicas,
    commitment,
    open_receipt,
    response_content,
)
from overspill.types.chat import ToolCall

KEY = ReceiptKey.generate()
SALT, REQUEST, RESPONSE = bytes([9] * 32), b"what is 2 + 2", "4 — four".encode()
CLAIMS = ReceiptClaims(
    nkc_sha256=bytes([1] * 32),
    th=bytes([2] * 32),
    request_id=bytes([3] * 16),
    request_commitment=commitment(SALT, REQUEST),
    response_commitment=commitment(SALT, RESPONSE),
    model="river",
    model_sha256=bytes([4] * 32),
    adapter="",
    prompt_tokens=11,
    completion_tokens=3,
    unix_s=1_800_000_000,
    finish_reason="stop",
)
FACTS = {
    "nkc_sha256": CLAIMS.nkc_sha256,
    "th": CLAIMS.th,
    "request_id": CLAIMS.request_id,
    "salt": SALT,
    "request": REQUEST,
    "response": RESPONSE,
}


def test_a_receipt_says_what_was_signed():
    assert check_receipt(KEY.sign(CLAIMS), KEY.public_bytes, **FACTS) == CLAIMS


@pytest.mark.parametrize("fact", FACTS)
def test_a_receipt_for_something_else_is_refused(fact):
    other = bytes(len(FACTS[fact]))
    with pytest.raises(ReceiptInvalid):
        check_receipt(KEY.sign(CLAIMS), KEY.public_bytes, **(FACTS | {fact: other}))


def test_another_nodes_receipt_is_refused():
    with pytest.raises(ReceiptInvalid, match="signature"):
        open_receipt(KEY.sign(CLAIMS), ReceiptKey.generate().public_bytes)


def test_every_flipped_byte_is_refused():
    data = KEY.sign(CLAIMS)
    for at in range(len(data)):
        with pytest.raises(ReceiptInvalid):
            open_receipt(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], KEY.public_bytes)


def test_every_cut_is_refused_even_when_signed():
    encoded = CLAIMS.encode()
    for cut in range(len(encoded)):
        part = encoded[:cut]
        with pytest.raises(ReceiptInvalid):
            open_receipt(part + KEY._private_key.sign(part), KEY.public_bytes)


def test_signed_excess_is_refused():
    longer = CLAIMS.encode() + b"\0"
    with pytest.raises(ReceiptInvalid, match="belong to nothing"):
        open_receipt(longer + KEY._private_key.sign(longer), KEY.public_bytes)


texts = st.text(max_size=40)
counts = st.integers(0, 2**64 - 1)


@given(texts, texts, texts, counts, counts, counts)
def test_every_claim_survives(model, adapter, reason, prompt, completion, unix_s):
    claims = replace(
        CLAIMS,
        model=model,
        adapter=adapter,
        finish_reason=reason,
        prompt_tokens=prompt,
        completion_tokens=completion,
        unix_s=unix_s,
    )
    assert open_receipt(KEY.sign(claims), KEY.public_bytes) == claims


@given(st.binary(max_size=400))
def test_garbage_raises_one_type(data):
    with pytest.raises(ReceiptInvalid):
        open_receipt(data, KEY.public_bytes)
    with pytest.raises(ReceiptInvalid):
        open_receipt(data + KEY._private_key.sign(data), KEY.public_bytes)
    with pytest.raises(ReceiptInvalid):
        open_receipt(KEY.sign(CLAIMS), data)


@pytest.mark.parametrize(
    "change",
    [{"th": b""}, {"request_id": bytes(17)}, {"prompt_tokens": -1}, {"model": "x" * 257}],
    ids=lambda change: next(iter(change)),
)
def test_claims_that_do_not_fit_are_not_signed(change):
    with pytest.raises(UsageError):
        KEY.sign(replace(CLAIMS, **change))


def test_commitments_need_the_salt():
    assert commitment(SALT, REQUEST) != commitment(bytes(32), REQUEST)
    assert commitment(SALT, REQUEST) != commitment(SALT, RESPONSE)


def test_text_cannot_pass_for_a_tool_call():
    calls = [ToolCall("1", "search", '{"q": "x"}')]
    assert response_content("4 — four", []) == RESPONSE
    with_call = response_content("look: ", calls)
    assert with_call != response_content("look: " + with_call.decode("latin-1"), [])
    with pytest.raises(UnicodeDecodeError):
        with_call.decode()
    assert with_call != response_content("look: ", calls * 2)
    assert with_call != response_content("look", calls)


def test_model_cards_are_tied_to_the_node():
    signature = KEY.sign_cards(CLAIMS.nkc_sha256, b"cards")
    check_cards(b"cards", signature, KEY.public_bytes, CLAIMS.nkc_sha256)
    for cards, nkc in ((b"card", CLAIMS.nkc_sha256), (b"cards", bytes(32))):
        with pytest.raises(ReceiptInvalid, match="cards"):
            check_cards(cards, signature, KEY.public_bytes, nkc)


def test_a_list_of_replicas_is_tied_to_the_node():
    signature = KEY.sign_replicas(CLAIMS.nkc_sha256, b"replicas")
    check_replicas(b"replicas", signature, KEY.public_bytes, CLAIMS.nkc_sha256)
    for replicas, nkc in ((b"replica", CLAIMS.nkc_sha256), (b"replicas", bytes(32))):
        with pytest.raises(ReceiptInvalid, match="replicas' signature"):
            check_replicas(replicas, signature, KEY.public_bytes, nkc)


def test_no_signature_serves_as_another():
    """Each signed message starts with its own label."""
    replicas = KEY.sign_replicas(CLAIMS.nkc_sha256, b"cards")
    with pytest.raises(ReceiptInvalid):
        check_cards(b"cards", replicas, KEY.public_bytes, CLAIMS.nkc_sha256)
    cards_signature = KEY.sign_cards(CLAIMS.nkc_sha256, b"cards")
    with pytest.raises(ReceiptInvalid):
        open_receipt(CLAIMS.encode() + cards_signature, KEY.public_bytes)


def test_a_response_commitment_covers_the_tool_calls_and_where_the_text_ends():
    from overspill.sealing.receipt import response_content
    from overspill.types.chat import ToolCall

    one, other = ToolCall("1", "f", "{}"), ToolCall("1", "f", '{"a": 1}')
    contents = {
        response_content("ab", ()),
        response_content("ab", [one]),
        response_content("ab", [other]),
        response_content("ab", [one, other]),
        response_content("a", [one]),
    }
    assert len(contents) == 5
    assert response_content("ab", ()) == b"ab"
