"""All of infra/ but its containers: hosts that share no folder, real servers with logins, a flow that is rolled out.

    make test-cluster

PostgreSQL has the databases of MLflow's and Prefect's servers, which run as compose.yaml says; moto's S3 server has
data, runs, scores and artifacts. Ray's head has no CPUs. Each other node is a host with a network and a /tmp of its
own: two that compute, and one on which infra/prefect-worker.sh runs. Nobody joins Ray without the token.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from resnet_pipeline.jobs.references import load, parse
from resnet_pipeline.jobs.train import run_config
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from resnet_pipeline.workspace import Workspace
from tests.flow_runs import ENDED, Api
from tests.integration import postgres
from tests.integration.conftest import BINARIES, free_port
from tests.integration.nodes import Nodes
from tests.integration.test_strangers import INFRA, SECRET, USER, service, wait_for
from tests.launching import launch
from tests.s3_server import KEYS, settings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to make namespaces"),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg2") is None, reason="needs psycopg2-binary, for MLflow's server"
    ),
    pytest.mark.skipif(postgres.programs() is None, reason="PostgreSQL is not installed"),
]

BUCKET = "s3://resnet-pipeline"
STEPS = 30
# the network is the paper's, its images are not: digits of 32 pixels, 16 a step
CHANGES = {
    "augment.crop": 32, "augment.shorter_side": [36, 48],
    "views.crop": 32, "views.resize": 36, "views.scales": [32, 36],
    "optim.lr": 0.01, "batch": 16, "micro_batch": 8, "bn_images": 64,
    "eval_every": 1000, "checkpoint_every": 5, "log_every": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """The servers' addresses as ``pod``'s environment has them, and Ray's nodes."""

    nodes: Nodes
    api: Api
    pod: dict[str, str]
    database: dict[str, str]

    def start_worker(self) -> str:
        """Start Prefect's worker on a host of its own, and return the host's name."""
        return self.nodes.start_host([str(INFRA / "prefect-worker.sh")], self.pod)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, sharded_digits) -> Iterator[Cluster]:
    """Start everything but Prefect's worker."""
    folder = tmp_path_factory.mktemp("cluster")
    token = secrets.token_hex(32)
    with ExitStack() as stack:
        for name in [n for n in os.environ if n.startswith(("AWS_", "RESNET_PIPELINE_", "MLFLOW_", "PREFECT_"))]:
            stack.enter_context(settings(**{name: None}))
        s3 = ThreadedMotoServer("0.0.0.0", 0, verbose=False)
        s3.start()
        stack.callback(s3.stop)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
        hosts = {**KEYS, "RESNET_PIPELINE_CACHE": "/tmp/cache", "PYTHONPATH": str(INFRA.parent)}
        nodes = Nodes(folder, hosts, token=token)
        stack.callback(nodes.close)
        if not nodes.namespaces:
            pytest.skip("needs the right to make namespaces, and the program ip")
        hosts["AWS_ENDPOINT_URL"] = f"http://{nodes.host}:{s3.get_host_and_port()[1]}"
        client = {**KEYS, "AWS_ENDPOINT_URL": hosts["AWS_ENDPOINT_URL"]}
        stack.enter_context(settings(**client))
        boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))
        digits = storage_at(f"{BUCKET}/datasets/digits")
        for stored in sharded_digits.storage.files():
            digits.write(stored.name, sharded_digits.path / stored.name)
        database = stack.enter_context(postgres.server())
        mlflow, prefect = _servers(stack, folder, database, nodes.host, client)
        nodes.start()
        for _ in range(2):
            nodes.add()
        pod = {
            **client,
            "PATH": f"{BINARIES}:/usr/bin:/bin",
            "PYTHONPATH": str(INFRA.parent),
            "HOME": "/tmp",
            "PREFECT_HOME": "/tmp/prefect",
            "RESNET_PIPELINE_ROOT": "/tmp/data",
            "RESNET_PIPELINE_DATA": f"{BUCKET}/datasets",
            "RESNET_PIPELINE_RUNS": f"{BUCKET}/runs",
            "RESNET_PIPELINE_POOL": "local",
            "PREFECT_API_URL": f"{prefect}/api",
            "PREFECT_API_AUTH_STRING": f"{USER}:{SECRET}",
            "MLFLOW_TRACKING_URI": mlflow,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": SECRET,
            "RAY_ADDRESS": nodes.address,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
        }
        deployed = subprocess.run(
            [BINARIES / "resnet-pipeline", "deploy", "--pool", "local"],
            # flows begin in the folder where this is called: one that the worker has too
            env={**os.environ, **pod}, cwd="/tmp", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert deployed.returncode == 0, deployed.stderr
        yield Cluster(nodes, Api(pod["PREFECT_API_URL"], login=pod["PREFECT_API_AUTH_STRING"]), pod, database)


def _servers(
    stack: ExitStack, folder: Path, database: Mapping[str, str], host: str, client: Mapping[str, str]
) -> tuple[str, str]:
    """Start MLflow's and Prefect's servers, and return their addresses."""
    place = "pipeline:{PGPASSWORD}@{PGHOST}:{PGPORT}".format_map(database)
    store, ports = f"postgresql+psycopg2://{place}/mlflow", (free_port(), free_port())
    (folder / "mlflow").mkdir()
    (folder / "prefect").mkdir()
    login = (INFRA / "mlflow-auth.ini").read_text().replace("postgresql+psycopg2://pipeline@postgres/mlflow", store)
    (folder / "mlflow/auth.ini").write_text(login)
    subprocess.run([BINARIES / "mlflow", "db", "upgrade", store], check=True, capture_output=True)
    addresses = [f"{host}:{port}" for port in ports]
    mlflow = {
        **client,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "mlflow/auth.ini"),
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_ARTIFACTS_DESTINATION": f"{BUCKET}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": client["AWS_ENDPOINT_URL"],
        "MLFLOW_SERVER_ALLOWED_HOSTS": addresses[0],
    }
    prefect = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{place}/prefect",
    }
    stack.enter_context(service("mlflow", ports[0], folder / "mlflow", mlflow, listens=host))
    stack.enter_context(service("prefect-server", ports[1], folder / "prefect", prefect, listens=host))
    wait_for(f"http://{addresses[0]}/health", folder / "mlflow")
    wait_for(f"http://{addresses[1]}/api/health", folder / "prefect")
    return f"http://{addresses[0]}", f"http://{addresses[1]}"


def until(true: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def last_saved(home: Storage) -> int:
    names = (Path(stored.name) for stored in home.files("checkpoints/"))
    return max((int(name.stem.removeprefix("step-")) for name in names if name.suffix == ".json"), default=0)


def test_a_network_is_trained_and_registered_through_a_lost_host_and_a_roll_out(cluster, sharded_digits, tmp_path):
    nodes, api = cluster.nodes, cluster.api
    config = run_config("imagenet/resnet18", CHANGES, steps=STEPS)
    home = storage_at(f"{BUCKET}/runs/{run_name(config, sharded_digits.fingerprint)}")
    pod = cluster.start_worker()
    flow_run = api.start(
        "imagenet-train/resnet18", dataset="digits", workers=2, steps=STEPS, overrides=CHANGES, protocols=["center"]
    )

    def saved(step: int) -> bool:
        assert flow_run.state()[0] not in ENDED, "\n".join([*flow_run.log(), nodes.log(pod)])
        return last_saved(home) >= step

    try:
        # the database of both servers crashes, a host is lost in the middle, and another one comes
        flow_run.until(lambda: saved(5), 400)
        postgres.restart(cluster.database)
        ((driver, _),) = nodes.processes("_Driver")
        nodes.kill(next(node for node, _ in nodes.workers() if node != driver))
        nodes.add()
        before = last_saved(home)
        flow_run.until(lambda: saved(before + 1), 400)
        # the worker is rolled out; Ray's workers are stopped, or they might finish before the new one has started
        for _, worker in nodes.workers():
            worker.suspend()
        assert flow_run.state()[0] == "RUNNING" and last_saved(home) < STEPS
        nodes.stop(pod, 90)
        assert flow_run.state()[0] == "RUNNING" and len(nodes.processes("_Driver")) == 1
        pod = cluster.start_worker()
        flow_run.until(lambda: any("it is trained on the cluster already" in line for line in flow_run.log()), 300)
        for _, worker in nodes.workers():
            worker.resume()
        kind, message = flow_run.ended(600)
        log = flow_run.log()
        assert kind == "COMPLETED", "\n".join([message, *log, nodes.log(pod)])
    except AssertionError:
        print(nodes.log(pod))
        raise
    assert any("2 worker(s) resume from step" in line for line in log), "\n".join(log)
    assert api.ask(f"/flow_runs/{flow_run.id}")["run_count"] == 2
    # as if nothing had happened
    undisturbed = RunDirectory.create(tmp_path, config, sharded_digits.facts)
    for process in launch(undisturbed, sharded_digits, 2):
        assert process.wait(600) == 0
    expected = undisturbed.result()
    (tmp_path / "result.json").write_bytes(home.read("result.json"))
    result = RunResult.read(tmp_path / "result.json")
    assert result is not None and expected is not None
    assert result.weights_sha256 == expected.weights_sha256 and result.steps == STEPS
    with settings(**{name: value for name, value in cluster.pod.items() if name.startswith("MLFLOW_")}):
        workspace = Workspace(tmp_path / "work")
        registered = load(workspace, parse(workspace, "models:/imagenet-resnet18@candidate"))
    assert registered.weights_sha256 == expected.weights_sha256
    # all is in the bucket, and nothing on the hosts
    assert nodes.processes("_Driver") == [] and nodes.workers() == []
    kept = [str(path) for root in nodes.roots() for path in (root / "tmp/cache/runs").rglob("*.pt")]
    assert kept == []
