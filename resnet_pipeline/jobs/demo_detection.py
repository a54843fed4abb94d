"""The detectors' demo: from built-in images to a registered Mask R-CNN and a picture of what it finds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.adapters.mlflow.registry import ModelVersion
from resnet_pipeline.detection.trained import protocol_of
from resnet_pipeline.jobs.detect import DetectionTest, DetectorEvaluation, evaluate_detectors
from resnet_pipeline.jobs.initial_weights import InitialWeights, begun_with
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.promote import gated
from resnet_pipeline.jobs.promote_results import promote_by_results
from resnet_pipeline.jobs.register_detector import register_detector
from resnet_pipeline.jobs.stage import DIGITS, SCENES, stage_dataset
from resnet_pipeline.jobs.train import TrainedRun, run_config, train_run
from resnet_pipeline.workspace import Workspace

CLASSIFIER, DETECTOR = "digits/resnet8", "scenes/maskrcnn-resnet8-c4"


@dataclass(frozen=True, kw_only=True)
class DetectionDemo:
    """What the demo came to; ``promotion`` says why its version is the champion, or why not."""

    evaluation: DetectorEvaluation
    version: ModelVersion
    promotion: str
    picture: Path
    seconds: float
    reused: bool


def demo_detection(workspace: Workspace, *, steps: int | None = None) -> DetectionDemo:
    """Stage digits and scenes, train a classifier and on it a detector, test, register and promote that.

    In this process, with nothing else running; what is finished is reused. ``steps`` of the detector, by default its
    recipe's.

    Example: ``demo_detection(Workspace.of()).evaluation.boxes.ap50``
    """
    start = time.perf_counter()
    launch = Launch(launcher="local")
    stage_dataset(workspace, DIGITS, "digits")
    stage_dataset(workspace, SCENES, "scenes")
    classifier = _trained(train_run(workspace, run_config(CLASSIFIER), "digits", launch))
    config, network = begun_with(
        workspace, run_config(DETECTOR, steps=steps), "scenes", InitialWeights(reference=str(classifier.run.path))
    )
    trained = _trained(train_run(workspace, config, "scenes", launch, network))
    (evaluation,) = evaluate_detectors(workspace, [str(trained.run.path)], DetectionTest(dataset="scenes"))
    version = register_detector(workspace, trained, evaluation)
    _, promotion, _ = gated(lambda: promote_by_results(workspace, version.uri))
    return DetectionDemo(
        evaluation=evaluation,
        version=version,
        promotion=promotion,
        picture=trained.run.path / "pictures" / f"{protocol_of(config)}.png",
        seconds=time.perf_counter() - start,
        reused=trained.reused,
    )


def _trained(run: TrainedRun | None) -> TrainedRun:
    assert run is not None, "only torchrun starts processes that help another one"
    return run
