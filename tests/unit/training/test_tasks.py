"""A second task, trained by the loop as it is: what classification is, the loop does not know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from resnet_pipeline.config import ConfigError
from resnet_pipeline.data.loaders import train_batches, view_batches
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import NonFiniteError, train
from resnet_pipeline.training.metrics_log import TrainEntry, ValidationEntry
from resnet_pipeline.training.tasks import Figures, build_classifier
from tests.metrics import entries


def test_a_last_gamma_of_zero_makes_each_block_an_identity(digits):
    config = replace(get_recipe("digits/resnet8").model, last_gamma=0.0)
    network = build_classifier(config, digits, seed=0).network
    for stage, identity in ((network.layer1, True), (network.layer2, False)):
        block, x = stage[0], torch.rand(2, 16, 8, 8)
        assert torch.count_nonzero(block.residual(x)) == 0
        assert torch.equal(block(x), x) is identity, "option A's shortcut halves the map of the second stage"
    usual = build_classifier(get_recipe("digits/resnet8").model, digits, seed=0).network
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), usual.parameters(), strict=True) if p.dim() > 1)


def test_a_last_gamma_is_refused_for_a_network_without_shortcuts():
    with pytest.raises(ConfigError, match=r"model.last_gamma is for residual networks"):
        replace(get_recipe("imagenet/plain18").model, last_gamma=0.0)


@dataclass(frozen=True)
class BrightBatch:
    """Images uint8 [N, H, W, 3], their numbers, and each one's bright pixels, of which none has as many as another."""

    images: torch.Tensor
    index: torch.Tensor
    bright: list[torch.Tensor]


class MeanOfBright:
    """Regresses the mean colour of an image's bright pixels; its figures are called otherwise than classification's."""

    counts = ("squares", "pixels", "images")

    def __init__(self, config, dataset, bad: int = -1) -> None:
        self.config, self.dataset, self.bad = config, dataset, bad

    def network(self) -> nn.Module:
        torch.manual_seed(self.config.seed)
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *head)

    @contextmanager
    def batches(self, start_step: int, steps: int) -> Iterator[Iterator[BrightBatch]]:
        c = self.config
        options = {"augment": c.augment, "seed": c.seed, "batch": c.batch, "micro_batch": c.micro_batch}
        with train_batches(self.dataset, **options, start_step=start_step, steps=steps) as batches:
            yield (BrightBatch(b.images, b.index, bright_of(b.images)) for b in batches)

    def forward(self, model: nn.Module, batch: BrightBatch) -> torch.Tensor:
        return model(batch.images.permute(0, 3, 1, 2) / 255)

    def loss(self, outputs: torch.Tensor, batch: BrightBatch) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = torch.stack([pixels.float().mean(0) / 255 for pixels in batch.bright])
        wanted[batch.index == self.bad] = math.nan
        loss = nn.functional.mse_loss(outputs.float(), wanted)
        pixels, images = sum(map(len, batch.bright)), len(batch.bright)
        return loss, torch.tensor([loss.item() * images, pixels, images], dtype=torch.float64)

    def training_figures(self, sums) -> Figures:
        return Figures({"rms": math.sqrt(sums["squares"] / sums["images"]), "pixels": sums["pixels"]}, error="rms")

    def validate(self, model: nn.Module, alive) -> Figures:
        squares = []
        model.eval()
        options = {"split": "val", "views": "center", "resize": 16, "crop": 16, "batch_size": 64}
        with torch.inference_mode(), view_batches(self.dataset, **options) as batches:
            for b in batches:
                batch = BrightBatch(b.images[:, 0], b.index, bright_of(b.images[:, 0]))
                squares.append(self.loss(self.forward(model, batch), batch)[1])
        model.train()
        total, _, images = torch.stack(squares).sum(0).tolist()
        return Figures({"rms_of_test": math.sqrt(total / images), "images": images}, error="rms_of_test")


def bright_of(images: torch.Tensor) -> list[torch.Tensor]:
    return [image[image.sum(2) >= image.sum(2).float().mean()] for image in images]


@pytest.mark.slow
def test_a_second_task_is_trained_by_the_same_loop(make_run, digits):
    run = make_run("steps=24", "eval_every=8", "optim.weight_decay=0")
    assert train(run, digits, LocalContext(), task=MeanOfBright(run.config(), digits))
    rms = [entry.figures["rms"] for _, entry in entries(run, TrainEntry)]
    assert rms[-1] < 0.6 * rms[0]
    assert {name for _, entry in entries(run, TrainEntry) for name in entry.figures} == {"rms", "pixels"}
    tests = {step: entry.figures["rms_of_test"] for step, entry in entries(run, ValidationEntry)}
    result = run.result()
    assert result.validation == {"rms_of_test": tests[24], "images": len(digits.splits["val"])}
    assert result.best == {"step": min(tests, key=tests.get), "rms_of_test": min(tests.values())}
    assert (result.train_loss, result.train_error) == (None, None)


@pytest.mark.slow
def test_a_second_task_stopped_between_log_points_ends_bit_identical(make_run, digits):
    whole, run = make_run(folder="whole"), make_run(folder="stopped")
    task = MeanOfBright(run.config(), digits)
    train(whole, digits, LocalContext(), task=task)
    steps = iter(range(4))
    assert not train(run, digits, LocalContext(stop=lambda: next(steps, None) is None), task=task)
    assert train(run, digits, LocalContext(), task=task)
    assert run.result().weights_sha256 == whole.result().weights_sha256
    figures = [[(step, entry.figures) for step, entry in entries(r, TrainEntry)] for r in (whole, run)]
    assert figures[0] == figures[1] and len(figures[0]) == 6


def test_a_second_task_s_bad_sample_is_named(make_run, digits):
    run = make_run()
    with MeanOfBright(run.config(), digits).batches(3, 1) as batches:
        bad = int(next(batches).index[0])
    with pytest.raises(NonFiniteError, match=f"{digits.splits['train'].keys[bad]}"):
        train(run, digits, LocalContext(), task=MeanOfBright(run.config(), digits, bad))
