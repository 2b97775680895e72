"""tlog-proof (c2sp.org/tlog-proof): one file that shows, offline, that an entry is in a log.

``extra`` is opaque to the format; a release's proof carries the :class:`~.tiles.Edge` of its tree
there, with which a client checks that the log only grew since it last looked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from overspill.trust.log.encoding import (
    decode_base64,
    decode_decimal,
    decode_hash,
    decode_text,
    encode_base64,
    malformed,
)
from overspill.trust.log.merkle import MAX_PROOF_HASHES

HEADER: Final = "c2sp.org/tlog-proof@v1"
MAX_PROOF_BYTES: Final = 128 << 10
_EXTRA: Final = "extra "
_INDEX: Final = "index "


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An entry's place and path, with the signed checkpoint that they lead to, verbatim."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def encode(self) -> bytes:
        """The proof file."""
        lines = [HEADER]
        if self.extra is not None:
            lines.append(_EXTRA + encode_base64(self.extra))
        lines.append(f"{_INDEX}{self.index}")
        lines += [encode_base64(hash_) for hash_ in self.path]
        return "".join(f"{line}\n" for line in (*lines, "")).encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> TlogProof:
        """Strict parsing of all but the checkpoint. Raises ``LogInvalid("log_malformed")``."""
        text = decode_text(data, "a tlog-proof", max_bytes=MAX_PROOF_BYTES)
        head, blank, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if not blank or lines.pop(0) != HEADER:
            raise malformed("a tlog-proof", "another first line, or no checkpoint")
        extra = None
        if lines and lines[0].startswith(_EXTRA):
            extra = decode_base64(lines.pop(0).removeprefix(_EXTRA), "the extra line")
        if not lines or not lines[0].startswith(_INDEX):
            raise malformed("a tlog-proof", "no index")
        index = decode_decimal(lines.pop(0).removeprefix(_INDEX), "the index")
        if len(lines) > MAX_PROOF_HASHES:
            raise malformed("a tlog-proof", f"more than {MAX_PROOF_HASHES} hashes")
        path = tuple(decode_hash(line, "a proof's hash") for line in lines)
        return cls(index, path, checkpoint.encode("utf-8"), extra)
