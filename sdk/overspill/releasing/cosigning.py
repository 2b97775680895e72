"""Asking witnesses to cosign a log's checkpoint, over HTTP or in a folder of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from overspill.errors import LogInvalid, OverspillError, UsageError
from overspill.releasing.log_folder import LogFolder
from overspill.releasing.witness_http import submit
from overspill.releasing.witness_store import WitnessStore
from overspill.trust.log.checkpoint import SignedCheckpoint
from overspill.trust.log.cosignature import cosignature_time
from overspill.trust.log.encoding import decode_decimal
from overspill.trust.log.note import COSIGNATURE_V1, ML_DSA_44, NoteSignature, VerifierKey
from overspill.trust.log.witness import SIZE_TYPE, AddCheckpoint, Answer


@dataclass(frozen=True, slots=True)
class WitnessEndpoint:
    """A witness that can be asked: its key, and ``ask`` to put a request to it."""

    key: VerifierKey
    ask: Callable[[bytes], Answer]


@dataclass(frozen=True, slots=True)
class Cosigning:
    """What came of asking: the names that cosigned, and why others did not."""

    cosigned: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def witness_endpoint(text: str) -> WitnessEndpoint:
    """``VKEY=http://HOST/PREFIX``, or a witness's folder on this machine.

    Raises ``UsageError`` for what is neither, ``ConfigurationError`` for a folder without one.
    """
    # A key's base64 may end in "=" as well: the one before the address counts.
    before, sign, rest = text.partition("=http")
    vkey, sign, prefix = (before, sign, f"http{rest}") if sign else text.partition("=")
    if not sign:
        store = WitnessStore(Path(text))
        return WitnessEndpoint(store.key.verifier, store.add_checkpoint)
    try:
        key = VerifierKey.parse(vkey)
    except LogInvalid as error:
        raise UsageError(
            f"'{vkey}' is no witness's key: {error.actual}.", mend="Give VKEY=URL, or a folder."
        ) from error
    if key.kind not in (COSIGNATURE_V1, ML_DSA_44):
        raise UsageError(f"{key.name} is no witness's key.", mend="Give one of type 0x04 or 0x06.")
    return WitnessEndpoint(key, lambda body: submit(prefix, body))


def cosign_checkpoint(log: LogFolder, witnesses: Sequence[WitnessEndpoint]) -> Cosigning:
    """Asks each witness and publishes what they signed. One that refuses stops no other."""
    lines, cosigned, failed = [], [], []
    for witness in witnesses:
        try:
            lines.append(_ask(log, witness))
            cosigned.append(witness.key.name)
        except OverspillError as error:
            failed.append((witness.key.name, error.message))
    if lines:
        log.add_cosignatures(lines)
    return Cosigning(tuple(cosigned), tuple(failed))


def _ask(log: LogFolder, witness: WitnessEndpoint) -> NoteSignature:
    signed = log.checkpoint()
    if signed is None:
        raise UsageError("There is nothing to cosign yet.", mend="Append to the log first.")
    old_size = signed.size  # right for all that have seen it; others say what they know
    answer = witness.ask(_request(log, signed, old_size))
    if answer.status == 409 and answer.content_type.startswith(SIZE_TYPE):
        old_size = decode_decimal(answer.body.decode("ascii", "replace").strip(), "a size")
        if old_size > signed.size:
            raise LogInvalid(
                "log_rolled_back",
                expected=f"the {old_size} entries that {witness.key.name} has seen",
                actual=str(signed.size),
                mend="Restore the log: it must not sign another history.",
            )
        answer = witness.ask(_request(log, signed, old_size))
    if answer.status != 200:
        why = answer.body.decode("utf-8", "replace").strip()[:200]
        raise LogInvalid(
            "witness_refused",
            expected=f"a cosignature by {witness.key.name}",
            actual=f"status {answer.status}: {why}",
        )
    return _its_line(signed, witness.key, answer.body)


def _request(log: LogFolder, signed: SignedCheckpoint, old_size: int) -> bytes:
    proof = log.consistency(old_size) if old_size < signed.size else ()
    return AddCheckpoint(old_size, proof, signed.note.encode()).encode()


def _its_line(signed: SignedCheckpoint, key: VerifierKey, body: bytes) -> NoteSignature:
    """The witness's own signature among those in the answer; others' are passed over."""
    for text in body.decode("utf-8", "replace").splitlines():
        line = NoteSignature.parse(text)
        if line.claims(key):
            cosignature_time(signed.note, line, key)  # raises for a false one
            return line
    raise LogInvalid(
        "witness_refused", expected=f"a cosignature by {key.name}", actual="others' alone"
    )
