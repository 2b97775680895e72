"""The manifests: right by Kubernetes' own schemas, closed by default, and true to the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from overspill_cloud.cli import app
from overspill_cloud.ops.metrics import metric_names

yaml = pytest.importorskip("yaml", reason="pip install 'overspill[dev]'")
VERSIONS = ("1.29", "1.35")
"""The oldest and the newest that the manifests are held to."""


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "cloud/deploy/kubernetes"


@pytest.fixture(scope="module")
def documents(folder: Path) -> list[dict[str, Any]]:
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    others = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == others
    return [doc for name in listed for doc in yaml.safe_load_all((folder / name).read_text())]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(doc for doc in documents if doc["kind"] == kind)


@pytest.fixture
def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_right_by_kubernetes_own_schema(
    documents: list[dict[str, Any]], version: str
) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install 'overspill[dev]'")
    for document in documents:
        validate.validate(document, version, strict=True)
    broken = json.loads(json.dumps(of_kind(documents, "Deployment")))
    broken["spec"]["template"]["spec"]["readOnlyRootFilesystem"] = True
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, version, strict=True)


def test_kubectl_puts_them_together(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    made = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr
    kinds = {doc["kind"] for doc in yaml.safe_load_all(made.stdout)}
    assert kinds >= {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget",
        "NetworkPolicy", "ServiceAccount",
    }  # fmt: skip


def test_the_pod_passes_the_restricted_standard(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_no_token_reaches_a_pod(documents: list[dict[str, Any]], pod: dict[str, Any]) -> None:
    account = of_kind(documents, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == account["metadata"]["name"]


def test_devices_reach_replicas_themselves(documents: list[dict[str, Any]]) -> None:
    services = [doc for doc in documents if doc["kind"] == "Service"]
    assert {service["spec"]["clusterIP"] for service in services} == {"None"}


def test_probes_ask_pages_that_exist_and_ports_have_names(container: dict[str, Any]) -> None:
    names = {port["name"] for port in container["ports"]}
    for probe, page in (
        ("startupProbe", "/readyz"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/livez"),
    ):
        assert container[probe]["httpGet"] == {"path": page, "port": "ops"}
    assert names == {"grpc", "ops"}


def test_there_is_time_to_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    drain_s = next(float(a.partition("=")[2]) for a in container["args"] if "--drain-s" in a)
    assert pod["terminationGracePeriodSeconds"] >= drain_s + 5 + 10


def test_the_program_knows_every_argument(container: dict[str, Any]) -> None:
    verb, *arguments = container["args"]
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]  # a group
    known = {option for parameter in command.params for option in parameter.opts}
    assert {argument.partition("=")[0] for argument in arguments} <= known


def test_it_scales_by_figures_that_a_node_has(documents: list[dict[str, Any]]) -> None:
    scaler = of_kind(documents, "HorizontalPodAutoscaler")["spec"]
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["metrics"]}
    assert asked <= metric_names()
    assert scaler["scaleTargetRef"]["name"] == of_kind(documents, "Deployment")["metadata"]["name"]


def test_a_node_opens_no_connection_and_its_figures_are_for_prometheus(
    documents: list[dict[str, Any]],
) -> None:
    policy = of_kind(documents, "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    open_to_all = [rule for rule in policy["ingress"] if "from" not in rule]
    assert [port["port"] for rule in open_to_all for port in rule["ports"]] == ["grpc"]


def test_every_selector_finds_the_pods(documents: list[dict[str, Any]]) -> None:
    labels = of_kind(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for document in documents:
        spec = document.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector is not None:
            assert (selector.get("matchLabels") or selector).items() <= labels.items()


def test_no_image_or_secret_is_named_that_is_not_the_operators(folder: Path) -> None:
    text = "".join(path.read_text() for path in folder.glob("*.yaml"))
    assert not re.search(r"image: .*:latest", text)
    assert "stringData" not in text
