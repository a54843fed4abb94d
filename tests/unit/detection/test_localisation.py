"""Localisation as in the paper's appendix C: against slow plain versions, its oracles, and by the training loop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from resnet_pipeline.cli.main import app
from resnet_pipeline.config import (
    AugmentConfig,
    ConfigError,
    DetectionConfig,
    GrowthConfig,
    LocalisationConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    ViewConfig,
)
from resnet_pipeline.data.crops import resized_sizes
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.detection import task_of
from resnet_pipeline.detection.localisation import LocalisationTask, localisation_errors, localised
from resnet_pipeline.detection.localiser import (
    Localiser,
    anchor_grid,
    localisation_losses,
    sampled_anchors,
    stride_of,
)
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.trained_model import load_folder
from resnet_pipeline.jobs.keep_transfers import keep_transfers
from resnet_pipeline.jobs.localise import localise
from resnet_pipeline.models import Normalize, build_model
from resnet_pipeline.models.weights import save_weights
from resnet_pipeline.report.kept import read_kept
from resnet_pipeline.staging.stage import Source, pack
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.tasks import build_classifier
from resnet_pipeline.workspace import Workspace
from tests.conftest import archive
from tests.packing import InThisProcess
from tests.unit.detection.conftest import COLORS
from tests.unit.detection.test_task import Stopped

SMALL = LocalisationConfig(norm="batch", anchor_sizes=(12, 20), anchor_ratios=(0.7, 1.4))


def config(steps: int = 4, localisation: LocalisationConfig = SMALL, **fields) -> RunConfig:
    made = RunConfig(
        recipe="loc/resnet8",
        model=ModelConfig(name="cifar-resnet8", mean="channel"),
        augment=AugmentConfig(kind="scale-crop", crop=32, shorter_side=(32, 36)),
        views=ViewConfig(crop=32, resize=32, scales=(32, 40)),
        optim=OptimConfig(lr=0.05, momentum=0.9),
        schedule=ScheduleConfig(kind="cosine", warmup=min(10, steps // 2)),
        localisation=localisation,
        batch=8,
        micro_batch=4,
        steps=steps,
        eval_every=max(2, steps),
        checkpoint_every=max(1, steps // 2),
        log_every=max(1, steps // 4),
        bn_images=0,
    )
    return dataclasses.replace(made, **fields)


def localiser(classes: int = 5, **options) -> Localiser:
    torch.manual_seed(0)
    made = Localiser(
        Normalize(torch.tensor([120.0, 110, 100])),
        build_model("cifar-resnet8"),
        dataclasses.replace(SMALL, **options),
        classes=classes,
    )
    for layer in (made.scores, made.boxes):
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(layer.bias, std=0.3)
    return made.eval()


def maps(made: Localiser, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what both convolutions say everywhere: [N, h, w, A, classes] and [N, h, w, A, classes, 4]."""
    features = made.trunk.features(made.normalize(images))
    said = [F.conv2d(features, layer.weight[:, :, None, None], layer.bias) for layer in (made.scores, made.boxes)]
    n, _, h, w = features.shape
    scores, boxes = (each.permute(0, 2, 3, 1) for each in said)
    return scores.reshape(n, h, w, 4, -1), boxes.reshape(n, h, w, 4, -1, 4)


@torch.inference_mode()
def test_the_best_box_of_a_class_is_that_of_the_dense_convolutions():
    made = localiser()
    images = torch.randint(0, 256, (2, 36, 52, 3), dtype=torch.uint8)
    classes = torch.tensor([[3, 0, 1], [2, 4, 3]])
    boxes, logits = made(images, classes)
    scores, deltas = maps(made, images)
    for image in range(2):
        for place, label in enumerate(classes[image]):
            best = None
            for y in range(scores.shape[1]):
                for x in range(scores.shape[2]):
                    for anchor, (size, ratio) in enumerate((s, r) for r in (0.7, 1.4) for s in (12, 20)):
                        score = scores[image, y, x, anchor, label]
                        if best is None or score > best[0]:
                            best = (score, y, x, anchor, size, ratio)
            score, y, x, anchor, size, ratio = best
            # torchvision rounds an anchor's half sides to whole pixels
            high, wide = round(size * ratio**0.5 / 2) * 2, round(size / ratio**0.5 / 2) * 2
            stride = stride_of(made.trunk)
            box = torch.tensor(
                [[x * stride - wide / 2, y * stride - high / 2, x * stride + wide / 2, y * stride + high / 2]]
            )
            box = BoxCoder((1.0, 1, 1, 1)).decode_single(deltas[image, y, x, anchor, label][None], box)[0]
            box = box.clamp(min=0).minimum(torch.tensor([52.0, 36, 52, 36]))
            torch.testing.assert_close(logits[image, place], score, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(boxes[image, place], box, rtol=1e-3, atol=1e-2)


@torch.inference_mode()
def test_sampled_anchors_get_what_the_dense_convolutions_say_there():
    made = localiser()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    scores, deltas = maps(made, images)
    anchors = torch.tensor([[0, 17, 33], [5, 5, 255]])
    labels = torch.tensor([[2], [4]])
    close = {"rtol": 1e-4, "atol": 1e-4}
    logits, said = made(images, labels, None, anchors)
    for image in range(2):
        torch.testing.assert_close(
            logits[image], scores[image, ..., labels[image, 0]].flatten()[anchors[image]], **close
        )
        own = deltas[image, ..., labels[image, 0], :].reshape(-1, 4)
        torch.testing.assert_close(said[image], own[anchors[image]], **close)


def test_half_of_the_sampled_anchors_are_on_objects():
    grid = anchor_grid(SMALL, (8, 8), 4)
    boxes = torch.tensor([[4.0, 4, 22, 26], [18, 10, 30, 22]])
    shared = box_iou(boxes, grid)
    best = shared.max(dim=1).values[:, None]
    on = (shared >= 0.7).any(dim=0) | (shared == best).any(dim=0)
    draws = np.random.default_rng(0).random(len(grid))
    places, positive, wanted = sampled_anchors(grid, boxes, draws, 8)
    assert positive.tolist() == [1] * 4 + [0] * 4
    assert len(set(places[:4].tolist())) == min(4, int(on.sum())) > 0
    alone = sampled_anchors(grid, boxes[:1], draws, 8)
    few = int((shared[0] >= 0.7).sum()) or 1
    assert alone[1].tolist() == [1] * 4 + [0] * 4 and len(set(alone[0][:4].tolist())) == min(4, few)
    assert on[places[positive == 1]].all() and (shared[:, places[positive == 0]] < 0.3).all()
    decoded = BoxCoder((1.0, 1, 1, 1)).decode_single(wanted[positive == 1], grid[places[positive == 1]])
    torch.testing.assert_close(decoded, boxes[shared[:, places[positive == 1]].argmax(dim=0)], rtol=1e-4, atol=1e-3)
    again, other = (sampled_anchors(grid, boxes, d, 8)[0] for d in (draws, np.random.default_rng(1).random(len(grid))))
    assert torch.equal(again, places) and not torch.equal(other, places)
    places, positive, _ = sampled_anchors(grid, torch.zeros(0, 4), draws, 8)
    assert positive.tolist() == [0] * 8 and len(set(places.tolist())) == 8
    whole = torch.tensor([[0.0, 0, 32, 32]])  # of a grid with fewer anchors than are wanted
    assert (sampled_anchors(grid[:3], whole, draws[:3], 8)[1] == -1).sum() == 2


def test_losses_are_means_over_the_sampled_anchors():
    torch.manual_seed(0)
    logits, deltas, wanted = torch.randn(2, 4), torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    positive = torch.tensor([[1, 0, 0, -1], [1, 1, 0, 0]])
    score, box = localisation_losses(logits, deltas, positive, wanted)
    total, away = 0.0, 0.0
    for image, sample in np.ndindex(2, 4):
        if positive[image, sample] < 0:
            continue
        p = 1 / (1 + np.exp(-logits[image, sample].item()))
        total -= np.log(p if positive[image, sample] else 1 - p)
        if positive[image, sample]:
            for d in (deltas[image, sample] - wanted[image, sample]).abs().tolist():
                away += 0.5 * d * d * 9 if d < 1 / 9 else d - 0.5 / 9
    assert score.item() == pytest.approx(total / 7, rel=1e-5) and box.item() == pytest.approx(away / 7, rel=1e-5)


def test_a_batch_has_boxes_where_the_crop_has_the_object(located):
    """The pixels of the object are its colour: what the anchors on it say lies where they are in the crop."""
    task = LocalisationTask(config(), located, LocalContext())
    grid = anchor_grid(SMALL, (8, 8), 4)
    seen, flipped = set(), 0
    with task.batches(0, 4) as batches:
        for batch in batches:
            seen |= set(batch.index.tolist())
            for image, label, anchors, positive, wanted in zip(
                batch.images, batch.labels, batch.anchors, batch.positive, batch.wanted, strict=True
            ):
                on = positive == 1
                if not on.any():
                    continue
                boxes = BoxCoder((1.0, 1, 1, 1)).decode_single(wanted[on], grid[anchors[on]])
                left, top, right, bottom = boxes[0].round().int().tolist()
                inside = image[top + 2 : bottom - 2, left + 2 : right - 2].float().mean(dim=(0, 1))
                assert torch.allclose(inside, torch.tensor(COLORS[label]).float(), atol=12), (inside, label)
                bright = (image.float() - 100).abs().max(dim=2).values > 60
                rows, columns = bright.any(dim=1).nonzero()[:, 0], bright.any(dim=0).nonzero()[:, 0]
                around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                np.testing.assert_allclose(boxes[0].numpy(), around, atol=2.1)
                flipped += 1
    unannotated = [i for i, key in enumerate(located.splits["train"].keys) if "n00000000_99" in key]
    assert flipped > 10 and len(seen) == 16 and not seen & set(unannotated)


def test_oracles(located):
    """Boxes of the truth are never wrong, another class always; the centre box is a number by hand."""
    samples = located.splits["val"]
    labels, box = samples.labels[:, None], np.stack([samples.objects.of(i).box for i in range(len(samples))])
    assert localisation_errors(located, "val", labels, box).mean() == 0
    assert localisation_errors(located, "val", 1 - labels, box).mean() == 1
    both = np.concatenate([1 - labels, labels], axis=1)
    assert localisation_errors(located, "val", both, np.concatenate([box * 0, box], axis=1)).mean() == 0
    assert localisation_errors(located, "val", both, np.concatenate([box, box * 0], axis=1)).mean() == 1


@pytest.mark.parametrize("protocol", ["center", "dense"])
def test_boxes_are_in_pixels_of_the_stored_image(located, protocol):
    """A network that finds the bright part exactly is right, whatever the image was resized and cropped to."""

    class Bright(torch.nn.Module):
        def forward(self, images, classes):
            boxes = []
            for image in images:
                bright = (image.float() - 100).abs().max(dim=2).values > 60
                rows, columns = bright.any(dim=1).nonzero()[:, 0], bright.any(dim=0).nonzero()[:, 0]
                boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            found = torch.tensor(boxes).float()[:, None].expand(-1, classes.shape[1], -1)
            return found, torch.full(classes.shape, float(images.shape[1]))

    changed = config(views=ViewConfig(crop=30, resize=32, scales=(32, 64)))
    task = LocalisationTask(changed, located, LocalContext())
    samples = located.splits["val"]
    boxes, scores = task.localise(Bright(), "val", np.tile(samples.labels[:, None], 2), protocol=protocol)
    truth = np.stack([samples.objects.of(i).box for i in range(len(samples))])
    if protocol == "dense":
        np.testing.assert_allclose(boxes, np.tile(truth, (1, 2, 1)), atol=1.5)
        assert (scores == 64).all(), "the likeliest of both sizes"
    else:
        resized = resized_sizes(samples.width, samples.height, 32)
        corner = np.rint((resized - 30) / 2)
        low = np.stack([corner[:, 1] * 48 / resized[:, 1], corner[:, 0] * 40 / resized[:, 0]], axis=1)
        high = low + 30 * np.stack([48 / resized[:, 1], 40 / resized[:, 0]], axis=1)
        cut = np.concatenate([np.maximum(truth[:, 0, :2], low), np.minimum(truth[:, 0, 2:], high)], axis=1)
        np.testing.assert_allclose(boxes[:, 0], cut, atol=2.6)


@pytest.mark.slow
def test_it_is_trained_by_the_loop_and_resumes_to_the_bit(located, tmp_path):
    changed = config(steps=6)
    assert isinstance(task_of(changed, located, LocalContext()), LocalisationTask)
    whole, stopped = (RunDirectory.create(tmp_path / name, changed, located.facts) for name in ("whole", "stopped"))
    assert train(whole, located, LocalContext(), task=task_of(changed, located, LocalContext()))
    context = Stopped(3)
    assert not train(stopped, located, context, task=task_of(changed, located, context))
    torch.manual_seed(999)  # whatever happened meanwhile
    assert train(stopped, located, LocalContext(), task=task_of(changed, located, LocalContext()))
    assert stopped.result().weights_sha256 == whole.result().weights_sha256
    assert set(whole.result().validation) == {"localisation_error", "images"}
    assert whole.result().validation["images"] == 8


@pytest.mark.slow
def test_it_learns_where_things_are(located, tmp_path):
    changed = config(steps=120, bn_images=64)
    run = RunDirectory.create(tmp_path, changed, located.facts)
    assert train(run, located, LocalContext(), task=task_of(changed, located, LocalContext()))
    assert run.result().validation["localisation_error"] <= 25, run.result().validation


@pytest.mark.slow
def test_a_run_is_tested_by_command_with_the_truth_or_with_a_classifier(located, tmp_path, capsys):
    """Of two classes a classifier names both, so its error is that of the truth."""
    space = Workspace(tmp_path / "work")
    Path(space.data).mkdir(parents=True)
    (Path(space.data) / "d").symlink_to(located.path)
    changed = config(steps=2, recipe="ilsvrc-loc/resnet101")
    run = RunDirectory.create(space.runs, changed, located.facts)
    assert train(run, located, LocalContext(), task=task_of(changed, located, LocalContext()))
    short = dataclasses.replace(changed, localisation=None, recipe="d/resnet8", bn_images=16)
    other = RunDirectory.create(space.runs, short, located.facts)
    assert train(other, located, LocalContext())
    found = localise(space, run.name, "d", scales=(32,))
    assert found.error == pytest.approx(run.result().validation["localisation_error"]) and found.images == 8
    assert found.interval[0] <= found.error <= found.interval[1]
    command = ["localise", run.name, "--dataset", "d", "--root", str(space.root), "--scales", "32"]
    app([*command, "--classes", other.name, "--json", str(tmp_path / "out.json")], standalone_mode=False)
    assert f"localisation error {found.error:.2f} %" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["classes"] == other.name and written["error"] == pytest.approx(found.error)
    centre = localise(space, run.name, "d", protocol="center")
    assert keep_transfers(space, tmp_path / "kept")
    (kept,) = read_kept(tmp_path / "kept").transfers  # what was asked for with other scales is not the table's
    assert (kept.test, kept.images, kept.recipe) == ("center", 8, "ilsvrc-loc/resnet101")
    assert kept.figures["error"] == pytest.approx((centre.error, *centre.interval), abs=1e-3)
    for reference, words in [
        (other.name, "and a localiser is needed"),
        ("cifar-resnet8=x.pth", "a classifier's weights"),
    ]:
        with pytest.raises(UserError, match=words):
            localise(space, reference, "d")
    with pytest.raises(UserError, match="`resnet-pipeline localise` tests them"):
        load_folder(run.path)


@pytest.mark.slow
def test_it_begins_with_all_of_a_classifier_but_its_last_layer(located, tmp_path):
    changed = config(localisation=dataclasses.replace(SMALL, norm="frozen"))
    task = LocalisationTask(changed, located, LocalContext())
    classifier = build_classifier(changed.model, located, seed=5)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    save_weights(classifier, tmp_path / "w.safetensors", {})
    network = task.network()
    heads = {name: tensor.clone() for name, tensor in network.state_dict().items() if name[:5] in ("score", "boxes")}
    task.begin_with(network, tmp_path / "w.safetensors")
    state = network.state_dict()
    theirs = {name.replace("network.", "trunk."): tensor for name, tensor in classifier.state_dict().items()}
    assert set(state) - set(theirs) == set(heads) and len(heads) == 4
    assert all(torch.equal(state[name], theirs[name]) for name in set(state) & set(theirs))
    assert all(torch.equal(state[name], tensor) for name, tensor in heads.items())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"growth": GrowthConfig(first=16)}, "growth.first must be 0 with localisation, not 16"),
        ({"optim": OptimConfig(label_smoothing=0.1)}, "optim.label_smoothing must be 0 with localisation"),
        ({"optim": OptimConfig(layer_decay=0.5)}, "optim.layer_decay and optim.norm_eval are for classification"),
        ({"optim": OptimConfig(frozen_stages=1)}, "set localisation.norm to frozen"),
        ({"detection": DetectionConfig(), "augment": AugmentConfig(kind="whole-image", crop=32)}, "two tasks"),
    ],
)
def test_a_field_that_would_not_be_followed_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        config(**fields)


def test_what_can_t_be_is_one_line(scenes, digits):
    with pytest.raises(ConfigError, match=r"localisation.anchor_sizes must be positive numbers, not \[\]"):
        LocalisationConfig(anchor_sizes=())
    with pytest.raises(ConfigError, match=r"localisation.sampled_anchors must be at least 2, not 1"):
        LocalisationConfig(sampled_anchors=1)
    with pytest.raises(UserError, match="has no boxes"):
        LocalisationTask(config(), digits, LocalContext())
    with pytest.raises(UserError, match="no image of split 'val' of dataset 'scenes' has a box of its class"):
        LocalisationTask(config(), scenes, LocalContext())


@pytest.mark.soak
def test_400_real_images_are_learned_by_heart(by_heart):
    """Trained and tested on the central squares."""
    space, run = by_heart
    assert localise(space, run.name, "d", protocol="center").error <= 5


@pytest.mark.slow
def test_the_oracles_of_400_real_images(tmp_path):
    """ILSVRC's first 400 validation images: their own boxes are never wrong; the middle of the image often is right."""
    storage = LocalStorage(tmp_path / "d")
    pack(Source.at(archive("RESNET_PIPELINE_ILSVRC_VAL")), storage, name="d", workers=InThisProcess)
    dataset = Dataset.open(tmp_path / "d")
    samples = dataset.splits["val"]
    rows = localised(dataset, "val")
    assert len(rows) == len(samples) == 400
    truth = np.stack([samples.objects.of(int(row)).box[:1] for row in rows])
    labels = samples.labels[:, None]
    assert localisation_errors(dataset, "val", labels, truth).mean() == 0
    size = np.stack([samples.width, samples.height] * 2, axis=1)
    wrong = [
        100 * localisation_errors(dataset, "val", labels, (size * np.array([m, m, 1 - m, 1 - m]))[:, None]).mean()
        for m in (0, 0.1)
    ]
    assert wrong == pytest.approx([58.0, 48.25])
