"""The manifests: right by Kubernetes' own schemas, closed by default, and true to the program."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from overspill_cloud.cli import app
from overspill_cloud.fleet.dns import DnsReplicas
from overspill_cloud.ops.metrics import metric_names
from overspill_cloud.store import open_backend

yaml = pytest.importorskip("yaml", reason="pip install 'overspill[dev]'")
VERSIONS = ("1.29", "1.35")
"""The oldest and the newest that the manifests are held to."""


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "cloud/deploy/kubernetes"


@pytest.fixture(scope="module", params=["base", "fleet"])
def overlay(request: pytest.FixtureRequest) -> str:
    """What may be applied: one node, or a fleet of them."""
    return str(request.param)


@pytest.fixture(scope="module")
def documents(folder: Path, overlay: str) -> list[dict[str, Any]]:
    return built(folder / overlay)


@pytest.fixture(scope="module")
def fleet(folder: Path) -> list[dict[str, Any]]:
    return built(folder / "fleet")


def built(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder, as far as ours use it."""
    asked = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = [name for name in asked["resources"] if name.endswith(".yaml")]
    patches = asked.get("patches", [])
    used = {*files, *(patch["path"] for patch in patches), "kustomization.yaml"}
    assert {path.name for path in folder.iterdir()} == used
    documents = [doc for name in files for doc in yaml.safe_load_all((folder / name).read_text())]
    for other in asked["resources"]:
        if other not in files:
            documents = built((folder / other).resolve()) + documents
    for patch in patches:
        target = of_kind(documents, patch["target"]["kind"])
        assert target["metadata"]["name"] == patch["target"]["name"]
        for step in json.loads((folder / patch["path"]).read_text()):
            change(target, step)
    return documents


def change(document: dict[str, Any], step: dict[str, Any]) -> None:
    """One step of a JSON patch (RFC 6902): add, replace, remove or test."""
    *way, last = step["path"].removeprefix("/").split("/")
    at: Any = document
    for part in way:
        at = at[int(part) if isinstance(at, list) else part]
    key = last if isinstance(at, dict) or last == "-" else int(last)
    if step["op"] == "add" and isinstance(at, list):
        at.insert(len(at) if key == "-" else key, step["value"])
        return
    if step["op"] != "add":
        assert at[key] is not None
    if step["op"] == "test":
        assert at[key] == step["value"]
    elif step["op"] == "remove":
        del at[key]
    else:
        at[key] = step["value"]


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


def test_everything_that_a_node_wants_is_there(
    documents: list[dict[str, Any]], overlay: str
) -> None:
    kinds = {"Namespace", "ServiceAccount", "Deployment", "Service", "PodDisruptionBudget"}
    kinds |= {"NetworkPolicy"} | ({"HorizontalPodAutoscaler"} if overlay == "fleet" else set())
    assert {document["kind"] for document in documents} == kinds


def test_kubectl_puts_them_together(folder: Path, overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    made = subprocess.run(
        ["kubectl", "kustomize", str(folder / overlay)], capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr

    def sorted_by_name(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(documents, key=lambda doc: (doc["kind"], doc["metadata"]["name"]))

    found = list(yaml.safe_load_all(made.stdout))
    assert sorted_by_name(found) == sorted_by_name(built(folder / overlay))


def test_one_node_at_a_time_uses_a_volume_and_several_share_a_database(
    folder: Path, fleet: list[dict[str, Any]]
) -> None:
    alone = built(folder / "base")
    assert not any(doc["kind"] == "HorizontalPodAutoscaler" for doc in alone)
    spec = of_kind(alone, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert "persistentVolumeClaim" in volume(spec, "state")
    spec = of_kind(fleet, "Deployment")["spec"]
    assert "replicas" not in spec  # the autoscaler's to say
    assert "emptyDir" in volume(spec, "state")
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    (url,) = (one.partition("=")[2] for one in arguments if one.startswith("--database="))
    pytest.importorskip("psycopg", reason="pip install 'overspill[dev]'")
    open_backend(
        Path(), url
    ).close()  # one that leaves the machine only to a server that is verified


def volume(spec: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in spec["template"]["spec"]["volumes"] if one["name"] == name)
    assert isinstance(found, dict)
    return found


def test_a_fleets_nodes_reach_their_database_and_name_each_other(
    fleet: list[dict[str, Any]],
) -> None:
    (open_,) = (
        doc["spec"]
        for doc in fleet
        if doc["kind"] == "NetworkPolicy" and doc["spec"]["policyTypes"] == ["Egress"]
    )
    ports = {(port["port"], port["protocol"]) for rule in open_["egress"] for port in rule["ports"]}
    assert ports == {(53, "UDP"), (53, "TCP"), (5432, "TCP")}
    assert all(rule["to"] for rule in open_["egress"])
    (only,) = of_kind(fleet, "Deployment")["spec"]["template"]["spec"]["containers"]
    (names,) = (one.partition("=")[2] for one in only["args"] if one.startswith("--replicas-dns="))
    service = of_kind(fleet, "Service")
    where = f"*.{service['metadata']['name']}.{service['metadata']['namespace']}.svc."
    assert names.startswith(where)
    assert names.endswith(f":{service['spec']['ports'][0]['port']}")
    DnsReplicas(names)


def test_private_files_become_private_before_a_fleets_node_reads_them(
    fleet: list[dict[str, Any]], tmp_path: Path
) -> None:
    pod = of_kind(fleet, "Deployment")["spec"]["template"]["spec"]
    (first,) = pod["initContainers"]
    (node,) = pod["containers"]
    assert first["image"] == node["image"]
    assert first["securityContext"] == node["securityContext"]
    (tmp_path / "fleet").mkdir()
    (tmp_path / "state").mkdir()
    for name in ("operator.key", "pgpass"):
        (tmp_path / "fleet" / name).write_text(name)
        (tmp_path / "fleet" / name).chmod(0o440)  # as a secret's files are, for a pod's group
    moved = [word.replace("/fleet", f"{tmp_path}/fleet").replace("/state", f"{tmp_path}/state")
             for word in first["command"]]  # fmt: skip
    subprocess.run(moved, check=True, timeout=10)
    for name in ("operator.key", "pgpass"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600
    assert {"name": "PGPASSFILE", "value": "/state/pgpass"} in node["env"]


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


def test_it_scales_by_figures_that_a_node_has(fleet: list[dict[str, Any]]) -> None:
    scaler = of_kind(fleet, "HorizontalPodAutoscaler")["spec"]
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["metrics"]}
    assert asked <= metric_names()
    assert scaler["scaleTargetRef"]["name"] == of_kind(fleet, "Deployment")["metadata"]["name"]


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
    text = "".join(path.read_text() for path in folder.rglob("*.*"))
    assert not re.search(r"image\"?: .*:latest", text)
    assert "stringData" not in text
