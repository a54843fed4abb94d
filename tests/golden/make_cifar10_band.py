"""The band in which the first 300 steps of ResNet-20 on CIFAR-10 end, learnt from five seeds.

    RESNET_PIPELINE_CIFAR10=ARCHIVE python -m tests.golden.make_cifar10_band --reason "why the numbers change"

trains each seed of SEEDS (three minutes of a core each) and writes ``cifar10_band.json``. A change of the arithmetic
that leaves training as good as it was stays in the band. How coarse it is: a tenth of the learning rate leaves it by
two points of the training error. The test (tests/unit/training/test_cifar10_learning.py) has another seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.golden.make_traces import reason_of, this_machine

FILE = Path(__file__).with_name("cifar10_band.json")
ARCHIVE = "RESNET_PIPELINE_CIFAR10"
COMMAND = f'{ARCHIVE}=ARCHIVE python -m tests.golden.make_cifar10_band --reason "..."'
RECIPE = "cifar10/resnet20"
CHANGES = {"steps": 300, "log_every": 100, "eval_every": 1000, "bn_images": 2560, "checkpoint_every": 1000}
SEEDS = (1, 2, 3, 4, 5)
COVERAGE = 0.99
"""How often a figure of another seed lies in the band."""


def figures(dataset: Any, folder: Path, seed: int) -> dict[str, float]:
    """Train a seed on the staged dataset; return loss and error in % of steps 201 to 300, and the test error in %."""
    from resnet_pipeline.config_io import with_overrides
    from resnet_pipeline.recipes import get_recipe
    from resnet_pipeline.training.context import LocalContext
    from resnet_pipeline.training.loop import train
    from resnet_pipeline.training.metrics_log import TrainEntry, entries_of, read_metrics
    from resnet_pipeline.training.run_directory import RunDirectory

    config = with_overrides(get_recipe(RECIPE), {**CHANGES, "seed": seed})
    run = RunDirectory.create(folder, config, dataset.facts)
    train(run, dataset, LocalContext())
    *_, (step, last) = entries_of(read_metrics(run.metrics_file), TrainEntry)
    result = run.result()
    assert step == config.steps and result is not None and result.validation["images"] == 10_000
    return {
        "loss": last.figures["loss"],
        "error": last.figures["error"],
        "test_error": float(result.validation["top1"]),
    }


def band(values: Sequence[float], coverage: float = COVERAGE) -> tuple[float, float]:
    """Return where one more value of the same normal distribution lies so often: Student's prediction interval.

    >>> low, high = band([1.0, 2.0, 3.0])
    >>> round((low + high) / 2, 6)
    2.0
    """
    from scipy.stats import t

    count = len(values)
    reach = t.ppf((1 + coverage) / 2, count - 1) * statistics.stdev(values) * (1 + 1 / count) ** 0.5
    return statistics.mean(values) - reach, statistics.mean(values) + reach


def main() -> None:
    """Train the seeds and write the file in place of the one that was there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reason = reason_of(parser)
    if not os.environ.get(ARCHIVE):
        parser.error(f"{ARCHIVE} must name the archive of images")
    from resnet_pipeline.staging.stage import stage

    with tempfile.TemporaryDirectory() as name:
        dataset = stage(Path(os.environ[ARCHIVE]), Path(name) / "cifar10", name="cifar10", workers=1)
        found = {}
        for seed in SEEDS:
            found[str(seed)] = figures(dataset, Path(name) / "runs", seed)
            print(f"seed {seed}: {found[str(seed)]}", flush=True)
        content = {
            "command": COMMAND,
            "reason": reason,
            "recipe": RECIPE,
            "changes": CHANGES,
            "dataset": dataset.fingerprint,
            **this_machine(),
            "seeds": found,
        }
    FILE.write_text(json.dumps(content, indent=1) + "\n")
    print(FILE)


if __name__ == "__main__":
    main()
