"""Whole runs with what the recipes of today add: averaged weights, bf16, growing crops, label smoothing."""

from __future__ import annotations

import pytest
import torch

from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.models.weights import load_weights
from resnet_pipeline.training.batch_norm import recompute_statistics
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import Trainer, train
from resnet_pipeline.training.metrics_log import NoteEntry
from resnet_pipeline.training.tasks import build_classifier
from tests.metrics import entries, losses

TODAY = [
    "precision=bf16",
    "compile=true",
    "optim.ema=0.9",
    "optim.label_smoothing=0.1",
    "optim.decay_norm=false",
    "growth.first=8",
    "growth.phases=3",
    "growth.multiple=4",
]


@pytest.mark.slow
def test_a_stopped_fast_run_ends_bit_identical(make_run, digits):
    whole, run = make_run(*TODAY, folder="whole"), make_run(*TODAY, folder="stopped")
    train(whole, digits, LocalContext())
    for polls in (2, 1):  # stopped twice: within the second size of crop and the third
        steps = iter(range(polls))
        assert not train(run, digits, LocalContext(stop=lambda steps=steps: next(steps, None) is None))
    assert train(run, digits, LocalContext())
    assert run.result().weights_sha256 == whole.result().weights_sha256
    starts = [line for line in run.metrics_file.read_text().splitlines() if '"resume"' in line]
    assert len(starts) == 3
    assert losses(run) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("has", [True, False])
def test_an_explicit_bf16_that_is_emulated_says_what_it_costs(make_run, digits, monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has})
    run = make_run("precision=bf16", "steps=1")
    assert train(run, digits, LocalContext(stop=lambda: True))
    notes = [note.text for _, note in entries(run, NoteEntry)]
    assert ["11 to 41 times" in note and "precision=auto" in note for note in notes] == ([] if has else [True])


@pytest.mark.slow
def test_the_finished_network_has_the_averages_and_their_statistics(make_run, digits):
    run = make_run(*TODAY)
    config = run.config()
    trainer = Trainer(run, digits, LocalContext())
    trainer.run_to_end()
    trainer.close()
    finished = build_classifier(config.model, digits, seed=1)
    load_weights(finished, run.weights_file)
    expected = build_classifier(config.model, digits, seed=2)
    expected.load_state_dict(trainer.state.average.weights, strict=False)
    with train_batches(
        digits, augment=config.augment, seed=0, batch=64, micro_batch=32, start_step=12, steps=2
    ) as batches:
        recompute_statistics(expected, batches, trainer.task.forward, torch.device("cpu"))
    for name, value in expected.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(finished.state_dict()[name], value, msg=name)
