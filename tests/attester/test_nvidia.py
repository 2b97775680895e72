"""A GPU's evidence by NVML: the driver's real binding over an emulated library."""

from __future__ import annotations

import asyncio
import ctypes
import io
import sys
import time
from dataclasses import dataclass, field, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.errors import ConfigurationError, MissingExtra
from overspill.trust import nvidia, verifier
from overspill.trust.certificates import parse_certificate
from overspill.trust.measured import Measured, MeasuredLog
from overspill.trust.nkc import NodeKeyConfig
from overspill.trust.nvidia_report import parse_report
from overspill.trust.policy import parse_policy
from overspill.trust.roots import VendorRoots
from overspill.trust.template import pinned_policy
from overspill.trust.verifier import Context
from overspill_cloud.app import ModelSpec, NodeOptions, serve
from overspill_cloud.attester.nvidia import NvidiaGpu, open_gpu
from overspill_cloud.attester.pinned import PinnedOperatorAttester
from overspill_cloud.events import EventLog
from overspill_cloud.keys import KeyRing
from overspill_cloud.measure import NodeMeasurements

pynvml = pytest.importorskip("pynvml", reason='pip install "overspill[nvidia]"')

BOOT, KEY = bytes(16), b"a public key"
NOW, NONCE = 1_800_000_000, bytes(range(32))
NOT_SUPPORTED = 3


@dataclass
class Driver:
    """NVML's library, as the binding calls it: results through pointers, status returned."""

    gpu: object
    count: int = 1
    cc_feature: int = 1
    dev_tools: int = 0
    fails: str = ""
    nonce: bytes | None = None
    report_size: int | None = None
    calls: list[str] = field(default_factory=list)

    def function(self, name: str):
        def call(*arguments) -> int:
            self.calls.append(name)
            if name == self.fails:
                return NOT_SUPPORTED
            fill = getattr(self, f"_{name.removesuffix('_v2')}", None)
            if fill is not None:
                fill(arguments[-1]._obj)
            return 0

        return call

    def _nvmlDeviceGetCount(self, count) -> None:
        count.value = self.count

    def _nvmlSystemGetConfComputeState(self, state) -> None:
        state.ccFeature, state.devToolsMode = self.cc_feature, self.dev_tools

    def _nvmlDeviceGetConfComputeGpuAttestationReport(self, asked) -> None:
        report = self.gpu.report(self.nonce or bytes(asked.nonce))
        ctypes.memmove(asked.attestationReport, report, len(report))
        asked.attestationReportSize = self.report_size or len(report)

    def _nvmlDeviceGetConfComputeGpuCertificate(self, asked) -> None:
        ctypes.memmove(asked.attestationCertChain, self.gpu.chain, len(self.gpu.chain))
        asked.attestationCertChainSize = len(self.gpu.chain)


@pytest.fixture
def driver(monkeypatch, vendors) -> Driver:
    """An emulated library below the real binding; its GPU is the look-alike's."""
    made = Driver(vendors.Nvidia())
    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", lambda: None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", made.function)
    return made


@pytest.fixture
def roots(monkeypatch, vendors) -> VendorRoots:
    roots = VendorRoots(
        amd=(), intel=(), nvidia=(parse_certificate(vendors.Nvidia().root.der),), nvidia_rim=()
    )
    monkeypatch.setattr(verifier, "vendor_roots", lambda: roots)
    return roots


@pytest.fixture
def node(driver, tmp_path, roots, log, models):
    """A pinned node's keys with the GPU beside its statement, and the policy that wants both."""
    measured = MeasuredLog.decode(log)
    config = next(entry.sha256 for entry in measured.entries if entry.kind is Measured.CONFIG)
    operator = PinnedOperatorAttester(Ed25519PrivateKey.generate())
    event_log, gpu = EventLog(time.time, io.StringIO()), open_gpu(tmp_path)
    keys = KeyRing(
        operator,
        NodeMeasurements(log, measured.models.digest, config),
        [],
        lambda: NOW,
        event_log,
        None,
        gpu,
    )
    text = pinned_policy(operator.operator, models).replace(
        'accept = ["pinned-operator"]',
        'unreleased = true\naccept = ["pinned-operator", "nvidia-gpu"]',
    )
    gpus = '[nvidia-gpu]\ndrivers = ["570.00"]\nvbioses = ["96.00.9F.00.01"]\n'
    yield keys, parse_policy(text + gpus)
    gpu.close()


def test_a_nodes_gpu_is_bound_to_its_keys(node, driver):
    """The node asks its GPU once for each configuration; a challenge is answered by the machine,
    whose evidence names what the GPU said."""
    keys, policy = node
    bundle = asyncio.run(keys.challenge(NONCE))
    result = verifier.verify(bundle, Context(NOW, "node.example:443", False, NONCE), policy)
    assert result.claims["gpu.driver_version"] == "570.00"
    config = NodeKeyConfig.decode(bundle.node_key_config)
    assert config.gpu_claims_digest == nvidia.claims_digest(bundle.evidence[1])
    assert bundle.gpu_claims_digest == config.gpu_claims_digest
    assert driver.calls.count("nvmlDeviceGetConfComputeGpuAttestationReport") == 1
    asyncio.run(keys.renew())
    assert driver.calls.count("nvmlDeviceGetConfComputeGpuAttestationReport") == 2
    other = replace(bundle.evidence[1], data=driver.gpu.report(bytes(32)))
    another = replace(bundle, evidence=(bundle.evidence[0], other))
    again = verifier.appraise(another, Context(NOW, "node.example:443", False, NONCE), policy)
    assert again.rejection is not None
    assert again.rejection.reason == "gpu_not_bound"


def test_evidence_is_over_boot_and_key(driver, vendors, roots, tmp_path):
    source = NvidiaGpu(pynvml, tmp_path)
    evidence = source.evidence(BOOT, KEY)
    source.close()
    assert driver.calls[-1] == "nvmlShutdown"
    assert parse_report(evidence.data).nonce == nvidia.gpu_nonce(BOOT, KEY)
    assert evidence.collateral == {"certificates": vendors.Nvidia().chain}


def test_manifests_lie_in_a_folder(driver, vendors, tmp_path):
    (tmp_path / "rim_driver").write_bytes(vendors.rim())
    source = open_gpu(tmp_path)
    assert source.evidence(BOOT, KEY).collateral["rim_driver"] == vendors.rim()
    with (tmp_path / "rim_vbios").open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(ConfigurationError, match="rim_vbios has more than"):
        source.evidence(BOOT, KEY)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"count": 0}, "has 0 GPUs"),
        ({"count": 8}, "has 8 GPUs"),
        ({"cc_feature": 0}, "confidential-computing mode"),
        ({"dev_tools": 1}, "open to development"),
        ({"fails": "nvmlInitWithFlags"}, "cannot be asked"),
        ({"fails": "nvmlSystemGetConfComputeState"}, "cannot be asked"),
        ({"fails": "nvmlDeviceGetConfComputeGpuAttestationReport"}, "cannot be asked"),
        ({"fails": "nvmlDeviceGetConfComputeGpuCertificate"}, "cannot be asked"),
        ({"nonce": bytes(31) + b"x"}, "another nonce"),
        ({"report_size": 0x2001}, "8193 bytes of report in an array of 8192"),
        ({"report_size": 100}, "cannot be read"),
    ],
)
def test_a_gpu_that_cannot_vouch_is_said(driver, tmp_path, how, said):
    for name, value in how.items():
        setattr(driver, name, value)
    with pytest.raises(ConfigurationError, match=said) as caught:
        open_gpu(tmp_path).evidence(BOOT, KEY)
    assert caught.value.mend
    if driver.fails != "nvmlInitWithFlags" and "nvmlDeviceGetHandleByIndex_v2" not in driver.calls:
        assert driver.calls[-1] == "nvmlShutdown"  # nothing is left open by a refusal


def test_no_gpu_no_driver_no_binding(monkeypatch, tmp_path):
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(ConfigurationError, match="cannot be asked"):
            open_gpu(tmp_path)
    else:
        pynvml.nvmlShutdown()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtra, match="nvidia"):
        open_gpu(tmp_path)


@pytest.mark.anyio
async def test_a_node_serves_it_beside_the_machines_evidence(driver, tmp_path):
    options = NodeOptions(
        (ModelSpec("echo", "echo"),), listen="127.0.0.1:0", state=tmp_path / "state", gpu=True
    )
    async with serve(options, log_to=io.StringIO()) as serving:
        kinds = [piece.type for piece in serving.keys.current().bundle.evidence]
    assert kinds == ["dev-ed25519", "nvidia-gpu"]
    assert driver.calls[-1] == "nvmlShutdown"
