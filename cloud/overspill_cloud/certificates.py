"""The server's TLS certificate, replaced while it serves: no connection ends for it.

gRPC asks before each handshake. Files are read again when they changed; a pair that cannot be used
leaves the old one in place, and is logged once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from overspill.errors import ConfigurationError

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """The server's certificate chain and private key, PEM."""

    certificate: bytes
    key: bytes


class TlsFiles:
    """A certificate chain and its key in files. ``replaced(ok)`` is called after each change.

    Raises ``ConfigurationError`` for files that cannot be read or do not belong together.
    """

    def __init__(
        self, certificate: Path, key: Path, replaced: Callable[[bool], None] = lambda ok: None
    ) -> None:
        self._certificate = certificate
        self._key = key
        self.replaced = replaced
        self._lock = threading.Lock()  # handshakes ask from any thread
        self._seen = self._stamp()
        self.current = self._read()

    def fresh(self) -> Tls | None:
        """The pair, when it changed since it was asked for last; None while it did not."""
        with self._lock:
            try:
                stamp = self._stamp()
                if stamp == self._seen:
                    return None
                self._seen = stamp
                self.current = self._read()
            except ConfigurationError:
                self.replaced(False)
                return None
        self.replaced(True)
        return self.current

    def _stamp(self) -> _Stamp:
        try:
            found = [os.stat(path) for path in (self._certificate, self._key)]
        except OSError as error:
            raise _unreadable(error) from error
        return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in found)

    def _read(self) -> Tls:
        try:
            tls = Tls(self._certificate.read_bytes(), self._key.read_bytes())
        except OSError as error:
            raise _unreadable(error) from error
        check_pair(tls)
        return tls


def check_pair(tls: Tls) -> None:
    """gRPC calls a bad pair a bad address: read it first. Raises ``ConfigurationError``."""
    try:
        certificate = x509.load_pem_x509_certificate(tls.certificate)
        key = load_pem_private_key(tls.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            "--tls-cert or --tls-key is not readable PEM without a password.",
            mend="Give a certificate chain and its private key.",
        ) from error
    if certificate.public_key() != key.public_key():
        raise ConfigurationError(
            "--tls-key does not belong to --tls-cert.", mend="Give the certificate's own key."
        )


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files."""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        tls = files.fresh()
        return None if tls is None else _configuration(tls)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files.current),
        fetch,  # type: ignore[arg-type]  # the stubs forget None, which means no change
        require_client_authentication=False,
    )


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)])


def _unreadable(error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{error.filename} cannot be read: {error.strerror}.", mend="Check the path."
    )
