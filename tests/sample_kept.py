"""Kept runs as a study makes them, without training: for the tests of the page."""

from __future__ import annotations

import math

import numpy as np

from resnet_pipeline.report.kept import Kept, KeptDataset, KeptEnsemble, KeptResult, KeptRun, KeptTest, thinned

CIFAR10 = KeptDataset(
    name="cifar10", fingerprint="ab12" * 16, layout="CIFAR-10", classes=10, samples={"train": 50_000, "test": 10_000}
)
JPEGS = KeptDataset(
    name="cifar10", fingerprint="cd34" * 16, layout="image folder", classes=10, samples={"train": 50_000, "val": 10_000}
)


def sample_test(
    error: float, *, images: int = 10_000, split: str = "test", protocol: str = "center", seed: int = 0
) -> KeptTest:
    """Return a test with this top-1 error in percent; images are hard or easy, the same for all networks."""
    hardness = np.random.default_rng(0).random(images) + 0.2 * np.random.default_rng(seed + 1).random(images)
    wrong = np.zeros(images, np.int64)
    wrong[np.argsort(hardness)[::-1][: round(error / 100 * images)]] = 1
    wrong[np.flatnonzero(wrong)[::9]] = 7
    return KeptTest.of(protocol, split, wrong)


def sample_run(
    recipe: str,
    error: float,
    *,
    trained: float = 1.0,
    seed: int = 0,
    steps: int = 16_000,
    step: int | None = None,
    dataset: KeptDataset = JPEGS,
    changes: tuple[str, ...] = (),
    response: float = 0.8,
    protocols: tuple[str, ...] = ("center",),
) -> KeptRun:
    """Return a run that ended with these errors in percent, or with ``step`` one that was interrupted there."""
    reached = steps if step is None else step
    points = range(50, reached + 1, 50)
    falling = [trained + (90 - trained) * math.exp(-point / (steps / 6)) for point in points]
    tested = [error + (85 - error) * math.exp(-point / (steps / 6)) for point in points]
    split = "test" if "test" in dataset.samples else "val"
    network = recipe.partition("/")[2]
    layers = int(network.lstrip("abcdefghijklmnopqrstuvwxyz").partition("-")[0]) - 1
    paper = 64_000 if recipe.startswith("cifar10") else 600_000
    tests = tuple(
        sample_test(error, images=dataset.samples[split], split=split, protocol=protocol, seed=seed)
        for protocol in protocols
    )
    return KeptRun(
        run=f"{recipe.replace('/', '-')}-{dataset.fingerprint[:8]}-s{seed}-{steps:08d}",
        recipe=recipe,
        seed=seed,
        steps=steps,
        paper_steps=paper,
        changes=changes,
        state="finished" if step is None else "interrupted",
        step=reached,
        dataset=dataset,
        command=f"resnet-pipeline train {recipe} --dataset {dataset.name} --steps {steps} --seed {seed}",
        commit="3806bfea17835e58582bd7539449cb286980827a",
        mlflow_run="48d893931785457797f7c37fa23a6c93",
        environment={"resnet_pipeline": "0.1.0", "torch": "2.14.1", "hardware": "x86_64, 2 CPU cores"},
        train=thinned(points, falling),
        validation=thinned(points[19::20], tested[19::20]),
        trained_images=49_920,
        trained_wrong=round(49_920 * trained / 100),
        tests=tests if step is None else (),
        result=KeptResult(
            seconds=7_200.0, images_per_second=512.0, workers=2, device="cpu", precision="float32",
            weights_sha256="0" * 64,
        ) if step is None else None,
        responses=tuple(round(response * (1 + 0.3 * math.sin(layer)), 5) for layer in range(layers))
        if step is None else None,
    )  # fmt: skip


def sample_kept() -> Kept:
    """Return the study of figure 6 at the small scale, with two seeds of 20 layers, and the mean of two networks."""
    runs = [
        sample_run("cifar10/plain20", 10.9, trained=4.0),
        sample_run("cifar10/plain20", 11.3, trained=4.1, seed=1),
        sample_run("cifar10/plain56", 14.6, trained=8.5),
        sample_run("cifar10/resnet20", 9.7, trained=3.1, response=0.6),
        sample_run("cifar10/resnet20", 9.9, trained=3.2, seed=1, response=0.6),
        sample_run("cifar10/resnet56", 8.2, trained=0.9, response=0.3),
        sample_run("cifar10/resnet110", 8.0, step=9_000),
    ]
    mean = KeptEnsemble(
        name="table6-0123abcd",
        runs=(runs[3].run, runs[5].run),
        command="resnet-pipeline ensemble A B --dataset cifar10 --protocol center",
        tests=(sample_test(7.5, split="val"),),
    )
    return Kept(runs=tuple(runs), ensembles=(mean,))
