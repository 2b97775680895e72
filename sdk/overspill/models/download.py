"""Fetches one file: resumed, checked while it comes, and in place only when it is whole.

What is there of a file lies beside it as ``<name>.partial``, with the server's validator in
``<name>.partial.json``: a killed pull goes on where it stopped (RFC 9110, section 14: Range, with
If-Range so that a changed file is never mixed with an old half).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from overspill.errors import DoesNotFit, MissingExtra, ModelInvalid, ModelNotFound, PullFailed
from overspill.models.files import FileDigest, OnProgress, Progress, RemoteFile

if TYPE_CHECKING:
    import httpx2

CHUNK_BYTES: Final = 1 << 17
SPARE_DISK_BYTES: Final = 64 << 20
"""Left free on the disk beside what is pulled."""
MAX_REDIRECTS: Final = 8
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_RATE_WINDOW_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class PullOptions:
    """``stall_s`` without a byte ends a connection; ``attempts`` in a row without progress a pull.

    ``first_wait_s`` doubles with each of them, up to ``longest_wait_s``.
    """

    stall_s: float = 30.0
    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0
    progress_every_s: float = 0.2


@asynccontextmanager
async def http_client(options: PullOptions) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that follows no redirect by itself. Raises ``MissingExtra``."""
    try:
        import httpx2
    except ModuleNotFoundError:
        raise MissingExtra("Pulling models", "pull") from None
    timeout = httpx2.Timeout(options.stall_s, connect=min(10.0, options.stall_s))
    async with httpx2.AsyncClient(
        timeout=timeout, headers={"Accept-Encoding": "identity", "User-Agent": "overspill"}
    ) as client:
        yield client


class Download:
    """One file on its way to ``target``; :meth:`run` returns its SHA-256 in hex."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        file: RemoteFile,
        target: Path,
        *,
        options: PullOptions,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._client, self._file, self._target = client, file, target
        self._options, self._on_progress = options, on_progress
        self._partial = target.with_name(target.name + ".partial")
        self._validator_file = target.with_name(target.name + ".partial.json")
        self._done = 0
        self._total = file.size_bytes
        self._rate: deque[tuple[float, int]] = deque()
        self._told = 0.0

    async def run(self) -> str:
        """Fetch, check and place the file.

        Raises ``PullFailed`` (the road; what is there stays for the next try), ``ModelNotFound``,
        ``ModelInvalid`` (other bytes than promised: nothing is kept), ``DoesNotFit`` (the disk).
        """
        import anyio
        import httpx2

        failures, wait_s, most = 0, self._options.first_wait_s, 0
        while True:
            try:
                return await self._attempt()
            except (httpx2.TransportError, _Retry) as error:
                moved, most = self._done > most, max(most, self._done)
                failures, wait_s = (
                    (1, self._options.first_wait_s)
                    if moved
                    else (failures + 1, min(wait_s * 2, self._options.longest_wait_s))
                )
                if failures >= self._options.attempts:
                    raise PullFailed(
                        f"{self._file.path} could not be fetched: {_reason(error)} "
                        f"({self._done} bytes are kept).",
                        mend="Check the network, then pull again: it goes on where it stopped.",
                    ) from None
                self._tell(note=f"{_reason(error)}; trying again")
                await anyio.sleep(wait_s)

    # --- one connection -------------------------------------------------------------------------

    async def _attempt(self) -> str:
        import anyio

        digest, validator = await anyio.to_thread.run_sync(self._resume_point)
        if self._total is not None and self._done > self._total:
            self._discard()
            digest, validator = FileDigest(self._total), None
        if self._total is not None and self._done == self._total:
            return await anyio.to_thread.run_sync(self._finish, digest)
        headers = {}
        if self._done:
            headers = {"Range": f"bytes={self._done}-"} | (
                {"If-Range": validator} if validator else {}
            )
        async with self._open(headers) as response:
            if self._done and response.status_code == 206:
                self._check_range(response)
                self._tell(note=f"resumed at {self._done} bytes")
            else:
                if self._done:
                    self._tell(note="the server does not resume: started again")
                self._done, digest = 0, FileDigest(self._expected_size(response))
            self._total = self._expected_size(response)
            self._check_size(response)
            await anyio.to_thread.run_sync(self._note_validator, _validator(response))
            self._check_disk()
            await self._read(response, digest)
        if self._total is not None and self._done < self._total:
            raise _Retry(f"the connection ended after {self._done} of {self._total} bytes")
        return await anyio.to_thread.run_sync(self._finish, digest)

    async def _read(self, response: httpx2.Response, digest: FileDigest) -> None:
        import anyio

        with self._writer() as out:
            async for data in response.aiter_raw(CHUNK_BYTES):
                if self._total is not None and self._done + len(data) > self._total:
                    self._discard()
                    raise ModelInvalid(
                        f"{self._file.path} is larger than the {self._total} bytes promised.",
                        mend="Ask whoever publishes it; nothing was kept.",
                    )
                await anyio.to_thread.run_sync(self._write, out, data, digest)
                self._tell()

    @asynccontextmanager
    async def _open(self, headers: dict[str, str]) -> AsyncIterator[httpx2.Response]:
        async with following(self._client, self._file.url, headers) as response:
            self._check_status(response)
            yield response

    def _check_status(self, response: httpx2.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status == 416:  # more is here than the file has: it is another file by now
            self._discard()
            raise _Retry("the file changed on the server")
        if status in (408, 425, 429) or status >= 500:
            raise _Retry(f"the server said {status}")
        refuse_status(status, self._file.path)

    def _check_range(self, response: httpx2.Response) -> None:
        start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if start != str(self._done):
            self._discard()
            raise _Retry("the server sent another part than was asked for")

    def _check_size(self, response: httpx2.Response) -> None:
        told = response.headers.get("Content-Length", "")
        if told.isdigit() and self._total is not None and self._done + int(told) != self._total:
            self._discard()
            raise ModelInvalid(
                f"{self._file.path} has {self._done + int(told)} bytes on the server, not the "
                f"{self._total} promised.",
                mend="Try again later, or choose another file; nothing was kept.",
            )

    def _expected_size(self, response: httpx2.Response) -> int | None:
        if self._file.size_bytes is not None:
            return self._file.size_bytes
        length = response.headers.get("Content-Length", "")
        if not length.isdigit():
            return None
        return int(length) + (self._done if response.status_code == 206 else 0)

    # --- the file -------------------------------------------------------------------------------

    def _resume_point(self) -> tuple[FileDigest, str | None]:
        """What is here already, hashed; with the validator of the server that it came from.

        Without a validator and without a digest nobody could tell two versions apart.
        """
        digest, done = FileDigest(self._total), 0
        same_url, validator = self._read_validator()
        resumable = same_url and (validator is not None or self._file.digest is not None)
        if resumable and self._partial.exists():
            with self._partial.open("rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
                    done += len(data)
        self._done = done
        return digest, validator

    def _read_validator(self) -> tuple[bool, str | None]:
        """Whether what is here came from the same address, and with which validator."""
        try:
            noted = json.loads(self._validator_file.read_text("utf-8"))
        except (OSError, ValueError):
            return False, None
        if not isinstance(noted, dict) or noted.get("url") != self._file.url:
            return False, None
        value = noted.get("validator")
        return True, value if isinstance(value, str) else None

    def _note_validator(self, validator: str | None) -> None:
        text = json.dumps({"url": self._file.url, "validator": validator})
        self._validator_file.write_text(text, encoding="utf-8")

    def _writer(self) -> IO[bytes]:
        if not self._done:
            return self._partial.open("wb")
        file = self._partial.open("r+b")
        file.seek(self._done)
        file.truncate()
        return file

    def _write(self, out: IO[bytes], data: bytes, digest: FileDigest) -> None:
        try:
            out.write(data)
            out.flush()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full() from None
            raise
        digest.update(data)
        self._done += len(data)

    def _finish(self, digest: FileDigest) -> str:
        expected = self._file.digest
        if expected is not None and digest.actual(expected) != expected.hex:
            self._discard()
            raise ModelInvalid(
                f"{self._file.path} has the digest {expected.kind}:{digest.actual(expected)}, "
                f"not {expected}.",
                mend="Pull again; if it stays so, the server's file is another one.",
            )
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._target)
        self._validator_file.unlink(missing_ok=True)
        self._tell(force=True)
        return digest.sha256

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._validator_file.unlink(missing_ok=True)
        self._done = 0

    def _check_disk(self) -> None:
        if self._total is not None:
            check_disk(self._target.parent, self._total - self._done, self._file.path)

    def _disk_full(self) -> DoesNotFit:
        return DoesNotFit(
            f"The disk is full: {self._file.path} has {self._done} of "
            f"{self._total if self._total is not None else 'unknown'} bytes.",
            mend="Free some space, then pull again: it goes on where it stopped.",
        )

    # --- telling --------------------------------------------------------------------------------

    def _tell(self, note: str = "", *, force: bool = False) -> None:
        if self._on_progress is None:
            return
        now = time.monotonic()
        if not (note or force) and now - self._told < self._options.progress_every_s:
            return
        self._told = now
        self._rate.append((now, self._done))
        while len(self._rate) > 2 and now - self._rate[0][0] > _RATE_WINDOW_S:
            self._rate.popleft()
        progress = Progress(self._file.path, self._done, self._total, note=note)
        self._on_progress(replace(progress, **_speed(self._rate, self._total)))


@asynccontextmanager
async def following(
    client: httpx2.AsyncClient, url: str, headers: dict[str, str] | None = None
) -> AsyncIterator[httpx2.Response]:
    """The response at the end of the redirects; each hop encrypted, or on this machine."""
    for _ in range(MAX_REDIRECTS):
        check_url(url)
        async with client.stream("GET", url, headers=headers) as response:
            if response.next_request is None:
                yield response
                return
            url = str(response.next_request.url)
    raise PullFailed(f"{url[:200]}: too many redirects.", mend="Check the address.")


class _Retry(Exception):
    """Another connection may do better."""


def check_url(url: str) -> None:
    """Encrypted, or on this machine (tests, a mirror of one's own).

    Raises ``PullFailed``: a redirect must not lead out of the encrypted road.
    """
    import httpx2

    parsed = httpx2.URL(url)
    if parsed.scheme == "https" or (parsed.scheme == "http" and parsed.host in _LOOPBACK):
        return
    raise PullFailed(
        f"{parsed.scheme}://{parsed.host} is not encrypted.", mend="Use an https address."
    )


def refuse_status(status: int, what: str) -> None:
    """Raise the typed error of a refusal (4xx) that another try does not mend."""
    if status in (401, 403):
        raise PullFailed(
            f"{what} is not open to everybody (HTTP {status}).",
            mend="Fetch it by hand with your account, then: overspill models import FILE",
        )
    if status in (404, 410):
        raise ModelNotFound(f"The server has no {what}.", mend="Check the name.")
    raise PullFailed(f"{what}: the server said {status}.", mend="Check the address.")


def check_disk(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise ``DoesNotFit`` where the disk of ``folder`` has no room for it."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_DISK_BYTES > free:
        raise DoesNotFit(
            f"{what} needs {needed_bytes / 1e9:.2f} GB more; the disk has {free / 1e9:.2f} GB.",
            mend="Free some space, or choose a smaller model.",
        )


def _validator(response: httpx2.Response) -> str | None:
    """A strong one only (RFC 9110, section 13.1.5)."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    return None


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, _Retry) else ""
    if text:
        return text
    kind = type(error).__name__
    if "Timeout" in kind:
        return "no byte came for too long"
    return f"the connection failed ({kind})"


def _speed(rate: deque[tuple[float, int]], total: int | None) -> dict[str, Any]:
    elapsed = rate[-1][0] - rate[0][0]
    gained = rate[-1][1] - rate[0][1]
    if elapsed <= 0 or gained <= 0:
        return {}
    per_s = gained / elapsed
    left = None if total is None else max(0.0, (total - rate[-1][1]) / per_s)
    return {"bytes_per_s": per_s, "eta_s": left}
