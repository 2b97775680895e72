"""Trust policies for hardware evidence to start from: documented, with places to fill in.

None of them loads before its places are filled in: what identifies the software has to be listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from overspill.trust.template import named_models

_HEAD: Final = """\
# What a node has to prove before anything is sealed to it. An empty list never means "any".
version = 1
min_assurance = "{floor}"  # NONE < SOFTWARE < HARDWARE_TPM < HARDWARE_TEE
accept = ["{kind}"]  # types of evidence; each has its section below
freshness = "nonce"  # the node answers a fresh challenge; "witnesses" with [log]
unreleased = true  # [reference] lists what may run; better: [release] and [log] instead
max_age_s = 3600  # keys are used for this long after they were made
kems = ["MLKEM768_X25519"]  # post-quantum hybrid; "X25519" may be added
# What the node has to have closed before it serves; "secure_boot" may be added.
closed = ["core_dumps", "debug_console", "kexec", "modules", "open_ports", "ptrace", "swap"]

[reference]  # the node may serve these models and no others
models = {{ NAME = "<SHA-256 of the model file, 64 hexadecimal digits>" }}
"""
_SNP: Final = """
[sev-snp]  # debugging, migration and any VMPL but 0 are never allowed
products = ["Milan"]  # and "Genoa", "Turin"; each needs a floor below
measurements = ["<launch measurement of the released image, 96 hexadecimal digits>"]
vlek = false  # true also accepts keys that a cloud provider loads
crl_required = false  # true demands AMD's CRL beside the report
report_versions = [2, 3, 4, 5]
# chips = ["<chip id, 128 hexadecimal digits>"]  # these chips only

[sev-snp.min_tcb.Milan]  # each component at least this; Turin has 'fmc' too
bootloader = 4
tee = 0
snp = 22
microcode = 213
"""
_TDX: Final = """
[tdx]  # debugging and migration are never allowed
statuses = ["UpToDate"]  # Intel's words; "SWHardeningNeeded" and others may be added
mrtd = ["<firmware, 96 hexadecimal digits>"]
rtmr1 = ["<kernel, 96 hexadecimal digits>"]
rtmr2 = ["<initrd and command line, 96 hexadecimal digits>"]
# rtmr0 = ["<firmware's configuration>"]
# fmspcs = ["<kind of platform, 12 hexadecimal digits>"]
"""
_TPM: Final = '''
[tpm]  # registers 16 and 23 never count
ek_roots = ["""
<PEM certificate of the TPM's maker>
"""]
activation_keys = ["<Ed25519 public key of who saw the key activated, 64 hexadecimal digits>"]
# ak_roots = ["""<PEM certificate>"""]  # instead of both: who certifies attestation keys
secure_boot = true  # demanded from the replayed event log
# pcrs = { 7 = ["<value, 64 hexadecimal digits>"] }
'''
_VTPM: Final = """
[sev-snp-vtpm]  # the guest's own TPM, whose key its report names
secure_boot = true  # demanded from the replayed event log
# pcrs = { 7 = ["<value, 64 hexadecimal digits>"] }
"""


def snp_policy_text(
    product: str, measurement: bytes, tcb: Mapping[str, int], models: Mapping[str, bytes]
) -> str:
    """A policy for guests of this very image, on machines whose firmware is no older than this."""
    floor = "".join(f"{name} = {version}\n" for name, version in tcb.items())
    section = (
        f'\n[sev-snp]\nproducts = ["{product}"]\nmeasurements = ["{measurement.hex()}"]\n'
        f"\n[sev-snp.min_tcb.{product}]\n{floor}"
    )
    return _filled("sev-snp", models) + section


def tdx_policy_text(mrtd: bytes, rtmr1: bytes, rtmr2: bytes, models: Mapping[str, bytes]) -> str:
    """A policy for guests with this firmware, kernel, initrd and command line."""
    values = {"mrtd": mrtd, "rtmr1": rtmr1, "rtmr2": rtmr2}
    lines = "".join(f'{name} = ["{value.hex()}"]\n' for name, value in values.items())
    return _filled("tdx", models) + f"\n[tdx]\n{lines}"


def tpm_policy_text(
    ek_roots_pem: str, activation_keys: Iterable[bytes], models: Mapping[str, bytes]
) -> str:
    """A policy for TPMs of these makers, whose keys these keys' holders saw activated."""
    keys = ", ".join(f'"{key.hex()}"' for key in activation_keys)
    section = (
        f'\n[tpm]\nek_roots = ["""\n{ek_roots_pem.strip()}\n"""]\nactivation_keys = [{keys}]\n'
        "secure_boot = true\n"
    )
    return _filled("tpm", models, floor="HARDWARE_TPM") + section


def _filled(kind: str, models: Mapping[str, bytes], floor: str = "HARDWARE_TEE") -> str:
    head = _HEAD.format(floor=floor, kind=kind)
    return head[: head.index("models = {")] + f"models = {{ {named_models(models)} }}\n"


def _template(kind: str, floor: str, *sections: str) -> str:
    return _HEAD.format(floor=floor, kind=kind) + "".join(sections)


HARDWARE_TEMPLATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sev-snp": _template("sev-snp", "HARDWARE_TEE", _SNP),
        "sev-snp-vtpm": _template("sev-snp-vtpm", "HARDWARE_TEE", _VTPM, _SNP),
        "tdx": _template("tdx", "HARDWARE_TEE", _TDX),
        "tpm": _template("tpm", "HARDWARE_TPM", _TPM),
    }
)
"""A policy for each type of hardware evidence."""
