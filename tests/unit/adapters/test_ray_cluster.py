from __future__ import annotations

import socket

import pytest

from resnet_pipeline.adapters.ray.cluster import Resources, check_workers, ray_cluster
from resnet_pipeline.errors import UserError


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


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_deep_for_sockets_is_refused_and_what_to_set(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, str(tmp_path / ("x" * 60)))
    with pytest.raises(UserError, match="set RAY_TMPDIR to a shorter folder"), ray_cluster():
        pass


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "ray://user:pw@10.0.0.1:10001"])
def test_a_cluster_that_does_not_answer_is_not_waited_for(monkeypatch, address):
    def nobody(place: tuple[str, int], timeout: float) -> None:
        assert place[0] == "10.0.0.1" and timeout <= 10
        raise TimeoutError("timed out")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(socket, "create_connection", nobody)
    with (
        pytest.raises(UserError, match=r"no Ray cluster at RAY_ADDRESS=.*10\.0\.0\.1:.*: timed out") as error,
        ray_cluster(),
    ):
        pass
    assert "pw" not in str(error.value)
