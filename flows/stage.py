"""stage-dataset: images from a folder or archive to shards and a manifest."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.parameters import documented
from flows.shell import logged, say, table
from resnet_pipeline.jobs.stage import stage_dataset as stage_job
from resnet_pipeline.jobs.stage import summary
from resnet_pipeline.staging.stage import Options
from resnet_pipeline.workspace import Workspace


@flow(name="stage-dataset")
@logged
@documented
def stage_dataset(
    source: Annotated[
        str,
        Field(
            description="A folder of the ILSVRC-2012 archives, Kaggle's ILSVRC folder or archive, CIFAR-10's archive, "
            "a folder or archive of train/<class>/* and val/<class>/*, or builtin:digits."
        ),
    ],
    name: Annotated[str, Field(description="The name under which training and evaluation find the dataset.")],
    workers: Annotated[int | None, Field(ge=1, description="Processes; empty for one per CPU core.")] = None,
    max_refused: Annotated[
        float, Field(ge=0, le=1, description="Stop when more than this share of the images is broken.")
    ] = 0.01,
    holdout: Annotated[
        int, Field(ge=0, description="Make this many training images the split val (the paper's CIFAR-10 study: 5000).")
    ] = 0,
    max_shorter_side: Annotated[
        int | None, Field(ge=1, description="Make images smaller whose shorter side is larger; empty to keep all.")
    ] = None,
    max_value: Annotated[
        int | None, Field(ge=1, description="White in grey images of more than 8 bits; empty: 65535 of 16 bits.")
    ] = None,
    check_md5: Annotated[
        bool, Field(description="Compare ILSVRC's and CIFAR-10's archives with their published MD5s.")
    ] = True,
    replace: Annotated[
        bool, Field(description="Replace a dataset of this name that has other files or options.")
    ] = False,
) -> dict[str, Any]:
    """Audit every image, pack the good ones into shards, list what was converted or refused."""
    staged = stage_job(
        Workspace.of(),
        source,
        name,
        options=Options(holdout=holdout, max_shorter_side=max_shorter_side, max_value=max_value, check_md5=check_md5),
        workers=workers,
        max_refused=max_refused,
        replace=replace,
        say=say(),
    )
    result = summary(staged)
    table(
        f"dataset-{name}",
        [{"split": split, "images": count} for split, count in result["samples"].items()],
        f"Dataset {name}, fingerprint {result['fingerprint'][:12]}, {len(result['refused'])} refused",
    )
    return result
