"""The files of a batch: requests in, answers out, a JSON line each, as OpenAI's Batch API has them.

The file of answers is the journal too. A line is handed to the system whole before the next one,
so that a killed run leaves whole lines and at most one torn one, which the next run cuts off: no
request is answered twice in it, and none is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

from overspill.errors import ConfigurationError, UsageError

URLS: Final = ("/v1/chat/completions", "/v1/embeddings")
MAX_LINE_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request: ``id`` is computed from ``custom_id`` and all that is asked, so that answers to
    another file are recognised; ``body`` is the dialect's, in JSON."""

    number: int
    id: str
    custom_id: str
    url: str
    body: bytes


def read_lines(path: Path) -> Iterator[BatchLine]:
    """The requests of a file. Raises ``UsageError`` naming the line for one that is no request."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.", mend="Check the path."
        ) from None
    with file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(raw) > MAX_LINE_BYTES:
                raise _wrong(path, number, f"is longer than {MAX_LINE_BYTES} bytes")
            if raw.strip():
                yield _line(path, number, raw)


def check_lines(path: Path) -> dict[str, str]:
    """The id of each request by its ``custom_id``, all lines checked, before anything runs.

    Raises ``UsageError`` as :func:`read_lines`, for a ``custom_id`` that comes twice, and for a
    file without a request.
    """
    ids: dict[str, str] = {}
    for line in read_lines(path):
        if line.custom_id in ids:
            raise _wrong(path, line.number, f"repeats the custom_id '{line.custom_id[:80]}'")
        ids[line.custom_id] = line.id
    if not ids:
        raise UsageError(f"{path} has no request.", mend="Give one JSON object a line.")
    return ids


class Journal:
    """The file of answers; use it in a ``with`` block.

    ``done`` has the ``custom_id`` of every request that is answered there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self._whole_bytes = 0
        self._file: FileIO | None = None

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, ids: Mapping[str, str], *, retry_failed: bool = False
    ) -> Iterator[Self]:
        """Take up the answers that are there, and add to them.

        Raises ``UsageError`` where they are to another file's requests or another run writes
        there, ``ConfigurationError`` where the file cannot be written.
        """
        journal = cls(path)
        with _only_writer(path):
            kept = journal._take_up(ids, retry_failed=retry_failed)
            try:
                if kept is not None:
                    journal._rewrite(kept)
                file = path.open("ab", buffering=0)
            except OSError as error:
                raise _unwritable(path, error) from None
            with file:
                file.truncate(journal._whole_bytes)
                journal._file = file
                yield journal
                os.fsync(file.fileno())

    def add(self, custom_id: str, answer: Mapping[str, Any]) -> None:
        """Write one answer. Raises ``ConfigurationError`` for a full disk: nothing is torn."""
        if self._file is None:
            raise ValueError("the journal is closed")
        line = json.dumps(answer, ensure_ascii=False, separators=(",", ":")) + "\n"
        data = line.encode("utf-8", "surrogatepass")
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(self._whole_bytes)
            raise _unwritable(self.path, error) from None
        self._whole_bytes += len(data)
        self.done.add(custom_id)

    def _take_up(self, ids: Mapping[str, str], *, retry_failed: bool) -> list[bytes] | None:
        """Read what is there; the lines to keep where some are to be answered again."""
        if not self.path.exists():
            return None
        kept: list[bytes] = []
        dropped = False
        with self.path.open("rb") as file:
            for raw in file:
                answer = _answer(raw)
                if answer is None:
                    break
                custom_id = answer["custom_id"]
                if ids.get(custom_id) != answer["id"]:
                    raise UsageError(
                        f"{self.path} holds answers to other requests than these.",
                        mend="Choose another --out, or remove it.",
                    )
                if retry_failed and answer["response"]["status_code"] != 200:
                    dropped = True
                    continue
                kept.append(raw)
                self._whole_bytes += len(raw)
                self.done.add(custom_id)
        return kept if dropped else None

    def _rewrite(self, kept: list[bytes]) -> None:
        beside = self.path.with_name(self.path.name + ".new")
        with beside.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Two runs never write into one file of answers; the lock ends with the process."""
    from filelock import FileLock, Timeout

    beside = path.with_name(f"{path.name}.lock")
    lock = FileLock(beside, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"Another run writes to {path}.", mend="Wait for it, or choose another --out."
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        yield
    finally:
        # While it is held: whoever opened it meanwhile sees that it has no name any more, and makes
        # another one. Windows takes no open file away; there it stays.
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        lock.release()


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be written: {error.strerror}.",
        mend="Mend that and run it again: it goes on where it stopped.",
    )


def _line(path: Path, number: int, raw: bytes) -> BatchLine:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise _wrong(path, number, "is no JSON") from None
    if not isinstance(document, dict):
        raise _wrong(path, number, "is no JSON object")
    custom_id, url, body = (document.get(key) for key in ("custom_id", "url", "body"))
    if not isinstance(custom_id, str) or not custom_id:
        raise _wrong(path, number, "has no custom_id")
    if document.get("method") != "POST" or url not in URLS:
        raise _wrong(path, number, f"is no POST to {' or '.join(URLS)}")
    if not isinstance(body, dict):
        raise _wrong(path, number, "has no body")
    text = json.dumps(body, separators=(",", ":")).encode()
    digest = hashlib.sha256(b"\0".join((custom_id.encode("utf-8", "surrogatepass"), url.encode())))
    digest.update(b"\0" + text)
    return BatchLine(number, f"batch_req_{digest.hexdigest()[:32]}", custom_id, url, text)


def _answer(raw: bytes) -> dict[str, Any] | None:
    """A whole line of answers, or None for a torn one."""
    if not raw.endswith(b"\n"):
        return None
    try:
        answer = json.loads(raw)
        return answer if isinstance(answer["response"]["status_code"], int) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _wrong(path: Path, number: int, what: str) -> UsageError:
    return UsageError(
        f"{path}, line {number}: it {what}.",
        mend='Each line is {"custom_id", "method": "POST", "url", "body"}.',
    )
