"""Detectors in both forms against torchvision's own Faster R-CNN with FPN, and against random backbones.

All begin with the same classifier (but the random ones), see the same images in the same order and as often, with the
same schedule, and are tested on the same images: AP50 with intervals, and the differences, paired over the images.
torchvision's constructors have their defaults but for the regions of an image, which are fewer to save time.

    python benchmarks/detection.py --archive bccd.tar.gz --backbone resnet18=weights.safetensors --lr 0.02
    python benchmarks/detection.py --archive bccd.tar.gz --backbone RUN --only c4 c4-random --side 224
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from resnet_pipeline.config import (
    AugmentConfig,
    DetectionConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    ViewConfig,
)
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.detection.metrics import coco_metrics, paired_difference
from resnet_pipeline.detection.networks import Batches, Detector, channels_of, freeze_batch_norm
from resnet_pipeline.detection.results import Results, read_results
from resnet_pipeline.detection.task import DetectionTask
from resnet_pipeline.jobs.references import load, parse
from resnet_pipeline.jobs.stage import stage_dataset
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.models.weights import load_weights, save_weights
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.tasks import build_classifier
from resnet_pipeline.workspace import Workspace

REGIONS, PROPOSALS = 32, 150  # of an image, in training and in testing
POOLED = 8  # bins on each side of a region of C4, half of them after the last stage


class Torchvision(DetectionTask):
    """The same task with torchvision's own detector on the network: its constructors, with its defaults."""

    def _built(self, classifier: Classifier, network: ResNet) -> Detector:
        if self._detection.norm == "frozen":
            freeze_batch_norm(network)
        body = BackboneWithFPN(
            _without_classifier(network),
            {name: str(i) for i, name in enumerate(network.stage_names)},
            channels_of(network),
            256,
        )
        anchors = AnchorGenerator(tuple((s,) for s in self._detection.anchor_sizes), ((0.5, 1.0, 2.0),) * 5)
        rcnn = FasterRCNN(
            body,
            len(self._dataset.classes) + 1,
            rpn_anchor_generator=anchors,
            box_batch_size_per_image=self._detection.sampled_regions,
            rpn_post_nms_top_n_test=self._detection.proposals,
        )
        rcnn.transform = Batches()
        return Detector(classifier.normalize, rcnn)


def _without_classifier(network: ResNet) -> nn.Sequential:
    parts = {"conv1": network.conv1, "bn1": network.bn1, "relu": nn.ReLU(), "maxpool": network.maxpool}
    parts |= {name: network.get_submodule(name) for name in network.stage_names}
    return nn.Sequential(OrderedDict(parts))


@dataclass(frozen=True)
class Kind:
    """A row of the comparison: whose detector, in which form, on what."""

    name: str
    task: type[DetectionTask]
    form: str
    begins: bool = True


KINDS = {
    "fpn": Kind("FPN, ours", DetectionTask, "fpn"),
    "torchvision": Kind("FPN, torchvision's", Torchvision, "fpn"),
    "fpn-random": Kind("FPN, ours, random backbone", DetectionTask, "fpn", begins=False),
    "c4": Kind("C4, ours", DetectionTask, "c4"),
    "c4-random": Kind("C4, ours, random backbone", DetectionTask, "c4", begins=False),
}


def config_of(network: str, kind: Kind, steps: int, side: int, lr: float, norm: str) -> RunConfig:
    """Return the schedule and the sizes that all share; random weights have no averages, so their norm is trained."""
    norm = norm if kind.begins else "batch"
    detection = {
        "c4": DetectionConfig(
            longest=2 * side, anchor_sizes=(side // 10, side // 5, side * 2 // 5), pooled=POOLED, least_side=2.0,
            sampled_regions=REGIONS, proposals=PROPOSALS,
        ),
        "fpn": DetectionConfig(
            form="fpn", longest=2 * side, anchor_sizes=tuple(side * k // 80 for k in (4, 8, 16, 32, 64)),
            sampled_regions=REGIONS, proposals=PROPOSALS,
        ),
    }[kind.form]  # fmt: skip
    return RunConfig(
        recipe="bccd/small",
        model=ModelConfig(name=network, mean="channel"),
        augment=AugmentConfig(kind="whole-image", crop=side, shorter_side=(side * 9 // 10, side * 11 // 10)),
        views=ViewConfig(crop=side, resize=side, scales=(side,)),
        optim=OptimConfig(lr=lr, momentum=0.9, weight_decay=1e-4, decay_norm=False,
                          frozen_stages=1 if norm == "frozen" else None),
        schedule=ScheduleConfig(kind="cosine", warmup=min(20, steps // 2)),
        detection=replace(detection, norm=norm),
        precision="auto",
        batch=4,
        micro_batch=4,
        steps=steps,
        eval_every=steps,
        checkpoint_every=steps,
        log_every=min(10, steps),
        bn_images=0,
    )  # fmt: skip


def trained(task_of: type[DetectionTask], config: RunConfig, dataset: Dataset, weights: Path | None) -> Results:
    """Train a detector and return what it finds in the evaluation split."""
    context = LocalContext()
    task = task_of(config, dataset, context)
    with tempfile.TemporaryDirectory() as folder:
        if weights is not None:
            model = replace(config.model, initial_weights="0" * 64, initial_head="fresh")
            config = replace(config, model=model)
        run = RunDirectory.create(Path(folder), config, dataset.facts)
        if weights is not None:
            run.initial_weights_file.write_bytes(weights.read_bytes())
        train(run, dataset, context, task=task)
        network = task.network()
        load_weights(network, run.weights_file)
        return task.detect(network, dataset.eval_split)


def main() -> None:
    """Run what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True, help="BCCD, in Pascal VOC's layout")
    parser.add_argument("--backbone", required=True, help="MODEL, as for every command")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--side", type=int, default=112, help="shorter side, in pixels")
    parser.add_argument("--lr", type=float, default=0.02, help="of all of them")
    parser.add_argument("--norm", choices=["frozen", "batch"], default="frozen", help="but of random backbones: batch")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="the first is compared with all")
    parser.add_argument("--results", type=Path, help="folder to keep result files in; what is there is not run again")
    options = parser.parse_args()
    workspace = Workspace.of()
    stage_dataset(workspace, options.archive, "bccd")
    dataset = open_dataset(workspace, "bccd")
    member = load(workspace, parse(workspace, options.backbone))
    found: dict[str, Results] = {}
    with tempfile.TemporaryDirectory() as folder:
        for short in options.only:
            kind = KINDS[short]
            config = config_of(member.network, kind, options.steps, options.side, options.lr, options.norm)
            weights = _for_these_classes(member.classifier, dataset, config, Path(folder) / "backbone.safetensors")
            start, cpu = time.perf_counter(), time.process_time()
            name = f"{short}-{config.detection.norm}-{options.steps}-{options.side}-{options.lr}.json"
            kept = options.results and options.results / name
            if kept and kept.exists():
                found[kind.name] = read_results(kept, dataset, dataset.eval_split)
            else:
                found[kind.name] = trained(kind.task, config, dataset, weights if kind.begins else None)
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    found[kind.name].write(dataset, kept)
            metrics = coco_metrics(dataset, found[kind.name], samples=500)
            row = {
                "detector": kind.name,
                "norm": config.detection.norm,
                "lr": options.lr,
                "ap50": metrics.ap50,
                "ap50_interval": metrics.intervals[1] if metrics.intervals else None,
                "ap": metrics.ap,
                "seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - cpu,
            }
            print(json.dumps(row), flush=True)
    first, *others = found
    for other in others:
        by, interval = paired_difference(dataset, found[first], found[other], samples=500)
        print(json.dumps({"ap of": first, "against": other, "better_by": by, "interval": interval}))


def _for_these_classes(classifier: Classifier, dataset: Dataset, config: RunConfig, path: Path) -> Path:
    """Write the classifier with a fresh last layer for the dataset's classes, as `begin_with` takes it."""
    fresh = build_classifier(config.model, dataset, seed=config.seed)
    state = {k: v for k, v in classifier.network.state_dict().items() if not k.startswith("fc.")}
    fresh.network.load_state_dict(state, strict=False)
    fresh.normalize = classifier.normalize
    save_weights(fresh, path, {})
    return path


if __name__ == "__main__":
    main()
