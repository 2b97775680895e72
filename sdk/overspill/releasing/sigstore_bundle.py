"""Sigstore bundles beside a release: who signed it, in Sigstore's terms. An extra, offline.

Through the ``sigstore`` library, with a trusted root that the caller names (a file, kept current by
TUF): certificate, transparency log and signature are checked without a network call. It adds to
what a policy demands and never stands in for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from overspill.errors import ConfigurationError, EvidenceRejected, MissingExtra
from overspill.trust.release_envelope import IN_TOTO, refused


@dataclass(frozen=True, slots=True)
class SigstoreSigner:
    """Whose signature counts: the certificate's ``identity`` and who vouched for it, exactly."""

    identity: str
    issuer: str


def verify_sigstore(
    bundle: bytes, payload: bytes, signer: SigstoreSigner, trusted_root: Path
) -> None:
    """That ``signer`` signed ``payload``: as a DSSE envelope's payload, or as a blob.

    Raises ``EvidenceRejected``: ``sigstore_malformed``, ``sigstore_rejected`` with the library's
    reason, ``sigstore_payload`` for a good signature of something else; ``ConfigurationError`` for
    a trusted root that cannot be read; ``MissingExtra``.
    """
    try:
        from sigstore.errors import Error, VerificationError
        from sigstore.models import Bundle, TrustedRoot
        from sigstore.verify import Verifier
        from sigstore.verify.policy import Identity
    except ImportError as error:
        raise MissingExtra("A Sigstore bundle", "sigstore") from error
    try:
        verifier = Verifier(trusted_root=TrustedRoot.from_file(str(trusted_root)))
    except (OSError, ValueError, Error) as error:
        raise ConfigurationError(
            f"The trusted root {trusted_root} cannot be used: {_line(error)}.",
            mend="Fetch it: overspill trust fetch",
        ) from error
    try:
        opened = Bundle.from_json(bundle)
    except (ValueError, Error) as error:
        raise refused("sigstore_malformed", "a Sigstore bundle", _line(error)) from error
    policy = Identity(identity=signer.identity, issuer=signer.issuer)
    try:
        if opened._dsse_envelope is None:  # the library has no public way to ask
            verifier.verify_artifact(payload, opened, policy)
            return
        kind, signed = verifier.verify_dsse(opened, policy)
    except (VerificationError, ValueError) as error:
        raise _rejected(signer, error) from error
    if (kind, signed) != (IN_TOTO, payload):
        raise refused("sigstore_payload", "a signature of this release", "one of something else")


def _rejected(signer: SigstoreSigner, error: Exception) -> EvidenceRejected:
    return refused("sigstore_rejected", f"a signature by {signer.identity}", _line(error))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
