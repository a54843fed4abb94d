"""What `doctor` says of devices, servers and buckets that work, and of those that do not."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from resnet_pipeline.adapters.ray import versions
from resnet_pipeline.adapters.ray.versions import Node, differences
from resnet_pipeline.data.decoding_check import Trial
from resnet_pipeline.errors import UserError
from resnet_pipeline.services import connections
from resnet_pipeline.services.doctor import decoder_of_gpus
from resnet_pipeline.storage import storage_at
from resnet_pipeline.workspace import Workspace


@pytest.fixture
def refusing() -> Iterator[str]:
    """Return the address of a server that takes no one's login."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


FAST, SLOW = Trial(images_per_second=9000.0), Trial(images_per_second=3000.0)
CRASH = Trial(problem="ended with status -11: it said nothing")


@pytest.mark.parametrize(
    ("setting", "trials", "ok", "state", "use"),
    [
        ("auto", {"regions": FAST, "whole": SLOW, "cpu": SLOW}, True, "regions 9,000 images/s, whole", "by regions"),
        ("auto", {"regions": SLOW, "whole": FAST, "cpu": SLOW}, True, "whole 9,000",
         "by regions; RESNET_PIPELINE_GPU_DECODING=whole is faster"),
        ("whole", {"regions": SLOW, "whole": FAST, "cpu": SLOW}, True, "whole 9,000", "by whole"),
        ("auto", {"regions": CRASH, "whole": SLOW, "cpu": SLOW}, True,
         "; not cuda:0 by regions ended with status -11: it said nothing", "by whole"),
        ("auto", dict.fromkeys(("regions", "whole", "cpu"), CRASH), False, "status -11", "no training on cuda:0"),
    ],
)  # fmt: skip
def test_doctor_says_how_a_gpu_decodes_and_what_is_faster(monkeypatch, setting, trials, ok, state, use):
    monkeypatch.setenv("RESNET_PIPELINE_GPU_DECODING", setting)
    found = decoder_of_gpus("DALI 2.3.0", {"cuda:0": trials})
    assert found.ok is ok and state in found.state and found.use == use


@pytest.mark.slow
def test_servers_that_refuse_the_login_can_t_be_used(monkeypatch, tmp_path, refusing):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing)
    monkeypatch.setenv("PREFECT_API_URL", f"{refusing}/api")
    for check in (connections.mlflow, connections.prefect):
        found = check(Workspace.of(tmp_path))
        assert not found.ok and "401" in found.state and "\n" not in found.state


def test_a_bucket_is_written_and_read_and_left_as_it_was(monkeypatch, tmp_path, bucket):
    monkeypatch.setenv("RESNET_PIPELINE_RUNS", f"s3://{bucket}/runs")
    monkeypatch.setenv("RESNET_PIPELINE_DATA", str(tmp_path))
    assert [f.state for f in connections.places(Workspace.of(tmp_path))] == [
        f"{tmp_path} is written and read",
        f"s3://{bucket}/runs is written and read",
    ]
    assert storage_at(f"s3://{bucket}/runs").files() == [] and not list(tmp_path.iterdir())


def test_a_bucket_that_is_not_there_can_t_be_used(monkeypatch, tmp_path, bucket):
    monkeypatch.setenv("RESNET_PIPELINE_MIRROR", f"s3://{bucket}-gone/runs")
    (found,) = connections.places(Workspace.of(tmp_path))
    assert not found.ok and f"s3://{bucket}-gone" in found.use


def test_a_database_of_mlflow_that_is_damaged_can_t_be_used(tmp_path):
    workspace = Workspace.of(tmp_path)
    assert connections.mlflow(workspace).ok, "none yet: it is made on first use"
    workspace.mlflow.mkdir(parents=True)
    (workspace.mlflow / "mlflow.db").write_bytes(b"no database" * 100)
    assert not connections.mlflow(workspace).ok


def test_other_versions_on_a_node_are_named():
    here = {"Python": "3.11.2", "torch": "2.14.1"}
    nodes = [
        Node(address="10.0.0.1", cpus=2, gpus=0, versions=here),
        Node(address="10.0.0.2", cpus=2, gpus=0, versions={"Python": "3.11.2", "torch": "none"}),
    ]
    assert differences(here, nodes) == ["10.0.0.2 has torch none, here is 2.14.1"]
    assert differences(here, nodes, ["Python"]) == []


def test_only_nodes_that_compute_must_have_the_versions_here(monkeypatch):
    here = {"Python": "3.11.2", "torch": "2.14.1", "mlflow": "3.17.2"}
    found = [
        Node(address="10.0.0.1", cpus=0, gpus=0, versions={**here, "torch": "none"}),
        Node(address="10.0.0.2", cpus=2, gpus=0, versions={**here, "mlflow": "none"}),
    ]
    monkeypatch.setattr(versions, "nodes_and_versions", lambda: (here, found))
    versions.check_versions()
    found.append(Node(address="10.0.0.3", cpus=2, gpus=0, versions={**here, "torch": "2.13.0"}))
    with pytest.raises(UserError, match=r"other versions .* 10\.0\.0\.3 has torch 2\.13\.0, here is 2\.14\.1; install"):
        versions.check_versions()
