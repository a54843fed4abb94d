"""infra/ and the Dockerfile against published schemas, and against themselves: what is referred to exists."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from resnet_pipeline.settings import PREFIX, variable

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERAY = INFRA / "kuberay"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GPU = yaml.safe_load((INFRA / "compose.gpu.yaml").read_text())
BACKUP = yaml.safe_load((INFRA / "compose.backup.yaml").read_text())
METRICS = yaml.safe_load((INFRA / "compose.metrics.yaml").read_text())
COMPOSE_FILES = sorted(path.name for path in INFRA.glob("compose*.yaml"))
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SECRETS = set(re.findall(r"^make (\w+)", (INFRA / "make-secrets.sh").read_text(), re.MULTILINE))


def manifests() -> list[dict[str, Any]]:
    names = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())["resources"]
    return [doc for name in names for doc in yaml.safe_load_all((KUBERAY / name).read_text())]


MANIFESTS = manifests()


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [doc for doc in MANIFESTS if doc["kind"] in kinds]


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every pod template with the name of its group; volumes of a StatefulSet's claims are added to it."""
    for doc in of_kind("Deployment", "StatefulSet"):
        template = copy.deepcopy(doc["spec"]["template"])
        for claim in doc["spec"].get("volumeClaimTemplates", []):
            template["spec"].setdefault("volumes", []).append({"name": claim["metadata"]["name"], "emptyDir": {}})
        yield doc["metadata"]["name"], template
    for doc in of_kind("RayCluster"):
        yield "ray-head", doc["spec"]["headGroupSpec"]["template"]
        for group in doc["spec"]["workerGroupSpecs"]:
            yield f"ray-{group['groupName']}", group["template"]


PODS = dict(pod_templates())


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, template in PODS.items():
        for container in [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]:
            yield f"{name}/{container['name']}", container


def example(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def hosts(text: str) -> list[str]:
    """Return the host names of a URL, of ``host:port`` or ``--address=host:port``; no IP address, no bucket."""
    text = re.sub(r"\$\{[^}]*\}", "variable", text)
    found = re.findall(r"(?<!s3)://(?:[^@/]*@)?([a-z][a-z0-9-]*)", text)
    return found + re.findall(r"^(?:--address=)?([a-z][a-z0-9-]*):\d+$", text)


# --- Compose ---


def compose_errors(value: Any) -> list[str]:
    pytest.importorskip("check_jsonschema")
    file = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.Draft202012Validator(json.loads(file.read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_files_follow_the_compose_specification(name: str) -> None:
    assert compose_errors(yaml.safe_load((INFRA / name).read_text())) == []


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
def test_compose_itself_reads_the_files(tmp_path: Path) -> None:
    shutil.copytree(INFRA, tmp_path / "infra")
    files = [word for name in sorted(COMPOSE_FILES, key=len) for word in ("-f", str(tmp_path / "infra" / name))]
    done = subprocess.run(["docker-compose", *files, "config"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == {*SERVICES, *METRICS["services"]}


def test_the_compose_check_notices_a_misspelt_field() -> None:
    broken = copy.deepcopy(COMPOSE)
    broken["services"]["mlflow"]["healtcheck"] = broken["services"]["mlflow"].pop("healthcheck")
    assert any("healtcheck" in error for error in compose_errors(broken))


def test_what_compose_services_refer_to_exists() -> None:
    volumes, networks, used = set(COMPOSE["volumes"]), set(COMPOSE["networks"]), set()
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= networks, name
        for mount in service.get("volumes", []):
            source = re.sub(r"\$\{[^}]*\}", "./variable", mount).split(":")[0]
            if source.startswith("."):
                assert source == "./variable" or (INFRA / source).exists(), f"{name}: {mount}"
            else:
                assert source in volumes, f"{name}: {mount}"
                used.add(source)
        for other, options in service.get("depends_on", {}).items():
            one_shot = SERVICES[other].get("restart") == "no"
            wanted = "service_completed_successfully" if one_shot else "service_healthy"
            assert options["condition"] == wanted, f"{name} waits for {other}"
    assert used == volumes
    assert set(GPU["services"]) <= set(SERVICES)


def test_hosts_in_compose_urls_are_services_on_a_shared_network() -> None:
    for name, service in SERVICES.items():
        texts = [*map(str, service.get("environment", {}).values()), *map(str, service.get("command", []))]
        for host in {host for text in texts for host in hosts(text)}:
            assert host in SERVICES, f"{name}: {host}"
            assert set(service["networks"]) & set(SERVICES[host]["networks"]), f"{name} cannot reach {host}"


def test_servers_restart_and_say_when_they_are_healthy() -> None:
    for name, service in SERVICES.items():
        if service["restart"] == "no":
            assert "healthcheck" not in service, name
            continue
        assert service["restart"] == "unless-stopped", name
        test = service["healthcheck"]["test"]
        assert test[0] == "CMD", name
        published = {port.split(":")[-1] for port in service.get("ports", [])}
        asked = set(re.findall(r"127\.0\.0\.1:(\d+)/", " ".join(test)))
        assert not published or asked == published, f"{name}: the check asks another port than the one published"


def test_ports_are_bound_to_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports), ports


def secrets_of(service: dict[str, Any]) -> dict[str, str]:
    """Return a service's secrets by the names that they have inside: there each is an environment variable."""
    listed = service.get("secrets", [])
    return {one if isinstance(one, str) else one["target"]: one if isinstance(one, str) else one["source"]
            for one in listed}  # fmt: skip


def test_secrets_are_files_that_a_script_makes(tmp_path: Path) -> None:
    assert {name: one["file"] for name, one in COMPOSE["secrets"].items()} == {n: f"./secrets/{n}" for n in SECRETS}
    assert {name for service in SERVICES.values() for name in secrets_of(service).values()} == SECRETS
    for name, service in SERVICES.items():
        assert not SECRETS & set(service.get("environment", {})), name
    make = [str(INFRA / "make-secrets.sh"), str(tmp_path / "secrets")]
    subprocess.run(make, check=True, capture_output=True)
    first = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(first) == SECRETS and len(set(first.values())) == len(SECRETS)
    assert all(re.fullmatch(r"(pipeline:)?[0-9a-f]{48}", text) for text in first.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    (tmp_path / "secrets/PGPASSWORD").unlink()
    subprocess.run(make, check=True, capture_output=True)
    again = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {name for name in SECRETS if first[name] != again[name]} == {"PGPASSWORD"}


def test_a_container_has_its_secrets_as_variables_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "RAY_AUTH_TOKEN").write_text("of $(date) 'quoted'\n")
    (tmp_path / "PGPASSWORD").write_text("")
    command = [INFRA / "with-secrets.sh", "printenv", "RAY_AUTH_TOKEN"]
    environment = {"PATH": "/usr/bin:/bin", "SECRETS_FOLDER": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("the secret PGPASSWORD is empty: ")
    (tmp_path / "PGPASSWORD").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "of $(date) 'quoted'\n")
    assert 'ENTRYPOINT ["tini", "--", "/opt/infra/with-secrets.sh"]' in DOCKERFILE


def test_variables_of_compose_are_in_the_example() -> None:
    text = "".join((INFRA / name).read_text() for name in COMPOSE_FILES)
    found = re.findall(r"\$\{([A-Z0-9_]+)(:?[?-])?([^}]*)\}", text)
    values = example(INFRA / "example.env")
    assert {name for name, _, _ in found} == set(values)
    for name, operator, default in found:
        assert (operator, default) == (":-", values[name]), f"{name}: default and example differ"
    assert not SECRETS & set(values)


def test_every_ray_node_of_compose_has_the_token_and_shared_memory() -> None:
    nodes = {name: service for name, service in SERVICES.items() if "RAY_AUTH_TOKEN" in secrets_of(service)}
    assert set(nodes) == {"ray-head", "ray-worker", "prefect-worker"}
    for name, service in nodes.items():
        assert service["environment"]["RAY_AUTH_MODE"] == "token", name
        assert service["environment"]["RAY_USAGE_STATS_ENABLED"] == "0", name
        assert "shm_size" in service, name


def test_a_backup_runs_what_is_there_and_reaches_what_it_saves() -> None:
    for name, service in BACKUP["services"].items():
        assert service["profiles"] == ["backup"] and service["restart"] == "no", name
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        assert set(secrets_of(service).values()) <= SECRETS, name
        assert set(service["depends_on"]) <= {*SERVICES, *BACKUP["services"]}, name
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert source.startswith("$") or (INFRA / source).exists(), f"{name}: {mount}"
        for setting, value in service["environment"].items():
            if setting in SERVICES["s3-bucket"]["environment"]:
                assert value == SERVICES["s3-bucket"]["environment"][setting], f"{name}: {setting}"
    databases = BACKUP["services"]["backup-databases"]
    assert databases["image"] == SERVICES["postgres"]["image"]
    saved = set(re.findall(r"for database in ([\w ]+);", (INFRA / "databases.sh").read_text()))
    made = re.findall(r"CREATE DATABASE (\w+)", (INFRA / "mlflow-database.sql").read_text())
    assert saved == {" ".join([SERVICES["postgres"]["environment"]["POSTGRES_DB"], *made])}


# --- mounts ---


def started(command: list[str]) -> str:
    """Return what reads files in a container: `flows`, a Ray `node` that computes, or something else."""
    if command[:1] == ["/opt/infra/prefect-worker.sh"]:
        return "flows"
    return "node" if command[:2] == ["ray", "start"] and "--num-cpus=0" not in command else "other"


def mounts() -> Iterator[tuple[str, str, dict[str, tuple[str, bool]], dict[str, str]]]:
    """Yield layout, what is started, its mounts (path: what is there, whether it can be written), its settings."""
    for name, service in SERVICES.items():
        found = {}
        for mount in service.get("volumes", []):
            source, path, *mode = re.sub(r"\$\{[^}]*\}", "./variable", mount).split(":")
            found[path] = (source, mode != ["ro"])
        found |= {f"/run/secrets/{inside}": (secret, False) for inside, secret in secrets_of(service).items()}
        yield f"compose {name}", started(service.get("command", [])), found, service.get("environment", {})
    for name, template in PODS.items():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        for container in template["spec"]["containers"]:
            found = {
                mount["mountPath"]: (
                    volumes[mount["name"]].get("persistentVolumeClaim", {}).get("claimName", mount["name"]),
                    not mount.get("readOnly", False),
                )
                for mount in container.get("volumeMounts", [])
            }
            # KubeRay writes the command of a Ray node
            kind = "node" if name.startswith("ray-") and name != "ray-head" else started(container.get("args", []))
            settings = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
            yield f"kubernetes {name}", kind, found, settings


def test_every_path_that_is_read_is_mounted_where_it_is_read() -> None:
    """A flow lists a source and Ray's nodes pack it; runs and datasets are in the bucket, which both reach.

    On Kubernetes a source is in a bucket too: there is no volume that two pods mount.
    """
    seen: dict[str, set[str]] = {}
    for name, kind, found, settings in mounts():
        layout = name.split()[0]
        if kind != "other":
            seen.setdefault(layout, set()).add(kind)
            if layout == "compose":
                assert found.get("/sources", ("", True))[1] is False, f"{name} does not mount /sources, read-only"
            assert settings["AWS_ENDPOINT_URL"], f"{name} does not know where the bucket is"
            if kind == "flows":
                assert all(settings[variable(field)].startswith("s3://") for field in ("data", "runs")), name
        for setting, value in settings.items():
            if str(value).startswith("/opt/infra/"):
                assert f"infra/{Path(value).name}" in DOCKERFILE, f"{name}: {setting}={value} is not in the image"
            elif re.fullmatch(r"(/[\w.-]+)+", str(value)) and setting != "PGDATA":
                assert value in found, f"{name}: {setting}={value} is not mounted"
                assert found[value][1] or not setting.startswith(PREFIX), f"{name}: {setting}={value} is read-only"
    assert seen == {"compose": {"flows", "node"}, "kubernetes": {"flows", "node"}}
    assert not of_kind("PersistentVolumeClaim"), "each server's own claim is a part of its StatefulSet"


# --- the image ---


def all_images() -> set[str]:
    compose = {re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", service["image"]) for service in SERVICES.values()}
    return compose | {container["image"] for _, container in containers()}


def test_two_images_of_ours_with_the_packages_version_and_no_moving_tags() -> None:
    images = all_images()
    ours = {f"resnet-pipeline:{VERSION}", f"resnet-pipeline-servers:{VERSION}"}
    assert {image for image in images if image.startswith("resnet-pipeline")} == ours
    for image in images:
        tag = image.partition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{image}: name a version"
    kustomization = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())
    assert {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]} == ours


def test_the_dockerfile_copies_what_exists_and_dockerignore_lets_through() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == allowed
    missing = {source for source in copied if not (ROOT / source).exists()}
    assert not missing, f"the Dockerfile copies {missing}"


def test_the_image_is_pinned_and_runs_as_an_ordinary_user() -> None:
    assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(stages) == len(re.findall(r"^FROM ", DOCKERFILE, re.MULTILINE))
    names = [name for _, name in stages]
    assert all(source == "${BASE}" or source in names[:at] for at, (source, _) in enumerate(stages))
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert targets == {"servers", "pipeline"} and names[-1] == "pipeline"
    for target in targets:
        assert re.search(r"^USER 1000:1000$", stage(target), re.MULTILINE), target


def stage(name: str) -> str:
    """Return the lines of a stage of the Dockerfile."""
    return re.split(rf"^FROM \S+ AS {name}$", DOCKERFILE, flags=re.MULTILINE)[1].split("\nFROM ")[0]


def test_the_image_that_trains_has_a_compiler_and_knows_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.build import _find_compiler

    monkeypatch.delenv("CC", raising=False)
    assert Path(_find_compiler("c")).name in {"gcc", "clang"}  # what Triton looks for; Debian's g++ brings gcc
    text = stage("pipeline")
    assert re.search(r"apt-get install .*\bg\+\+", text)
    assert re.search(r"^ARG REVISION=", text, re.MULTILINE) and f"{variable('revision')}=$REVISION" in text
    (argument,) = {service["build"].get("args", {}).get("REVISION") for name, service in SERVICES.items()
                   if service.get("build", {}).get("target") == "pipeline"}  # fmt: skip
    assert argument == "${RESNET_PIPELINE_REVISION:-}"


def test_the_servers_packages_have_tested_versions_and_hold_no_torch() -> None:
    """What MLflow and Prefect need beyond themselves is in the list: pip resolves the rest."""
    listed = [line for line in (INFRA / "servers.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.lower().replace("-", "_") for name in listed} <= {name.replace("-", "_") for name in pinned}
    assert not {"torch", "nvidia-dali-cuda130", "ray"} & set(listed)


def test_scripts_that_commands_name_are_in_the_image() -> None:
    commands = [service.get("command", []) for service in [*SERVICES.values(), BACKUP["services"]["backup-bucket"]]]
    commands += [container.get("args", []) for _, container in containers()]
    scripts = {Path(command[0]).name for command in commands if command and str(command[0]).startswith("/opt/infra/")}
    scripts |= {"with-secrets.sh", "ray-certificate.sh"}  # the latter: test_infra_overlays.py
    # for the machine that starts the containers, and for PostgreSQL's own image
    assert scripts | {"make-secrets.sh", "databases.sh"} == {
        path.name for path in INFRA.iterdir() if path.suffix in {".sh", ".py"}
    }
    for script in scripts:
        assert f"infra/{script}" in DOCKERFILE
        assert (INFRA / script).stat().st_mode & 0o111, f"{script} is not executable"
    for path in INFRA.glob("*.sh"):
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


# --- Kubernetes ---


def kubernetes_errors(doc: dict[str, Any], version: str) -> str:
    validate = pytest.importorskip("kubernetes_validate")
    try:
        validate.validate(doc, version, strict=True)
    except validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_manifests_follow_kubernetes_schemas(version: str) -> None:
    docs = [doc for doc in MANIFESTS if doc["kind"] != "RayCluster"]
    docs += [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
        for name, template in PODS.items()
    ]
    for doc in docs:
        assert kubernetes_errors(doc, version) == "", f"{doc['kind']} {doc['metadata']['name']}"


def test_the_kubernetes_check_notices_a_misspelt_field() -> None:
    (broken,) = (copy.deepcopy(doc) for doc in of_kind("Deployment") if doc["metadata"]["name"] == "mlflow")
    broken["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    assert "imagePullPolice" in kubernetes_errors(broken, "1.37")


def fields_of(schema: dict[str, Any], value: Any, at: str = "") -> Iterator[str]:
    """Yield where a value departs from the fields of `tests/golden/kuberay_fields.json`.

    There a text is a JSON type, a list what may stand there, a mapping an object of these fields, `[…]` around one a
    list of such, and `null` what is checked elsewhere.
    """
    types = {"string": str, "integer": int, "boolean": bool, "strings": dict}
    if schema is None:
        return
    if isinstance(schema, str):
        if type(value) is not types[schema] or (
            schema == "strings" and not all(type(v) is str for v in value.values())
        ):
            yield f"{at}: {value!r} is no {schema}"
    elif isinstance(schema, list) and isinstance(schema[0], dict):
        for number, one in enumerate(value):
            yield from fields_of(schema[0], one, f"{at}[{number}]")
    elif isinstance(schema, list):
        if value not in schema:
            yield f"{at}: {value!r} is none of {schema}"
    else:
        for name in value:
            if name not in schema:
                yield f"{at}.{name} is unknown"
            else:
                yield from fields_of(schema[name], value[name], f"{at}.{name}")


KUBERAY_FIELDS = json.loads((ROOT / "tests/golden/kuberay_fields.json").read_text())


def test_the_raycluster_has_kuberay_s_fields_and_our_ray_s_version() -> None:
    (cluster,) = of_kind("RayCluster")
    assert list(fields_of(KUBERAY_FIELDS["RayCluster.spec"], cluster["spec"])) == []
    assert cluster["apiVersion"] == "ray.io/v1"
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and cluster["spec"]["rayVersion"] == pinned[1]
    broken = copy.deepcopy(cluster["spec"])
    broken["autoscalerOptions"]["version"] = "v3"
    broken["workerGroupSpecs"][0]["maxReplica"] = 1
    broken["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert len(list(fields_of(KUBERAY_FIELDS["RayCluster.spec"], broken))) == 3


@pytest.mark.slow
@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD names no ray.io_rayclusters.yaml of KubeRay's")
def test_the_raycluster_follows_kuberay_s_own_schema() -> None:
    """All of it, pod templates included; and the fields above are those that the CRD has."""
    crd = yaml.safe_load(Path(os.environ["KUBERAY_CRD"]).read_text())
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == "v1")
    (cluster,) = of_kind("RayCluster")
    closed(schema)
    errors = jsonschema.Draft202012Validator(schema["properties"]["spec"]).iter_errors(cluster["spec"])
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def closed(schema: dict[str, Any]) -> None:
    """Let an object have the properties that its schema names and no other, as Kubernetes' strict validation does."""
    if schema.get("x-kubernetes-int-or-string"):
        schema.clear()
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    for one in [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]:
        if isinstance(one, dict):
            closed(one)


def test_the_autoscaler_has_its_token_and_its_account_and_users_code_has_not() -> None:
    (cluster,) = of_kind("RayCluster")
    spec, options = cluster["spec"], cluster["spec"]["autoscalerOptions"]
    assert spec["enableInTreeAutoscaling"] is True
    head = spec["headGroupSpec"]["template"]["spec"]
    (ray,) = head["containers"]
    assert {one["name"]: one for one in options["env"]} == {one["name"]: one for one in ray["env"]}
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert account in [mount["mountPath"] for mount in options["volumeMounts"]]
    assert {mount["name"] for mount in options["volumeMounts"]} <= {volume["name"] for volume in head["volumes"]}
    assert account not in [mount["mountPath"] for mount in ray["volumeMounts"]]
    assert all(template["spec"]["automountServiceAccountToken"] is False for template in PODS.values())
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_drivers_know_what_the_autoscaler_may_bring_and_it_begins_with_none() -> None:
    (cluster,) = of_kind("RayCluster")
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in groups.values())
    (container,) = groups["gpu"]["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]  # of which KubeRay tells Ray
    settings = {entry["name"]: entry.get("value") for entry in PODS["prefect-worker"]["spec"]["containers"][0]["env"]}
    nodes = f"{groups['gpu']['maxReplicas']}x{limits['cpu']}x{limits['nvidia.com/gpu']}"
    assert settings[variable("ray_nodes")] == nodes


def test_nothing_restarts_a_pod_that_works() -> None:
    """A liveness probe ends what it can't reach: the worker for Prefect's absence, PostgreSQL while it recovers."""
    assert [name for name, container in containers() if "livenessProbe" in container] == []


def test_the_root_is_read_only_and_what_is_written_has_a_place() -> None:
    for name, container in containers():
        if container["image"].startswith("resnet-pipeline"):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            paths = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/home/pipeline"} <= paths, name


def test_shared_memory_is_within_the_memory_that_a_pod_may_use() -> None:
    sizes = {}
    for name, template in PODS.items():
        for volume in template["spec"].get("volumes", []):
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                sizes[name] = gibibytes(volume["emptyDir"]["sizeLimit"])
                limits = [gibibytes(c["resources"]["limits"]["memory"]) for c in template["spec"]["containers"]]
                assert sizes[name] < sum(limits), name
    assert {name for name in PODS if name.startswith("ray-")} <= set(sizes)


def gibibytes(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) / {"Mi": 1024, "Gi": 1}[unit]


def test_every_pod_has_a_priority_and_a_budget_that_matches_it() -> None:
    classes = {doc["metadata"]["name"] for doc in of_kind("PriorityClass")}
    assert {template["spec"]["priorityClassName"] for template in PODS.values()} == classes
    labels = [template["metadata"]["labels"]["app.kubernetes.io/name"] for template in PODS.values()]
    budgets = json.dumps(of_kind("PodDisruptionBudget"))
    covered = {label for label in labels if f'"{label}"' in budgets}
    # clients wait for these two, and what the worker has left is taken up by the next one
    assert set(labels) - covered == {"mlflow", "prefect-server", "prefect-worker"}


def test_what_pods_refer_to_exists() -> None:
    config_maps = {doc["metadata"]["name"] for doc in of_kind("ConfigMap")}
    kustomization = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())
    (generator,) = kustomization["secretGenerator"]
    assert {Path(file).parent.name for file in generator["files"]} == {"secrets"}
    keys = {Path(file).name for file in generator["files"]}
    assert keys == SECRETS
    for name, template in PODS.items():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        for volume in volumes.values():
            assert "persistentVolumeClaim" not in volume, f"{name}: a volume that others may mount"
            assert volume.get("configMap", {}).get("name", "postgres-init") in config_maps, name
        mounted = {
            mount["name"] for _, c in containers() if _.startswith(f"{name}/") for mount in c.get("volumeMounts", [])
        }
        if name == "ray-head":  # KubeRay puts the autoscaler beside it
            (cluster,) = of_kind("RayCluster")
            mounted |= {mount["name"] for mount in cluster["spec"]["autoscalerOptions"]["volumeMounts"]}
        assert mounted == set(volumes), name
    for name, container in containers():
        defined: set[str] = set()
        for entry in container.get("env", []):
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            assert reference is None or (reference["name"] == generator["name"] and reference["key"] in keys), name
            assert set(re.findall(r"\$\((\w+)\)", entry.get("value", ""))) <= defined, f"{name}: order of env"
            defined.add(entry["name"])
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = container.get(probe, {}).get("httpGet")
            assert get is None or get["port"] in ports, f"{name}: {probe}"


def test_services_select_pods_and_hosts_in_urls_are_services() -> None:
    labels = {name: template["metadata"]["labels"] for name, template in PODS.items()}
    names = {"ray-head-svc"}  # KubeRay makes it: <cluster>-head-svc
    for service in of_kind("Service"):
        names.add(service["metadata"]["name"])
        chosen = [name for name, have in labels.items() if service["spec"]["selector"].items() <= have.items()]
        assert len(chosen) == 1, service["metadata"]["name"]
        ports = {port["name"] for c in PODS[chosen[0]]["spec"]["containers"] for port in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, service["metadata"]["name"]
    for doc in of_kind("Deployment", "StatefulSet"):
        wanted = doc["spec"]["selector"]["matchLabels"].items()
        assert wanted <= doc["spec"]["template"]["metadata"]["labels"].items(), doc["metadata"]["name"]
    for name, container in containers():
        for entry in container.get("env", []):
            assert set(hosts(entry.get("value", ""))) <= names, f"{name}: {entry}"
    known = {have["app.kubernetes.io/name"] for have in labels.values()}
    policies = json.dumps(of_kind("NetworkPolicy"))
    assert set(re.findall(r'"app.kubernetes.io/name": "([\w-]+)"', policies)) <= known
    for values in re.findall(r'"values": (\[[^]]*\])', policies):
        assert set(json.loads(values)) <= known


def test_containers_are_bounded_and_ours_are_unprivileged() -> None:
    for name, container in containers():
        assert "memory" in container["resources"]["limits"], name
        if container["image"].startswith("resnet-pipeline"):
            assert PODS[name.split("/")[0]]["spec"]["securityContext"]["runAsNonRoot"], name
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name


def test_compose_and_kubernetes_run_the_same_commands() -> None:
    """The two ways differ in the machine, not in what runs; Ray's nodes are started by KubeRay."""
    kubernetes = {name.split("/")[1]: container.get("args") for name, container in containers()}
    pairs = [("s3", "seaweedfs"), ("s3-bucket", "bucket"), ("deployments", "deploy"), ("prefect-server",) * 2]
    for service, container in [*pairs, ("mlflow-database",) * 2, ("prefect-worker",) * 2]:
        assert SERVICES[service]["command"] == kubernetes[container], service


def test_every_manifest_is_listed() -> None:
    kustomization = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())
    listed = {*kustomization["resources"], *kustomization["configurations"], "kustomization.yaml"}
    assert listed == {path.name for path in KUBERAY.glob("*.yaml")}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kustomize_renders_and_renames_every_image(tmp_path: Path) -> None:
    folder = tmp_path / "kuberay"
    shutil.copytree(KUBERAY, folder)
    subprocess.run([INFRA / "make-secrets.sh", folder / "secrets"], check=True, capture_output=True)
    file = folder / "kustomization.yaml"
    file.write_text(file.read_text().replace("newName: resnet-pipeline", "newName: registry.example/resnet-pipeline"))
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    docs = list(yaml.safe_load_all(done.stdout))
    assert len(docs) == len(MANIFESTS) + 1  # and the secret
    assert {doc["metadata"].get("namespace", "resnet-pipeline") for doc in docs} == {"resnet-pipeline"}
    assert not re.search(r"image: resnet-pipeline", done.stdout)
