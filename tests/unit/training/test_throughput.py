"""What the loop says of its speed, by a clock that the test holds."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import Trainer
from resnet_pipeline.training.metrics_log import TrainEntry
from resnet_pipeline.training.tasks import ClassificationTask
from tests.metrics import entries, steps_of


@pytest.mark.slow
def test_a_run_s_speed_counts_its_steps_and_no_validation(make_run, digits):
    """A micro-batch comes after 3 s, a validation takes 1000 s, all else no time; stopped between two log points."""
    now = 0.0

    class Slow(ClassificationTask):
        def validate(self, model, alive):
            nonlocal now
            now += 1000
            return super().validate(model, alive)

        @contextmanager
        def batches(self, start_step, steps):
            def late():
                nonlocal now
                for batch in loader:
                    now += 3
                    yield batch

            with super().batches(start_step, steps) as loader:
                yield late()

    class Watched(LocalContext):
        def show(self, step, pace):
            shown.append((step, pace))

    shown = []
    run = make_run("bn_images=0", "batch=64", "micro_batch=32")
    for stop_after in (7, 2, None):
        polls = iter(range(stop_after - 1)) if stop_after else iter(range(99))
        context = Watched(stop=lambda polls=polls: next(polls, None) is None)
        trainer = Trainer(run, digits, context, task=Slow(run.config(), digits, context), clock=lambda: now)
        assert trainer.run_to_end() == (stop_after is None)
        trainer.close()
    assert steps_of(run, TrainEntry) == [2, 4, 6, 8, 10, 12]
    assert [(step, entry.pace) for step, entry in entries(run, TrainEntry)] == shown[-6:], "who watches sees the same"
    for _, entry in entries(run, TrainEntry):
        assert entry.pace.images_per_second == pytest.approx(64 / 6, abs=0.01)
        assert (entry.pace.data_wait, entry.pace.step_p50, entry.pace.step_max) == (1, 6, 6)
    result = run.result()
    assert (result.seconds, result.images_per_second) == (72, round(12 * 64 / 72, 2))
