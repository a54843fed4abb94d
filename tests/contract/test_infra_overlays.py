"""infra/kuberay/ with its components, as kustomize renders it; without kubectl only what needs none of it."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.test_infra import INFRA, KUBERAY, gibibytes, kubernetes_errors

COMPONENTS = ("../metrics", "kueue", "rdma", "tls")
Docs = dict[tuple[str, str], dict[str, Any]]


@functools.cache
def rendered(*components: str, digest: str = "") -> Docs:
    """Return kustomize's output by kind and name, for images in a registry."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    with tempfile.TemporaryDirectory() as folder:
        infra = Path(folder) / "infra"
        shutil.copytree(INFRA, infra)
        subprocess.run([infra / "make-secrets.sh", infra / "kuberay/secrets"], check=True, capture_output=True)
        file = infra / "kuberay/kustomization.yaml"
        text = file.read_text().replace("components: []", f"components: [{', '.join(components)}]")
        text = text.replace("newName: resnet-pipeline", "newName: registry.example/resnet-pipeline")
        file.write_text(text.replace("newTag: 0.1.0", f"digest: {digest}") if digest else text)
        done = subprocess.run(["kubectl", "kustomize", file.parent], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"image: resnet-pipeline", done.stdout)
    return {(doc["kind"], doc["metadata"]["name"]): doc for doc in yaml.safe_load_all(done.stdout)}


def templates(docs: Docs) -> dict[str, dict[str, Any]]:
    spec = docs["RayCluster", "ray"]["spec"]
    found = {"head": spec["headGroupSpec"]["template"]["spec"]}
    found |= {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    return found | {"prefect-worker": docs["Deployment", "prefect-worker"]["spec"]["template"]["spec"]}


def environment(container: dict[str, Any]) -> dict[str, str]:
    names = [entry["name"] for entry in container["env"]]
    assert len(names) == len(set(names)), names
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def test_every_component_is_named_where_it_is_chosen() -> None:
    named = re.findall(r"^#  - (\S+)$", (KUBERAY / "kustomization.yaml").read_text(), re.MULTILINE)
    assert tuple(named) == COMPONENTS
    folders = {path.parent.name for path in INFRA.glob("**/kustomization.yaml")} - {"kuberay"}
    assert folders == {Path(name).name for name in COMPONENTS}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_all_together_follow_kubernetes_schemas(version: str) -> None:
    docs = rendered(*COMPONENTS)
    others = {"RayCluster", "ClusterQueue", "LocalQueue", "ResourceFlavor", "Issuer", "Certificate"}
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
            for name, spec in templates(docs).items()]  # fmt: skip
    for doc in [*(doc for (kind, _), doc in docs.items() if kind not in others), *pods]:
        assert kubernetes_errors(doc, version) == "", f"{doc['kind']} {doc['metadata']['name']}"


@pytest.mark.slow
@pytest.mark.parametrize("component", [(), *((name,) for name in COMPONENTS)])
def test_each_component_stands_alone(component: tuple[str, ...]) -> None:
    plain, docs = rendered(), rendered(*component)
    assert set(plain) <= set(docs)
    for name, spec in templates(docs).items():
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name


def test_the_queue_has_room_for_the_gang() -> None:
    docs = rendered("kueue")
    cluster = docs["RayCluster", "ray"]
    queue = docs["LocalQueue", cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]]
    (group,) = docs["ClusterQueue", queue["spec"]["clusterQueue"]]["spec"]["resourceGroups"]
    quotas = {
        flavor["name"]: {r["name"]: r["nominalQuota"] for r in flavor["resources"]} for flavor in group["flavors"]
    }
    assert {("ResourceFlavor", name) for name in quotas} <= set(docs)
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is False
    gpu, spot = spec["workerGroupSpecs"]
    known = environment(templates(docs)["prefect-worker"]["containers"][0])["RESNET_PIPELINE_RAY_NODES"]
    assert gpu["replicas"] == gpu["minReplicas"] == int(known.split("x")[0])
    needs = [("resnet-pipeline-head", 1, templates(docs)["head"])]
    needs += [("resnet-pipeline-on-demand", gpu["replicas"], gpu["template"]["spec"])]
    needs += [("resnet-pipeline-spot", spot["maxReplicas"], spot["template"]["spec"])]
    for flavor, count, pod in needs:
        labels = docs["ResourceFlavor", flavor].get("spec", {}).get("nodeLabels", {})
        assert labels == pod.get("nodeSelector", {}), flavor
        resources = pod["containers"][0]["resources"]
        assert int(quotas[flavor]["cpu"]) >= count * int(resources["requests"]["cpu"])
        assert gibibytes(quotas[flavor]["memory"]) >= count * gibibytes(resources["requests"]["memory"])
        assert int(quotas[flavor]["nvidia.com/gpu"]) >= count * int(resources["limits"].get("nvidia.com/gpu", 0))


def test_training_pods_have_the_host_s_adapters_and_nccl_reads_what_it_is_told() -> None:
    docs = rendered("rdma")
    gpu = templates(docs)["gpu"]
    assert gpu["hostNetwork"] is True and gpu["dnsPolicy"] == "ClusterFirstWithHostNet"
    (container,) = gpu["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert "rdma/hca_shared_devices_a" in container["resources"]["limits"]
    policy = docs["Namespace", "resnet-pipeline"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert policy == "privileged"
    packages = Path(sysconfig.get_paths()["purelib"])
    libraries = {
        "NCCL_": [*packages.glob("nvidia/**/libnccl.so*")],
        "GLOO_": [packages / f"torch/lib/libtorch_{part}.so" for part in ("cpu", "python")],
    }
    told = [name for name in environment(container) if name.startswith(tuple(libraries))]
    assert len(told) == 5
    for name in told:
        found = [
            subprocess.run(["grep", "-q", name, path], check=False).returncode == 0 for path in libraries[name[:5]]
        ]
        assert any(found) or not found, name


def test_every_ray_process_has_a_certificate_of_its_own_address() -> None:
    docs = rendered("tls")
    tls = {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": "/tls/tls.crt", "RAY_TLS_SERVER_KEY": "/tls/tls.key"}
    tls["RAY_TLS_CA_CERT"] = "/tls/ca.crt"
    certificate = docs["Certificate", "ray-authority"]["spec"]
    assert ("Issuer", certificate["issuerRef"]["name"]) in docs
    options = docs["RayCluster", "ray"]["spec"]["autoscalerOptions"]
    (head,) = templates(docs)["head"]["containers"]
    assert environment(options) == environment(head) and "/tls" in {m["mountPath"] for m in options["volumeMounts"]}
    for name, spec in templates(docs).items():
        (container,), init = spec["containers"], spec["initContainers"][0]
        assert tls.items() <= environment(container).items(), name
        assert init["args"] == ["/opt/infra/ray-certificate.sh", "/tls"], name
        secret = certificate["secretName"]
        secrets = {volume["name"] for volume in spec["volumes"] if volume.get("secret", {}).get("secretName") == secret}
        assert secrets and not secrets & {mount["name"] for mount in container["volumeMounts"]}, "the authority's key"
    hosts = {rule["host"] for rule in docs["Ingress", "resnet-pipeline"]["spec"]["rules"]}
    mlflow = docs["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"][0]["args"]
    prefect = docs["Deployment", "prefect-server"]["spec"]["template"]["spec"]["containers"][0]
    (allowed,) = (word for word in mlflow if word.startswith("--allowed-hosts="))
    assert hosts == {"mlflow.example.org", "prefect.example.org"} and "mlflow.example.org" in allowed.split(",")
    assert environment(prefect)["PREFECT_SERVER_UI_API_URL"] == "https://prefect.example.org/api"


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_a_node_s_certificate_is_the_authority_s_and_has_its_address(tmp_path: Path) -> None:
    authority, folder = tmp_path / "authority", tmp_path / "tls"
    authority.mkdir()
    folder.mkdir()
    script = INFRA / "ray-certificate.sh"
    settings = {"PATH": "/usr/bin:/bin", "POD_IP": "10.1.2.3", "AUTHORITY_FOLDER": str(authority)}
    done = subprocess.run([script, folder], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is cert-manager there" in done.stderr
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=authority", "-days", "2"]
    subprocess.run(
        [*new, "-keyout", authority / "tls.key", "-out", authority / "tls.crt"], check=True, capture_output=True
    )
    subprocess.run([script, folder], env=settings, check=True, capture_output=True)
    assert {path.name for path in folder.iterdir()} == {"tls.crt", "tls.key", "ca.crt"}
    assert (folder / "tls.key").stat().st_mode & 0o777 == 0o600
    check = ["openssl", "verify", "-CAfile", folder / "ca.crt", "-verify_ip"]
    for address, status in (("10.1.2.3", 0), ("127.0.0.1", 0), ("10.1.2.4", 2)):
        assert (
            subprocess.run([*check, address, folder / "tls.crt"], capture_output=True, check=False).returncode == status
        )


def test_images_may_be_named_by_their_digests() -> None:
    digest = "sha256:" + "5" * 64
    for name, spec in templates(rendered("tls", digest=digest)).items():
        for container in [*spec["containers"], *spec["initContainers"]]:
            assert container["image"] == f"registry.example/resnet-pipeline@{digest}", name
