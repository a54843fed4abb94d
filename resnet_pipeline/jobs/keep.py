"""What is kept of a run for good: its directory, scores and MLflow's tags as one small record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from resnet_pipeline.adapters.mlflow.client import guarded
from resnet_pipeline.adapters.mlflow.runs import Delivery, Tracking
from resnet_pipeline.config_io import assignment
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.confusion import label_places
from resnet_pipeline.evaluation.scores import Scores
from resnet_pipeline.jobs.evaluate import Evaluation
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.repeat import training
from resnet_pipeline.recipes import changes_of, get_recipe
from resnet_pipeline.report.kept import KeptDataset, KeptResult, KeptRun, KeptTest, thinned
from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.metrics_log import Line, TrainEntry, ValidationEntry, entries_of, read_metrics
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_ENVIRONMENT = ("resnet_pipeline", "python", "torch", "hardware")
"""The tags of MLflow's run that are kept, beside the commit."""


def keepable(
    workspace: Workspace,
    run: RunDirectory,
    dataset: Dataset,
    tests: Mapping[str, Evaluation] = MappingProxyType({}),
    responses: Sequence[float] | None = None,
    begun_with: str | None = None,
) -> KeptRun:
    """Return what is to be kept of a run, finished or not, with its tests by protocol and its layer responses.

    ``begun_with`` is the network of the study whose weights, deepened, it begins with.

    Raises UserError for a run whose recipe this version does not have.

    Example: ``keep(folder, keepable(workspace, run, dataset))``
    """
    config, result, history = run.config(), run.result(), read_metrics(run.metrics_file)
    state, _ = run.state()
    tags, mlflow_run = _tags(workspace, run), Delivery.of(run).run_id
    train = _errors(history, TrainEntry, "error")
    validation = _errors(history, ValidationEntry, "top1")
    images, wrong = _last_epoch(train, config.batch, len(dataset.trained_on(config.train_share).splits["train"]))
    changes = {key: value for key, value in changes_of(config).items() if key not in ("steps", "seed")}
    if begun_with is not None:
        changes = {key: value for key, value in changes.items() if not key.startswith("model.initial_")}
    return KeptRun(
        run=run.name,
        recipe=config.recipe,
        seed=config.seed,
        steps=config.steps,
        paper_steps=get_recipe(config.recipe).steps,
        changes=tuple(assignment(*change) for change in changes.items()),
        state="finished" if result else "failed" if state == "failed" else "interrupted",
        step=config.steps if result else max(checkpoint_steps(run.checkpoints), default=0),
        dataset=KeptDataset(
            name=dataset.name,
            fingerprint=dataset.fingerprint,
            layout=dataset.manifest.layout,
            classes=len(dataset.classes),
            samples={name: len(split) for name, split in dataset.splits.items()},
            seen=_seen(dataset) or None,
        ),
        command=training(config, dataset.name, initial=InitialWeights.read(run)),
        commit=tags.get("git_commit", "unknown"),
        mlflow_run=mlflow_run,
        environment={name: tags[name] for name in _ENVIRONMENT if name in tags},
        train=thinned(*train),
        validation=thinned(*validation),
        trained_images=images,
        trained_wrong=wrong,
        tests=tuple(kept_test(protocol, evaluation.scores) for protocol, evaluation in tests.items()),
        result=KeptResult(
            seconds=round(result.seconds, 1),
            images_per_second=round(result.images_per_second, 1),
            workers=result.workers,
            device=result.device,
            precision=result.precision or "unknown",
            weights_sha256=result.weights_sha256,
        )
        if result
        else None,
        responses=None if responses is None else tuple(round(float(value), 5) for value in responses),
        begun_with=begun_with,
    )


def _seen(dataset: Dataset) -> int:
    """Return how many images of the other splits are training images too, by their checksums."""
    checksums = {name: split.checksums for name, split in dataset.splits.items() if split.checksums is not None}
    train = checksums.pop("train", None)
    return 0 if train is None else sum(int(np.isin(other, train).sum()) for other in checksums.values())


def kept_test(protocol: str, scores: Scores) -> KeptTest:
    """Return the counts of scores; UserError if a label is not known."""
    return KeptTest.of(protocol, scores.split, label_places(scores.probabilities, scores.labels))


def again(kept: KeptRun, other: KeptRun | None) -> KeptRun:
    """Return a kept run with what an earlier file has more of the same weights: tests, responses, where it was trained.

    The machine that trained a run knows its commit and MLflow run; one that only resumed from its files does not.
    """
    if other is None or other.run != kept.run:
        return kept
    if not (kept.result and other.result and kept.result.weights_sha256 == other.result.weights_sha256):
        return kept
    there = {test.protocol for test in kept.tests}
    return dataclasses.replace(
        kept,
        tests=(*kept.tests, *(test for test in other.tests if test.protocol not in there)),
        responses=kept.responses if kept.responses is not None else other.responses,
        commit=other.commit,
        mlflow_run=other.mlflow_run,
        environment=other.environment,
        result=other.result,
    )


def _errors(
    history: Sequence[Line], kind: type[TrainEntry | ValidationEntry], figure: str
) -> tuple[list[int], list[float]]:
    # the finished network is tested at the last iteration once more, with other statistics of batch norm: it counts
    found = {step: entry.figures[figure] for step, entry in entries_of(history, kind) if figure in entry.figures}
    return list(found), list(found.values())


def _last_epoch(train: tuple[list[int], list[float]], batch: int, epoch: int) -> tuple[int, int]:
    """Return how many augmented images the log points of about the last epoch saw, and how many of them were wrong."""
    images = wrong = 0.0
    steps, errors = train
    for before, step, error in zip([0, *steps][-2::-1], steps[::-1], errors[::-1], strict=False):
        if images >= epoch:
            break
        seen = (step - before) * batch
        images, wrong = images + seen, wrong + error / 100 * seen
    return int(images), round(wrong)


def _tags(workspace: Workspace, run: RunDirectory) -> dict[str, str]:
    """Return the tags of the run's MLflow run: the commit that trained it, and where; none if MLflow has none."""
    known = Delivery.of(run).run_id
    if not known:
        return {}
    try:
        found = guarded(lambda: Tracking(workspace).client.get_run(known))
    except UserError:
        return {}
    return dict(found.data.tags)
