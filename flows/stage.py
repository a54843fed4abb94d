"""stage-dataset: images from a folder or archive to shards and a manifest."""

from __future__ import annotations

import logging

from prefect import flow

from flows.artifacts import key_of, table
from flows.parameters import (
    CheckMd5,
    Holdout,
    MaxRefused,
    MaxShorterSide,
    MaxValue,
    NewName,
    Replace,
    Source,
    StagingWorkers,
)
from flows.shell import form, logged, outcome, phase
from resnet_pipeline.jobs.stage import StagedDataset, describe, summary
from resnet_pipeline.jobs.stage import stage_dataset as stage_job
from resnet_pipeline.records import JsonObject, plain_record
from resnet_pipeline.staging.stage import Options
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


@phase("stage", "stage · {name}")
def stage(
    source: str, name: str, options: Options, workers: int | None, *, max_refused: float, replace: bool
) -> StagedDataset:
    """Stage a dataset, from where an earlier start stopped."""
    return stage_job(
        Workspace.of(), source, name, options=options, workers=workers, max_refused=max_refused, replace=replace
    )


@flow(name="stage-dataset", flow_run_name="{name}")
@logged
@form
def stage_dataset(
    source: Source,
    name: NewName,
    workers: StagingWorkers = None,
    max_refused: MaxRefused = 0.01,
    holdout: Holdout = 0,
    max_shorter_side: MaxShorterSide = None,
    max_value: MaxValue = None,
    check_md5: CheckMd5 = True,
    replace: Replace = False,
) -> JsonObject:
    """Audit every image, pack the good ones into shards, list what was converted or refused."""
    options = Options(holdout=holdout, max_shorter_side=max_shorter_side, max_value=max_value, check_md5=check_md5)
    staged = outcome(stage(source, name, options, workers, max_refused=max_refused, replace=replace))
    _log.info("%s", describe(staged))
    result = summary(staged)
    table(
        key_of("dataset", name),
        [{"split": split, "images": count} for split, count in result.samples.items()],
        f"Dataset {name}, fingerprint {result.fingerprint[:12]}, {len(result.refused)} refused",
    )
    return plain_record(result)
