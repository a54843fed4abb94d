"""A detector in the paper's C4 form against torchvision's own Faster R-CNN with FPN, and against a random backbone.

All begin with the same classifier (but the random one), see the same images in the same order and as often, with the
same schedule, and are tested on the same images: AP50 with intervals, and the differences, paired over the images.

    python benchmarks/detection.py --archive bccd.tar.gz --backbone cifar-resnet20=weights.safetensors
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign

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
from resnet_pipeline.detection.results import Results
from resnet_pipeline.detection.task import DetectionTask
from resnet_pipeline.jobs.references import load, parse
from resnet_pipeline.jobs.stage import stage_dataset
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.models.weights import load_weights, save_weights
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace


class Torchvision(DetectionTask):
    """The same task with torchvision's own detector on the network."""

    channels = 256

    def _on(self, classifier: Classifier) -> Detector:
        network = classifier.network
        assert isinstance(network, ResNet)
        network.freeze(self._config.optim.frozen_stages)
        torch.manual_seed(self._config.seed)
        freeze_batch_norm(network)
        used = network.stage_names[1:]
        body = BackboneWithFPN(
            _without_classifier(network),
            {name: str(i) for i, name in enumerate(used)},
            channels_of(network)[1:],
            self.channels,
        )
        sizes = self._detection.anchor_sizes[: len(used) + 1]
        rcnn = FasterRCNN(
            body,
            len(self._dataset.classes) + 1,
            rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in sizes), ((0.5, 1.0, 2.0),) * len(sizes)),
            box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(used))], output_size=7, sampling_ratio=2),
            box_batch_size_per_image=self._detection.sampled_regions,
        )
        rcnn.transform = Batches()
        return Detector(classifier.normalize, rcnn)


def _without_classifier(network: ResNet) -> nn.Sequential:
    parts = {"conv1": network.conv1, "bn1": network.bn1, "relu": nn.ReLU(), "maxpool": network.maxpool}
    parts |= {name: network.get_submodule(name) for name in network.stage_names}
    found = nn.Sequential()
    for name, part in parts.items():
        found.add_module(name, part)
    return found


def config_of(network: str, steps: int, side: int, lr: float, norm: str) -> RunConfig:
    """Return the schedule and the sizes that all share."""
    return RunConfig(
        recipe="bccd/small",
        model=ModelConfig(name=network, mean="channel"),
        augment=AugmentConfig(kind="whole-image", crop=side, shorter_side=(side * 9 // 10, side * 11 // 10)),
        views=ViewConfig(crop=side, resize=side, scales=(side,)),
        optim=OptimConfig(lr=lr, momentum=0.9, weight_decay=1e-4, decay_norm=False,
                          frozen_stages=1 if norm == "frozen" else None),
        schedule=ScheduleConfig(kind="cosine", warmup=min(20, steps // 2)),
        detection=DetectionConfig(
            norm=norm, longest=2 * side, anchor_sizes=(side // 10, side // 5, side * 2 // 5), pooled=12,
            sampled_anchors=128, sampled_regions=64, proposals=150, least_side=2.0,
        ),
        batch=4,
        micro_batch=2,
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
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--side", type=int, default=120, help="shorter side, in pixels")
    parser.add_argument("--lr", type=float, default=0.1, help="of all of them")
    parser.add_argument("--only", nargs="+", default=["c4", "fpn", "random"], help="of c4, fpn and random")
    parser.add_argument("--channels", type=int, default=256, help="of torchvision's pyramid")
    options = parser.parse_args()
    workspace = Workspace.of()
    stage_dataset(workspace, options.archive, "bccd")
    dataset = open_dataset(workspace, "bccd")
    member = load(workspace, parse(workspace, options.backbone))
    Torchvision.channels = options.channels
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "backbone.safetensors"
        network = member.classifier.network
        assert isinstance(network, ResNet)
        config = config_of(member.network, options.steps, options.side, options.lr, "frozen")
        fitting = DetectionTask(config, dataset, LocalContext())
        weights = _for_these_classes(member.classifier, fitting, dataset, config, weights)
        found: dict[str, Results] = {}
        for short, name, task, norm, begin in (
            ("c4", "C4, ours", DetectionTask, "frozen", weights),
            ("fpn", "FPN, torchvision's", Torchvision, "frozen", weights),
            ("random", "C4, ours, random backbone", DetectionTask, "batch", None),
        ):
            if short not in options.only:
                continue
            start, cpu = time.perf_counter(), time.process_time()
            config = config_of(member.network, options.steps, options.side, options.lr, norm)
            found[name] = trained(task, config, dataset, begin)
            metrics = coco_metrics(dataset, found[name], samples=500)
            row = {
                "detector": name,
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


def _for_these_classes(
    classifier: Classifier, task: DetectionTask, dataset: Dataset, config: RunConfig, path: Path
) -> Path:
    """Write the classifier with a fresh last layer for the dataset's classes, as `begin_with` takes it."""
    from resnet_pipeline.training.tasks import build_classifier

    fresh = build_classifier(config.model, dataset, seed=config.seed)
    state = {k: v for k, v in classifier.network.state_dict().items() if not k.startswith("fc.")}
    fresh.network.load_state_dict(state, strict=False)
    fresh.normalize = classifier.normalize
    save_weights(fresh, path, {})
    return path


if __name__ == "__main__":
    main()
