from __future__ import annotations

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.stage import stage_dataset
from resnet_pipeline.workspace import Workspace
from tests.s3_server import settings


def test_datasets_and_cache_lie_under_the_root_or_where_settings_say(tmp_path):
    workspace = Workspace.of(tmp_path)
    assert workspace.dataset("x") == str(tmp_path / "datasets" / "x")
    assert workspace.cache == tmp_path / "cache" and workspace.cache_limit is None
    moved = {"RESNET_PIPELINE_DATA": "s3://bucket/prefix/", "RESNET_PIPELINE_CACHE": str(tmp_path / "node")}
    with settings(**moved, RESNET_PIPELINE_CACHE_GB="1.5"):
        assert workspace.dataset("x") == "s3://bucket/prefix/x"
        assert workspace.cache == tmp_path / "node" and workspace.cache_limit == 1_500_000_000


@pytest.mark.parametrize("limit", ["0", "-1", "ten", "inf", "nan"])
def test_a_limit_that_is_no_number_of_gigabytes(tmp_path, limit):
    with settings(RESNET_PIPELINE_CACHE_GB=limit), pytest.raises(UserError, match=f"_GB={limit} must be a positive"):
        _ = Workspace.of(tmp_path).cache_limit


def test_a_root_that_is_a_link_to_itself_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"loop/sources/\.digits\.lock can.t be written: Too many levels"):
        stage_dataset(Workspace.of(tmp_path / "loop"), "builtin:digits", "x")


@pytest.mark.parametrize("name", ["a?b", "50%"])
def test_a_root_whose_databases_would_lie_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="name another with --root"):
        Workspace.of(tmp_path / name)
