from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest

from resnet_pipeline.adapters.ray import cluster
from resnet_pipeline.adapters.ray.cluster import Resources, check_workers, ray_cluster
from resnet_pipeline.adapters.ray.train import is_lost
from resnet_pipeline.errors import NoClusterError, UserError


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ([(2, 0)], 1, 2),
        ([(2, 0)], 2, 1),
        ([(1, 0), (1, 0)], 1, 1),  # one worker must fit on one of the nodes
        ([(8, 0), (4, 0)], 3, 4),
        ([(16, 8)], 8, 2),
        ([(16, 8), (64, 0)], 8, 2),  # the node without GPUs takes no worker
        ([(0, 0), (48, 4), (48, 4)], 8, 12),
    ],
)
def test_a_worker_gets_as_many_cpus_as_fit_on_the_nodes(nodes, workers, cpus):
    resources = Resources(nodes=tuple(nodes))
    check_workers(workers, resources)
    assert resources.cpus_per_worker(workers) == cpus


@pytest.mark.parametrize(
    ("nodes", "workers", "said"), [([(2, 0)], 3, "2 CPUs on 1 node"), ([(16, 2), (64, 0)], 3, "2 GPUs on 2 node")]
)
def test_more_workers_than_fit_are_refused(nodes, workers, said):
    with pytest.raises(UserError, match=said):
        check_workers(workers, Resources(nodes=tuple(nodes)))


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ([(64, 8)] * 4, 8, 8),  # of one node, and not half of each of the four
        ([(64, 8)] * 4, 32, 8),
        ([(96, 4), (64, 8), (128, 0)], 2, 24),
        ([(4, 0)] * 2, 2, 4),
    ],
)
def test_no_node_is_asked_for_that_is_not_needed(nodes, workers, cpus):
    assert Resources(nodes=tuple(nodes), growing=True).cpus_per_worker(workers) == cpus


def test_who_asks_for_more_than_the_autoscaler_brings_is_told_what_to_set(monkeypatch):
    with pytest.raises(UserError, match="let RESNET_PIPELINE_RAY_NODES name more nodes"):
        check_workers(3, Resources(nodes=((8, 2),), growing=True))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match="say with RESNET_PIPELINE_RAY_NODES which nodes its autoscaler brings"):
        check_workers(1, Resources(nodes=((0, 0),)))


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_deep_for_sockets_is_refused_and_what_to_set(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, str(tmp_path / ("x" * 60)))
    with pytest.raises(UserError, match="set RAY_TMPDIR to a shorter folder"), ray_cluster():
        pass


NONSENSE = ["x", "10.0.0.1", "ray://10.0.0.1", "http://user:pw@10.0.0.1:8265", "::1:6379", "a b:1", ":6379", "h:x", "/"]


@pytest.mark.parametrize("address", NONSENSE)
def test_what_is_no_address_is_one_line(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UserError, match=r"RAY_ADDRESS=.* is no address of a Ray cluster; write HOST:PORT") as error,
        ray_cluster(),
    ):
        pass
    assert "pw" not in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_is_searched_for_too_long_is_not_waited_for(monkeypatch):
    found = threading.Event()

    def search(place: tuple[str, int], timeout: float) -> None:
        found.wait(60)
        raise TimeoutError("found too late")

    monkeypatch.setenv("RAY_ADDRESS", "far:6379")
    monkeypatch.setattr(cluster, "_SECONDS_IN_ALL", 0.05)
    monkeypatch.setattr(socket, "create_connection", search)
    with pytest.raises(NoClusterError, match=r"RAY_ADDRESS=far:6379: timed out"), ray_cluster():
        pass
    found.set()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is not Ray"),
        (b"", "what answers there is not Ray"),
        (None, "timed out"),
    ],
    ids=["a web server", "one that closes", "one that is silent"],
)
def test_another_server_is_not_taken_for_ray(monkeypatch, answer, said):
    monkeypatch.setattr(cluster, "_SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            if answer is None:
                connections.append(connection)
                return
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        connections: list[socket.socket] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(NoClusterError, match=f"no Ray cluster at RAY_ADDRESS=.*: {said}"), ray_cluster():
            pass
        thread.join()
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "ray://user:pw@10.0.0.1:10001"])
def test_a_cluster_that_does_not_answer_is_not_waited_for(monkeypatch, address):
    def nobody(place: tuple[str, int], timeout: float) -> None:
        assert place[0] == "10.0.0.1" and timeout <= 10
        raise TimeoutError("timed out")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(socket, "create_connection", nobody)
    with (
        pytest.raises(NoClusterError, match=r"no Ray cluster at RAY_ADDRESS=.*10\.0\.0\.1:.*: timed out") as error,
        ray_cluster(),
    ):
        pass
    assert "pw" not in str(error.value)


def test_what_starts_as_ray_s_processes_do_is_in_a_session_of_its_own():
    command = [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"]

    def started() -> bytes:
        return subprocess.check_output(command, preexec_fn=lambda: None)

    with cluster._apart():
        assert started() == b"True\n"
    assert started() == b"False\n"


@pytest.mark.parametrize("comes", [False, True])
def test_ray_takes_sigterm_from_nobody(comes):
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        kept = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) if comes else nullcontext(), cluster._handlers_kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # as ray.init does
            if comes:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.sigtimedwait([], 1)
        assert signal.getsignal(signal.SIGTERM) is kept and came == [signal.SIGTERM] * comes
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_lost_cluster_is_told_from_a_training_that_failed():
    from ray.exceptions import ActorDiedError, ActorUnavailableError, RaySystemError
    from ray.train import WorkerGroupError

    assert all(is_lost(one) for one in (ActorDiedError(), ActorUnavailableError("away", None), RaySystemError("gone")))
    assert not any(is_lost(one) for one in (WorkerGroupError("CUDA error", {}), RuntimeError("the workers ended")))


def test_a_cluster_of_another_version_is_named_with_both(monkeypatch):
    import ray
    from ray._private.utils import check_version_info

    def init(**options: object) -> None:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.8.1"}, "10.0.0.7:6379")  # as Ray does there

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="install the same there and here") as error, ray_cluster():
        pass
    text = str(error.value)
    assert "Ray: 2.9.0 Python: 3.8.1" in text and f"Ray: {ray.__version__}" in text and "\n" not in text
    assert not isinstance(error.value, NoClusterError), "trying again would not help"
