"""The commands of a TPM 2.0 that attestation takes, through tpm2-pytss (ESAPI)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from overspill.config import quiet_tpm
from overspill.errors import ConfigurationError, MissingExtra

try:
    import tpm2_pytss as tss
    from tpm2_pytss.utils import NoSuchIndex, NVReadEK, create_ek_template
except ImportError as error:
    raise MissingExtra("A TPM", "tpm") from error

_AK_TEMPLATE: Final = "ecc256:ecdsa-sha256:null"
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class LoadedKey:
    """A key in the TPM: its handle, and its public area (TPM2B_PUBLIC)."""

    handle: Any
    public: Any

    @property
    def public_bytes(self) -> bytes:
        """TPMT_PUBLIC, as it is named and verified."""
        return bytes(self.public.publicArea.marshal())

    @property
    def name(self) -> bytes:
        """nameAlg || digest of the public area."""
        return bytes(self.public.get_name())

    @property
    def public_pem(self) -> bytes:
        """The public key as PEM SubjectPublicKeyInfo."""
        return bytes(self.public.to_pem())


class Tpm:
    """One TPM behind a TCTI. Not for several threads at a time.

    Every method raises ``ConfigurationError`` when the TPM refuses or is gone.
    """

    def __init__(self, tcti: Any) -> None:
        quiet_tpm()
        with _refusals("cannot be opened"):
            self._esapi = tss.ESAPI(tcti)

    def close(self) -> None:
        """Lets go of the TPM."""
        self._esapi.close()

    def endorsement_key(self) -> LoadedKey:
        """The EK of the TCG's ECC template: the same key as long as the TPM's seed is."""

        def no_certificate(index: int) -> bytes:
            raise NoSuchIndex(index)

        with _refusals("has no endorsement key"):
            _, template = create_ek_template("EK-ECC256", no_certificate)
            handle, public, *_ = self._esapi.create_primary(None, template, tss.ESYS_TR.ENDORSEMENT)
        return LoadedKey(handle, public)

    def certified_endorsement_key(self) -> tuple[LoadedKey, bytes | None]:
        """The EK whose certificate the TPM holds, and that certificate (DER): of the ECC template,
        else of the RSA one. Without any certificate the ECC one, and None.

        TCG EK Credential Profile for TPM Family 2.0, 2.2.1.
        """
        with _refusals("has no endorsement key"):
            for kind in ("EK-ECC256", "EK-RSA2048"):
                certificate, template = create_ek_template(kind, NVReadEK(self._esapi))
                if certificate is not None:
                    break
            else:
                certificate, template = create_ek_template("EK-ECC256", NVReadEK(self._esapi))
            handle, public, *_ = self._esapi.create_primary(None, template, tss.ESYS_TR.ENDORSEMENT)
        return LoadedKey(handle, public), None if certificate is None else bytes(certificate)

    def attestation_key(self, *, restricted: bool = True) -> LoadedKey:
        """A P-256 signing key that never leaves this TPM.

        A restricted one signs only what the TPM made itself; the other kind is what a verifier
        has to refuse.
        """
        bits = tss.TPMA_OBJECT
        attributes = bits.FIXEDTPM | bits.FIXEDPARENT | bits.SENSITIVEDATAORIGIN
        attributes |= bits.USERWITHAUTH | bits.SIGN_ENCRYPT
        if restricted:
            attributes |= bits.RESTRICTED
        template = _AK_TEMPLATE if restricted else _AK_TEMPLATE.removesuffix(":null")
        with _refusals("makes no attestation key"):
            public = tss.TPM2B_PUBLIC.parse(template, objectAttributes=attributes)
            handle, made, *_ = self._esapi.create_primary(None, public, tss.ESYS_TR.OWNER)
        return LoadedKey(handle, made)

    def activate(self, ek: LoadedKey, ak: LoadedKey, blob: Any, secret: Any) -> bytes:
        """Opens a credential that only the TPM with both keys can (TPM2_ActivateCredential)."""
        with _refusals("does not activate the credential"):
            session = self._esapi.start_auth_session(
                tss.ESYS_TR.NONE,
                tss.ESYS_TR.NONE,
                tss.TPM2_SE.POLICY,
                "aes128cfb",
                tss.TPM2_ALG.SHA256,
            )
            self._esapi.policy_secret(tss.ESYS_TR.ENDORSEMENT, session)
            opened = self._esapi.activate_credential(
                ak.handle, ek.handle, blob, secret, session2=session
            )
        return bytes(opened)

    def forget(self, key: LoadedKey) -> None:
        """Makes room for another key: a TPM holds three."""
        with _refusals("does not let go of a key"):
            self._esapi.flush_context(key.handle)

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extends a register of the SHA-256 bank with 32 bytes."""
        value = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))
        with _refusals(f"does not extend register {pcr}"):
            self._esapi.pcr_extend(tss.ESYS_TR(pcr), tss.TPML_DIGEST_VALUES([value]))

    def registers(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """The values of registers of the SHA-256 bank."""
        wanted = sorted(pcrs)
        with _refusals("does not show its registers"):
            _, _, digests = self._esapi.pcr_read(_selection(wanted))
        values = [bytes(digest) for digest in digests]
        if len(values) != len(wanted) or any(len(v) != _DIGEST_BYTES for v in values):
            raise ConfigurationError(
                "The TPM has no SHA-256 registers.", mend="Allocate its SHA-256 bank."
            )
        return dict(zip(wanted, values, strict=True))

    def quote(
        self, ak: LoadedKey, pcrs: Iterable[int], data: bytes, bank: str = "sha256"
    ) -> tuple[bytes, bytes]:
        """TPM2_Quote over registers and ``data``: (TPMS_ATTEST, TPMT_SIGNATURE)."""
        with _refusals("does not quote"):
            attest, signature = self._esapi.quote(ak.handle, _selection(pcrs, bank), data)
        return bytes(attest), bytes(signature.marshal())


def open_tcti(name: str) -> Any:
    """A TCTI by its loader name, e.g. ``device:/dev/tpmrm0`` or ``swtpm:host=...,port=...``."""
    with _refusals(f"cannot be reached as '{name}'"):
        return tss.TCTILdr.parse(name)


def _selection(pcrs: Iterable[int], bank: str = "sha256") -> str:
    return f"{bank}:" + ",".join(str(pcr) for pcr in sorted(pcrs))


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except (tss.TSS2_Exception, OSError, ValueError) as error:
        raise ConfigurationError(
            f"The TPM {what}: {error}.", mend="Check the TPM and the right to use it."
        ) from error
