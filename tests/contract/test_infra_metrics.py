"""What Prometheus asks is there, and what Grafana draws is exported; the servers themselves: test_strangers.py."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_pipeline.adapters.ray.gauges import GAUGES
from tests.contract.test_infra import COMPOSE, INFRA, METRICS, PODS, SECRETS, SERVICES, of_kind, secrets_of

FOLDER = INFRA / "metrics"
SCRAPES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
PANELS: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
DEPLOYED = list(yaml.safe_load_all((FOLDER / "deployment.yaml").read_text()))
POD = next(doc for doc in DEPLOYED if doc["kind"] == "Deployment")["spec"]["template"]["spec"]
NAMES = {name for query in QUERIES for name in re.findall(r"\b(?:ray|mlflow|prefect)_[a-z_]+", query)}


@functools.cache
def source(*path: str) -> str:
    return Path(sysconfig.get_paths()["purelib"], *path).read_text()


def is_exported(name: str) -> bool:
    if name in {f"ray_{gauge}" for gauge in GAUGES}:
        return True
    if name.startswith("ray_"):
        return f'"{name.removeprefix("ray_")}"' in source(
            "ray", "dashboard", "modules", "reporter", "reporter_agent.py"
        )
    if name.startswith("prefect_"):
        return f'"{name.removesuffix("_total")}"' in source("prefect", "server", "events", "clients.py") + source(
            "prefect", "events", "clients.py"
        ) + source("prefect", "logging", "clients.py")
    return f"%s{name.removeprefix('mlflow_')}'" in source("prometheus_flask_exporter", "__init__.py")


def test_what_grafana_draws_is_exported() -> None:
    assert {*(f"ray_{gauge}" for gauge in GAUGES), "ray_node_gpus_utilization"} <= NAMES
    assert not {name for name in NAMES if not is_exported(name)}
    assert not is_exported("ray_resnet_pipeline_steps") and not is_exported("mlflow_requests_total")


def test_what_prometheus_asks_is_in_both_layouts() -> None:
    services = {service["metadata"]["name"]: service for service in [*of_kind("Service"), *DEPLOYED]}
    assert {scrape["job_name"] for scrape in SCRAPES} == {"ray", "mlflow", "prefect"}
    for host, port in re.findall(r"([a-z-]+):(\d+)", yaml.safe_dump(SCRAPES)):
        assert "cluster" in SERVICES[host]["networks"], host
        assert int(port) in {one["port"] for one in services[host]["spec"]["ports"]}, host
        text = f"{SERVICES[host]['command']} {SERVICES[host].get('ports', [])}"
        assert port in text, f"{host} does not listen on {port}"
    assert SERVICES["prefect-server"]["environment"]["PREFECT_SERVER_METRICS_ENABLED"] == "true"
    assert "--expose-prometheus" in SERVICES["mlflow"]["command"]


def test_prometheus_has_the_logins_that_its_file_names() -> None:
    files = set(re.findall(r"/run/secrets/(\w+)", (FOLDER / "prometheus.yaml").read_text()))
    prometheus = METRICS["services"]["prometheus"]
    start = " ".join(prometheus["entrypoint"])
    (container,) = POD["containers"]
    files |= set(re.findall(r"/run/secrets/(\w+)", start))
    assert files == set(secrets_of(prometheus)) <= SECRETS
    (secret,) = (volume["secret"] for volume in POD["volumes"] if "secret" in volume)
    assert {item["key"] for item in secret["items"]} == {item["path"] for item in secret["items"]} == files
    assert prometheus["image"] == container["image"]
    in_pod = " ".join(container["command"])
    assert start.replace("30d", "15d") == in_pod, "the two layouts start it alike but for how long it keeps data"
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/etc/prometheus", "/run/secrets", "/tmp", "/prometheus"} == mounted


def test_grafana_finds_the_dashboard_and_every_panel_says_what_it_shows() -> None:
    grafana = METRICS["services"]["grafana"]
    (mount,) = grafana["volumes"]
    folder = yaml.safe_load(METRICS["configs"]["grafana-folder"]["content"])["providers"][0]["options"]["path"]
    assert (INFRA / mount.split(":")[0]).exists() and Path(mount.split(":")[1]).parent == Path(folder)
    address = yaml.safe_load(METRICS["configs"]["grafana-source"]["content"])["datasources"][0]["url"]
    assert re.fullmatch(r"http://prometheus:9090", address)
    assert all(panel["description"] for panel in PANELS)
    assert {"Images per second", "Goodput", "Waiting for data", "GPU use"} <= {panel["title"] for panel in PANELS}
    assert {source["source"] for source in grafana["configs"]} == set(METRICS["configs"])
    assert all(service["networks"] == ["cluster"] for service in METRICS["services"].values())
    assert "cluster" in COMPOSE["networks"]
    assert "prometheus" not in PODS, "Kubernetes has it as a component"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_itself_reads_the_file_and_the_queries(tmp_path: Path) -> None:
    text = (FOLDER / "prometheus.yaml").read_text()
    for path in re.findall(r"(?:/run/secrets|/tmp)/[\w-]+", text):
        (tmp_path / Path(path).name).touch()
        text = text.replace(path, str(tmp_path / Path(path).name))
    (tmp_path / "prometheus.yaml").write_text(text)
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    for what, name in (("config", "prometheus.yaml"), ("rules", "rules.json")):
        done = subprocess.run(["promtool", "check", what, tmp_path / name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
