"""The boxes of a localiser that its R-CNN is trained and tested on: found once, kept in the localiser's run directory.

A run that is trained on them has links to the files (copies on another disk), and sends them to its home, from where
workers on other machines take them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection.box_files import (
    boxes_file,
    facts_file,
    read_boxes,
)
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.jobs.references import parse_run
from resnet_pipeline.training.mirror import bring, keep
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proposals:
    """The boxes that an R-CNN is trained on: who found them, and their file for each split."""

    reference: str
    files: Mapping[str, Path]

    def keep(self, run: RunDirectory) -> None:
        """Let the run's directory, and its home, have the files."""
        for split, source in self.files.items():
            target = boxes_file(run.path, split)
            for one, other in ((source, target), (facts_file(source), facts_file(target))):
                _link(one, other)
                there = run.home.stat(other.relative_to(run.path).as_posix()) if run.home else None
                if there is None or there.size != other.stat().st_size:
                    keep(run, other)


def proposed(
    workspace: Workspace, config: RunConfig, dataset_name: str, reference: str | None
) -> tuple[RunConfig, Proposals | None]:
    """Return the config with the SHA-256 of the localiser's weights, and the boxes that it is trained on.

    They are those of the true classes in the training images and in the evaluation split. Without a ``reference`` the
    config is returned as it is. Raises UserError if the reference is no localiser, or the config no R-CNN's.

    Example: ``proposed(Workspace.of(), run_config("ilsvrc-loc/rcnn-resnet101"), "ilsvrc2012", "run")``
    """
    regions = config.regions
    if reference is None:
        if regions is not None and regions.localiser is None:
            raise UserError(f"{config.recipe} is trained on a localiser's boxes: name its run with --proposals")
        return config, None
    if regions is None:
        raise UserError(f"--proposals is for ilsvrc-loc/rcnn-…: {config.recipe} is trained on no boxes of a localiser")
    if regions.localiser is not None:
        raise UserError("the localiser is given twice, as --proposals and as a field; leave one out")
    # torchvision's detection takes seconds to import, which classification is spared
    from resnet_pipeline.jobs.found_boxes import found_boxes

    localiser, files = found_boxes(
        parse_run(workspace, reference).path, open_dataset(workspace, dataset_name), count=regions.proposals
    )
    _log.info("%s: is trained on the boxes of %s (%s…)", config.recipe, reference, localiser[:12])
    return replace(config, regions=replace(regions, localiser=localiser)), Proposals(reference, files)


def keep_proposals(proposals: Proposals | None, run: RunDirectory, splits: tuple[str, ...]) -> None:
    """Let the run have the boxes that it is trained on; UserError if they are neither given nor there.

    Example: ``keep_proposals(proposals, run, ("train", "val"))``
    """
    if proposals is not None:
        proposals.keep(run)
        return
    for split in splits:
        file = boxes_file(run.path, split)
        bring(run, facts_file(file), file)
        if not file.is_file():
            raise UserError(
                f"{run.config().recipe}: the boxes that it is to be trained on are not in {run.path}: name the "
                "localiser's run with --proposals, without the field regions.localiser"
            )


def proposer_of(run: RunDirectory) -> str | None:
    """Return the name of the localiser's run on whose boxes a run was trained; None if that is not known here.

    Example: ``proposer_of(RunDirectory.open(path))``
    """
    try:
        return read_boxes(boxes_file(run.path, "train"))[1].run
    except UserError:
        return None


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:  # another disk
            shutil.copyfile(source, temporary)
