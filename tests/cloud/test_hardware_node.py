"""Whole nodes of emulated guests: the app as it ships, its gRPC, and a client that verifies it.

The kernel and the vendors are stand-ins; the vendors' roots are swapped in the client's registry
for the look-alikes', which nothing but a test can do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import struct
import sys
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcTransport
from overspill.trust import verifier
from overspill.trust.certificates import parse_certificate
from overspill.trust.closed import CLOSED_AT_START
from overspill.trust.policy import parse_policy
from overspill.trust.roots import VendorRoots
from overspill.trust.snp import SevSnpVerifier
from overspill.trust.tdx import TdxVerifier
from overspill_cloud.app import ModelSpec, NodeOptions, serve
from overspill_cloud.attester.sev_snp import SevSnpAttester
from overspill_cloud.attester.tdx import COLLATERAL_FILES, TdxAttester
from overspill_cloud.attester.tsm import TsmReports
from overspill_cloud.machine import Machine
from overspill_cloud.store import Store
from overspill_cloud.testing import FakeRegister, FakeTsm

NOTHING = hashlib.sha256().hexdigest()
pytestmark = pytest.mark.anyio
GUIDS = ("63da758d-e664-4564-adc5-f4b93be8accd", "4ab7b379-bbac-4fe4-a02f-05aef327c782")
SHUT = {
    "proc/sys/kernel/osrelease": "6.16.0",
    "proc/sys/kernel/core_pattern": "|/bin/false",
    "proc/sys/kernel/yama/ptrace_scope": "3",
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority",
    "proc/cmdline": "ro quiet",
}


@pytest.fixture(scope="session")
def vendors():
    place = Path(__file__).resolve().parents[1] / "trust" / "hardware" / "makers" / "__init__.py"
    spec = importlib.util.spec_from_file_location("cloud_hardware_makers", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def look_alikes(monkeypatch, vendors):
    """The client's registry with the look-alikes' roots instead of the vendors'."""
    roots = VendorRoots(
        amd=(parse_certificate(vendors.Amd().ark.der),),
        intel=(parse_certificate(vendors.Intel().root.der),),
        nvidia=(),
        nvidia_rim=(),
    )
    own = (SevSnpVerifier(lambda: roots), TdxVerifier(lambda: roots))
    monkeypatch.setattr(
        verifier, "REGISTRY", {**verifier.REGISTRY, **{one.evidence_type: one for one in own}}
    )


def snp(vendors, state: Path) -> SevSnpAttester:
    amd = vendors.Amd()
    certificates = (amd.endorsement.der, amd.ask.der)
    table, body = b"", b""
    for guid, der in zip(GUIDS, certificates, strict=True):
        table += struct.pack("<16sII", uuid.UUID(guid).bytes, 72 + len(body), len(der))
        body += der
    files = FakeTsm(lambda data, level: (amd.report(data, vmpl=level), table + bytes(24) + body))
    return SevSnpAttester(TsmReports(files), state)


def tdx(vendors, state: Path) -> TdxAttester:
    intel, register = vendors.Intel(), FakeRegister()
    folder = state / "tdx"
    folder.mkdir(parents=True)
    for name, data in intel.collateral().items():
        (folder / COLLATERAL_FILES.get(name, f"{name}.pem")).write_bytes(data)

    def quote(data: bytes, level: int) -> tuple[bytes, bytes]:
        rtmrs = (bytes(48), b"\1" * 48, b"\2" * 48, register.value)
        return intel.quote(data, rtmrs=rtmrs) + bytes(100), b""

    files = FakeTsm(quote, provider="tdx_guest", floor=None, has_auxblob=False)
    return TdxAttester(TsmReports(files), folder, register)


MAKERS = {"sev-snp": snp, "tdx": tdx}


@pytest.fixture
def policy(vendors, cloud):
    """``policy("tdx")``: for a closed guest that serves echo."""
    measured = vendors.MEASUREMENT.hex()
    floor = "".join(f"{part} = {least}\n" for part, least in vendors.Amd().tcb.items())
    sections = {
        "sev-snp": f'products = ["Milan"]\nmeasurements = ["{measured}"]\n'
        f"[sev-snp.min_tcb.Milan]\n{floor}",
        "tdx": f'mrtd = ["{measured}"]\nrtmr1 = ["{"01" * 48}"]\nrtmr2 = ["{"02" * 48}"]\n',
    }

    def make(kind: str, *closed: str):
        demanded = json.dumps(list(closed or CLOSED_AT_START))
        return parse_policy(
            f'version = 1\naccept = ["{kind}"]\nfreshness = "nonce"\nunreleased = true\n'
            f"closed = {demanded}\n[reference]\n"
            f'models = {{ echo = "{NOTHING}" }}\n'
            f"[{kind}]\n{sections[kind]}"
        )

    return make


@pytest.fixture
def serving(tmp_path, vendors):
    """``async with serving("tdx") as node``: the app on an emulated guest, at the makers' time."""

    @asynccontextmanager
    async def start(kind: str, **machine: str):
        root, state = tmp_path / "root", tmp_path / "state"
        for path, text in {**SHUT, **machine}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        options = NodeOptions(
            models=(ModelSpec("echo", "echo"),),
            listen="127.0.0.1:0",
            state=state,
            attester=kind,
            drain_timeout_s=0.0,
        )
        async with serve(
            options,
            clock=lambda: vendors.NOW,
            log_to=io.StringIO(),
            attesters=lambda kind, folder: MAKERS[kind](vendors, folder),
            machine=Machine(root),
        ) as node:
            yield node

    return start


@pytest.fixture
def client(vendors, cloud):
    def make(node, policy) -> RemoteEngine:
        return RemoteEngine(
            GrpcTransport(node.listen), policy, cloud.device_key(), clock=lambda: vendors.NOW
        )

    return make


@pytest.mark.parametrize("kind", ["sev-snp", "tdx"])
async def test_a_guest_is_verified_enrolled_with_and_answers(
    kind, look_alikes, serving, client, policy, cloud, tmp_path
):
    async with serving(kind) as node:
        assert node.assurance == "HARDWARE_TEE"
        engine = client(node, policy(kind))
        result = await engine.attest()
        assert result.satisfies_attested
        assert result.claims["closed"] == ", ".join(sorted(CLOSED_AT_START))
        store = Store(tmp_path / "state")
        await engine.enroll(store.new_code(1 << 40))
        store.close()
        request = cloud.ask("hello guest")
        assert "hello guest" in cloud.text_of(await cloud.collect(engine, request))
        assert engine.record(request.id).receipt.assurance == "HARDWARE_TEE"
        await engine.aclose()


@pytest.mark.parametrize("kind", ["sev-snp", "tdx"])
async def test_the_same_guest_is_refused_under_the_vendors_roots(kind, serving, client, policy):
    async with serving(kind) as node:
        engine = client(node, policy(kind))
        with pytest.raises(EvidenceRejected):
            await engine.attest()
        await engine.aclose()


async def test_a_policy_may_demand_secure_boot_besides(look_alikes, serving, client, policy):
    async with serving("tdx") as node:
        engine = client(node, policy("tdx", "secure_boot"))
        with pytest.raises(EvidenceRejected, match="node_not_closed"):
            await engine.attest()
        await engine.aclose()


@pytest.mark.parametrize("kind", ["sev-snp", "tdx"])
async def test_an_open_guest_never_serves(kind, serving):
    with pytest.raises(ConfigurationError, match="swap: swap is on"):
        async with serving(kind, **{"proc/swaps": "head\n/dev/sda2 partition 8 0 -2"}):
            pytest.fail("it serves")
