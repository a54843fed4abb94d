"""A Ray cluster that begins without a node that computes: its autoscaler brings them when a training asks."""

from __future__ import annotations

import json
import logging

import pytest

from resnet_pipeline.config_io import parse_assignments, with_overrides
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.train import train_run
from resnet_pipeline.recipes import get_recipe
from tests.integration.nodes import SETTINGS, Nodes

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.filterwarnings("ignore")]

HEAD = "f" * 51 + "00000"  # the id by which Ray's provider of raylets knows the head
STEPS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
NOTHING_TO_INSTALL: dict[str, object] = {"auth": {}, "file_mounts": {}, "cluster_synced_files": []}
NOTHING_TO_INSTALL |= {f"{step}_commands": [] for step in STEPS}


def test_a_training_on_a_cluster_without_nodes_gets_them(workspace, tmp_path, monkeypatch, caplog):
    """Ray's own autoscaler, with its provider that starts raylets on this machine instead of pods or machines."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    of_the_head = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }
    cluster = Nodes(tmp_path, hosts={})
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    config = {
        "cluster_name": "grows",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "provider": {"type": "external", "module": provider, "head_node_id": HEAD, "gcs_address": cluster.address},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 100_000_000},
                "node_config": {},
                "max_workers": 2,
            },
        },
        **NOTHING_TO_INSTALL,
    }
    (tmp_path / "autoscaler.json").write_text(json.dumps(config))
    small = parse_assignments(["steps=4", "eval_every=4", "checkpoint_every=4", "log_every=2", "bn_images=128"])
    recipe = with_overrides(get_recipe("digits/resnet8"), small)
    try:
        with monkeypatch.context() as head:
            for name, value in of_the_head.items():
                head.setenv(name, value)
            cluster.start(f"--autoscaling-config={tmp_path / 'autoscaler.json'}")
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with pytest.raises(UserError, match="say with RESNET_PIPELINE_RAY_NODES which nodes its autoscaler brings"):
            train_run(workspace, recipe, "digits", Launch(workers=2))
        monkeypatch.setenv("RESNET_PIPELINE_RAY_NODES", "2x1x0")
        # so that its driver is on the cluster too, on a node that comes for it and knows of no setting
        monkeypatch.setenv("RESNET_PIPELINE_RUNS", str(tmp_path / "home"))
        with caplog.at_level(logging.INFO):
            trained = train_run(workspace, recipe, "digits", Launch(workers=2))
        assert "has room for 0 workers now, and by its autoscaler for 2" in caplog.text
        assert trained.result.steps == 4
    finally:
        cluster.close()
