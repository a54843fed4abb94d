"""Staging by the tasks of a Ray cluster of two nodes; what `doctor` says of it."""

from __future__ import annotations

import numpy as np
import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.stage import stage_dataset
from resnet_pipeline.services import connections
from resnet_pipeline.staging.stage import Options
from resnet_pipeline.workspace import Workspace
from tests.images import jpeg

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200), pytest.mark.filterwarnings("ignore")]


def test_doctor_joins_the_cluster_and_compares_versions(cluster, tmp_path):
    found = connections.ray(Workspace(tmp_path))
    assert found.ok and "answers: 2 node(s), 2 CPUs, 0 GPUs" in found.state, found


def test_a_node_that_does_not_mount_the_source_is_named(tmp_path, cluster):
    if not cluster.namespaces:
        pytest.skip("nodes with mounts of their own need the right to make namespaces")
    source = tmp_path / "photos"
    for split in ("train", "val"):
        for i in range(12):
            path = source / split / "cat" / f"{i:02d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(200, 300, seed=i))
    (node,) = cluster.names()
    workspace = Workspace(tmp_path / "work")
    with (
        cluster.without(node, source),
        pytest.raises(UserError, match=rf"Ray's node \S+ does not see {source}; mount it there"),
    ):
        stage_dataset(workspace, str(source), "x", options=Options(shard_bytes=60_000))
    staged = stage_dataset(workspace, str(source), "x", options=Options(shard_bytes=60_000))
    assert staged.manifest.account()["packed"] == 24


def test_a_cluster_makes_the_same_dataset_and_says_what_is_wrong(tmp_path, cluster, monkeypatch):
    rng = np.random.default_rng(3)
    source = tmp_path / "photos"
    for split, count in (("train", 12), ("val", 4)):
        for label in ("cat", "dog"):
            for i in range(count):
                height, width = rng.integers(200, 400, 2)
                path = source / split / label / f"{i:02d}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(int(height), int(width), seed=i))
    options = Options(shard_bytes=60_000)
    on_ray = stage_dataset(Workspace(tmp_path / "ray"), str(source), "x", options=options)
    (source / "train/cat/broken.JPEG").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"1 of 33 files of .*broken.JPEG: no image format") as error:
        stage_dataset(Workspace(tmp_path / "ray"), str(source), "y", options=options)
    assert "\n" not in str(error.value)
    assert [p.name for p in (tmp_path / "ray/datasets").iterdir()] == ["x"]
    (source / "train/cat/broken.JPEG").unlink()
    monkeypatch.delenv("RAY_ADDRESS")
    here = stage_dataset(Workspace(tmp_path / "here"), str(source), "x", options=options)
    assert on_ray.manifest == here.manifest
