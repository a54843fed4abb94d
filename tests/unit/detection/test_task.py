"""Detection by the training loop: it learns, resumes to the bit, and its workers' number changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from resnet_pipeline.config import AugmentConfig, ConfigError, GrowthConfig, OptimConfig
from resnet_pipeline.detection import task_of
from resnet_pipeline.detection.metrics import coco_metrics
from resnet_pipeline.detection.task import DetectionTask
from resnet_pipeline.models.weights import save_weights, weights_sha256
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import Trainer, train
from resnet_pipeline.training.metrics_log import TrainEntry, ValidationEntry, entries_of, read_metrics
from resnet_pipeline.training.tasks import ClassificationTask, build_classifier
from tests.unit.detection.conftest import small_config


def trained(run, dataset):
    config = run.config()
    return train(run, dataset, LocalContext(), task=task_of(config, dataset, LocalContext()))


class Stopped(LocalContext):
    """Asks to stop after some steps."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def should_stop(self):
        self.after -= 1
        return self.after < 0


def test_a_config_with_a_detector_is_of_detection(scenes, digits, workspace):
    config = small_config()
    assert isinstance(task_of(config, scenes, LocalContext()), DetectionTask)
    plain = dataclasses.replace(config, detection=None, augment=AugmentConfig(kind="pad-crop", crop=32))
    assert isinstance(task_of(plain, digits, LocalContext()), ClassificationTask)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"detection": None}, "augment.kind is whole-image: whole-image goes with detection"),
        ({"augment": AugmentConfig(kind="pad-crop", crop=32)}, "augment.kind is pad-crop: whole-image goes with"),
        ({"augment": AugmentConfig(kind="whole-image", crop=32, color=0.1)}, "augment.color is for classification"),
        ({"growth": GrowthConfig(first=16)}, "growth.first is for classification"),
        ({"optim": OptimConfig(label_smoothing=0.1)}, "optim.label_smoothing is for classification"),
        ({"optim": OptimConfig(layer_decay=0.5)}, "optim.layer_decay is for classification"),
        ({"optim": OptimConfig(frozen_stages=1)}, "set detection.norm to frozen"),
        ({"optim": OptimConfig(norm_eval=True)}, "set detection.norm to frozen"),
    ],
)
def test_a_field_that_would_not_be_followed_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(small_config(), **fields)


@pytest.mark.slow
def test_a_run_of_detection_writes_what_any_run_writes(make_detection_run, scenes):
    run = make_detection_run(steps=4, masks=True)
    assert trained(run, scenes)
    result = run.result()
    assert {"ap", "ap50", "ap75", "mask_ap", "mask_ap50", "error"} == set(result.validation)
    entries = [entry for _, entry in entries_of(read_metrics(run.metrics_file), TrainEntry)]
    for entry in entries:
        parts = [entry.figures[name] for name in ("classes", "boxes", "objectness", "proposals", "masks")]
        assert entry.figures["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert [step for step, _ in entries_of(read_metrics(run.metrics_file), ValidationEntry)] == [4]


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(make_detection_run, scenes):
    whole, stopped = make_detection_run(steps=6), make_detection_run("again", steps=6)
    assert trained(whole, scenes)
    context = Stopped(3)
    assert not train(stopped, scenes, context, task=task_of(stopped.config(), scenes, context))
    torch.manual_seed(999)  # whatever happened meanwhile
    assert trained(stopped, scenes)
    assert stopped.result().weights_sha256 == whole.result().weights_sha256


@pytest.mark.slow
def test_what_is_drawn_for_a_batch_depends_on_its_position_alone(make_detection_run, scenes):
    run = make_detection_run(steps=4)
    trainer = Trainer(run, scenes, LocalContext(), task=task_of(run.config(), scenes, LocalContext()))
    model, task = trainer.state.network.train(), trainer.task
    with task.batches(0, 1) as batches:
        first, second = next(batches), next(batches)
    losses = []
    for before in (0, 5):
        torch.manual_seed(before)
        losses.append([{k: v.item() for k, v in task.forward(model, b).items()} for b in (first, second)])
        state = torch.random.get_rng_state()
        task.forward(model, first)
        assert torch.equal(torch.random.get_rng_state(), state), "and nothing else depends on it"
    assert losses[0] == losses[1]
    trainer.close()


@pytest.mark.slow
def test_it_begins_with_a_classifier_s_backbone_and_keeps_its_batch_norm(make_detection_run, scenes, tmp_path):
    config = small_config(steps=2, norm="frozen")
    task = DetectionTask(config, scenes, LocalContext())
    classifier = build_classifier(config.model, scenes, seed=5)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    save_weights(classifier, tmp_path / "w.safetensors", {})
    detector = task.network()
    fresh = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    task.begin_with(detector, tmp_path / "w.safetensors")
    state, theirs = detector.state_dict(), classifier.network.state_dict()
    for name in ("conv1.weight", "layer1.0.bn1.running_var", "layer2.0.conv1.weight"):
        assert torch.equal(state[f"rcnn.backbone.{name}"], theirs[name])
    assert torch.equal(state["rcnn.roi_heads.box_head.stage.0.conv1.weight"], theirs["layer3.0.conv1.weight"])
    heads = [name for name in state if name.startswith(("rcnn.rpn", "rcnn.roi_heads.box_predictor"))]
    assert heads and all(torch.equal(state[name], fresh[name]) for name in heads)


@pytest.mark.soak
def test_it_learns_to_find_what_it_is_shown(make_detection_run, scenes):
    run = make_detection_run(steps=240)
    assert trained(run, scenes)
    validation = run.result().validation
    assert validation["ap50"] > 90, validation
    task = DetectionTask(run.config(), scenes, LocalContext())
    network = task.network()
    from resnet_pipeline.models.weights import load_weights

    load_weights(network, run.weights_file)
    assert weights_sha256(network) == run.result().weights_sha256
    assert coco_metrics(scenes, task.detect(network, "train")).ap50 > 90
