"""The registration of a finished run by what it was trained for, tested first as its task is."""

from __future__ import annotations

import logging

from resnet_pipeline.adapters.mlflow.registry import ModelVersion
from resnet_pipeline.jobs.proposals import proposer_of
from resnet_pipeline.jobs.register import register_run
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


def register_trained(
    workspace: Workspace, trained: TrainedRun, *, name: str | None = None, proposals: str | None = None
) -> ModelVersion | None:
    """Register a finished run on the dataset that it was trained on, under ``name`` or, None, its recipe's.

    Detectors and localisers are tested on all images of its evaluation split; what is kept of a test is reused. An
    R-CNN is registered with the localiser whose boxes it moves, ``proposals``, by default the run that it was trained
    on. Returns None, which is logged, if that one is not here.

    Example: ``register_trained(workspace, trained)``
    """
    config = trained.run.config()
    reference, dataset = str(trained.run.path), trained.run.dataset().name
    if config.task == "classification":
        return register_run(workspace, trained, name=name)
    # torchvision's detectors and COCO's metrics take some time to import, which classification is spared
    if config.task == "detection":
        from resnet_pipeline.jobs.detect import DetectionTest, evaluate_detectors
        from resnet_pipeline.jobs.register_detector import register_detector

        (evaluation,) = evaluate_detectors(workspace, [reference], DetectionTest(dataset=dataset))
        return register_detector(workspace, trained, evaluation, name=name)
    from resnet_pipeline.jobs.localise import localise
    from resnet_pipeline.jobs.register_localiser import register_localiser

    if config.regions is None:
        return register_localiser(workspace, trained, [localise(workspace, reference, dataset)], name=name)
    first = proposals or proposer_of(trained.run)
    if first is None or not (proposals or (workspace.runs / first).is_dir()):
        _log.warning(
            "%s is not registered: the localiser whose boxes it moves (%s) is not in %s; name it with --proposals",
            config.recipe,
            first or "not known",
            workspace.runs,
        )
        return None
    test = localise(workspace, first, dataset, rcnns=[reference])
    return register_localiser(workspace, trained, [test], name=name, proposals=first)
