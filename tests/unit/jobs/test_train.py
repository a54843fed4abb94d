from __future__ import annotations

import pytest

from resnet_pipeline.adapters.ray.train import WorkerGroup
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.train import _wait_for, run_config
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.report.progress import TrainingProgress
from resnet_pipeline.training.run_directory import RunDirectory


class Ended(WorkerGroup):
    """Workers that have ended already, as they do without retries."""

    def __init__(self) -> None:
        pass

    def finished(self) -> bool:
        raise RuntimeError("Ray's words")


@pytest.mark.parametrize("said", [True, False])
def test_a_worker_s_own_message_comes_before_the_end_of_the_workers(digits, tmp_path, said):
    config = with_overrides(get_recipe("digits/resnet8"), {"steps": 2})
    run = RunDirectory.create(tmp_path, config, digits.about)
    if said:
        run.error_file.write_text("shard x is damaged")
    progress = TrainingProgress(run, config, quiet=True, say=print)
    with pytest.raises(UserError, match="shard x is damaged" if said else "training failed: Ray's words"):
        _wait_for(Ended(), run, progress)


def test_steps_and_seed_are_short_for_the_fields_and_not_said_twice():
    config = run_config("digits/resnet8", {"batch": 64}, steps=5, seed=3)
    assert (config.batch, config.steps, config.seed) == (64, 5, 3)
    assert run_config("digits/resnet8", {"seed": 3}).seed == 3, "no default of --seed goes before it"
    assert run_config("digits/resnet8") == get_recipe("digits/resnet8")
    with pytest.raises(UserError, match="seed is given twice"):
        run_config("digits/resnet8", {"seed": 3}, seed=4)
