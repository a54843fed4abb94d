"""The R-CNN of the paper's appendix C: its boxes and regions against slow plain versions, and by the training loop."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.transforms.v2 import functional as transforms

from resnet_pipeline.cli.main import app
from resnet_pipeline.config import AugmentConfig, ConfigError, LocalisationConfig, RegionsConfig
from resnet_pipeline.data.whole_images import stored_images, whole_batches
from resnet_pipeline.detection import box_files, task_of
from resnet_pipeline.detection.box_files import BoxFacts, boxes_file, facts_file, kept_boxes, read_boxes
from resnet_pipeline.detection.localisation import localised
from resnet_pipeline.detection.localiser import anchor_grid, stride_of
from resnet_pipeline.detection.proposals import best_apart, find_boxes
from resnet_pipeline.detection.rcnn import RegionNetwork, rescored, windows_of
from resnet_pipeline.detection.regions import RegionTask, drawn_region
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.keep_transfers import keep_transfers
from resnet_pipeline.jobs.localise import localise
from resnet_pipeline.jobs.proposals import Proposals, keep_proposals, proposed, proposer_of
from resnet_pipeline.models import Normalize, build_model
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.report.kept import read_kept
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.unit.detection.conftest import COLORS
from tests.unit.detection.test_localisation import SMALL, config, localiser, maps
from tests.unit.detection.test_task import Stopped

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def region_config(steps: int = 4, **fields):
    options = {"norm": "batch", "proposals": 20, "validated": 5} | fields.pop("regions", {})
    return config(
        steps,
        localisation=None,
        recipe="ilsvrc-loc/rcnn-resnet101",
        regions=RegionsConfig(**options),
        augment=AugmentConfig(kind="region", crop=24),
        **fields,
    )


def network(seed: int = 0, classes: int = 2) -> RegionNetwork:
    torch.manual_seed(seed)
    made = RegionNetwork(
        Normalize(torch.tensor([120.0, 110, 100])),
        build_model("cifar-resnet8"),
        RegionsConfig(norm="batch"),
        classes=classes,
    )
    for layer in (made.scores, made.boxes):
        torch.nn.init.normal_(layer.weight, std=0.03)
        torch.nn.init.normal_(layer.bias, std=0.3)
    return made.eval()


def first_stage():
    """Return a localiser whose boxes are not far from their anchors."""
    made = localiser(classes=2)
    made.boxes.weight.data *= 0.05
    return made


def iou(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - common)


def apart(boxes: list, scores: list, count: int) -> list:
    """Return the best boxes, none of which overlaps a better one by more than 0.7: box after box."""
    kept: list = []
    for number in sorted(range(len(boxes)), key=lambda n: -scores[n]):
        box = boxes[number]
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            continue
        if len(kept) < count and all(iou(box, other[:4]) <= 0.7 for other in kept):
            kept.append([*box, scores[number]])
    return kept


def test_boxes_that_overlap_a_better_one_are_left_out():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 40, (300, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 30, (300, 2))], axis=1).astype(np.float32)
    scores = rng.normal(size=300).astype(np.float32)
    found = best_apart(torch.from_numpy(boxes), torch.from_numpy(scores), 50).numpy()
    np.testing.assert_allclose(found, apart(boxes.tolist(), scores.tolist(), 50), rtol=1e-6)
    assert len(found) == 50 and (boxes[:, 2:] - boxes[:, :2]).min() < 1


@torch.inference_mode()
def test_the_localiser_s_best_boxes_are_those_of_the_dense_convolutions_at_all_sizes(located):
    made, sides = first_stage(), (32, 40)
    rows, classes = np.array([5, 0, 3]), np.array([[1, 0], [0, 1], [1, 0]])
    device = torch.device("cpu")
    found = find_boxes(made, located, "val", rows, classes, sides=sides, count=12, batch_size=2, device=device)
    assert found.shape == (3, 2, 12, 5) and found.dtype == np.float32 and (found[..., 4] > -np.inf).all()
    samples = located.splits["val"]
    for number, row in enumerate(rows):
        seen: dict[int, list] = {0: [], 1: []}
        with whole_batches(located, split="val", sides=sides, indices=rows[[number]], batch_pixels=2**20) as batches:
            for batch in batches:
                scores, deltas = maps(made, batch.images)
                high, wide = batch.images.shape[1:3]
                grid = anchor_grid(SMALL, scores.shape[1:3], stride_of(made.trunk))
                for place in (0, 1):
                    label = int(classes[number, place])
                    boxes = BoxCoder((1.0, 1, 1, 1)).decode_single(deltas[0, ..., label, :].reshape(-1, 4), grid)
                    boxes = boxes.clamp(min=0).minimum(torch.tensor([wide, high] * 2))
                    boxes *= torch.tensor([samples.width[row] / wide, samples.height[row] / high] * 2)
                    seen[place] += zip(boxes.tolist(), scores[0, ..., label].flatten().tolist(), strict=True)
        for place in (0, 1):
            boxes, scores = zip(*seen[place], strict=True)
            np.testing.assert_allclose(found[number, place], apart(list(boxes), list(scores), 12), rtol=1e-3, atol=1e-2)
    made.boxes.weight.data *= 0
    made.boxes.bias.data[::4] = 1e3  # all boxes are far on the right
    (lost,) = find_boxes(made, located, "val", rows[:1], classes[:1], sides=sides, count=3, batch_size=2, device=device)
    assert (lost[:, 0, :4] == [0, 0, 48, 40]).all() and (lost[:, 1:, 4] == -np.inf).all()


def test_boxes_that_were_found_are_kept_part_by_part(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(box_files, "PART_IMAGES", 4)
    facts = BoxFacts(weights_sha256="a", dataset_fingerprint="b", split="val", classes="c", sides=(32,), count=3)
    whole = np.random.default_rng(0).normal(size=(10, 1, 3, 5)).astype(np.float32)
    asked: list[slice] = []

    def find(part: slice) -> np.ndarray:
        asked.append(part)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole[part]

    path = tmp_path / facts.name
    with pytest.raises(KeyboardInterrupt):
        kept_boxes(path, facts, 10, find)
    assert not path.exists()
    boxes, written = kept_boxes(path, facts, 10, find)
    assert [part.start for part in asked] == [0, 4, 4, 8], "the first part is not found again"
    assert np.array_equal(boxes, whole) and isinstance(boxes, np.memmap) and written.same(facts)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".lock", ".npy"]
    assert np.array_equal(kept_boxes(path, facts, 10, find)[0], whole) and len(asked) == 4
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert np.array_equal(kept_boxes(path, facts, 10, find)[0], whole) and len(asked) == 7
    assert "its SHA-256 differs: found again" in caplog.text
    other = dataclasses.replace(facts, weights_sha256="other")
    assert other.name != facts.name
    with pytest.raises(UserError, match="boxes of another localiser or of other images"):
        read_boxes(path, other)


def test_regions_are_on_objects_or_not_as_they_overlap():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 60, (90, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 40, (90, 2))], axis=1)
    objects = np.array([[10.0, 12, 40, 44], [50, 5, 70, 30]])
    size = (90, 80)
    windows = windows_of(np.concatenate([boxes, objects]), size)
    assert (windows[:, 2:] >= 1).all() and (windows[:, 1] + windows[:, 3] <= 90).all()
    assert (windows[:, 0] + windows[:, 2] <= 80).all()
    regions = [[x, y, x + w, y + h] for y, x, h, w in windows.tolist()]
    on = [max(iou(region, each) for each in objects) >= 0.5 for region in regions]
    assert 4 < sum(on) < 80
    for positive in (True, False):
        expected = {tuple(windows[n].tolist()) for n in range(len(on)) if on[n] == positive}
        drawn = [drawn_region(boxes, objects, size, positive=positive, draw=d) for d in np.arange(0, 1, 0.002)]
        assert {tuple(window.tolist()) for window, _, _ in drawn} == expected
        for window, is_on, wanted in drawn:
            assert is_on == positive
            y, x, h, w = window.tolist()
            box = CODER.decode_single(torch.from_numpy(wanted)[None], torch.tensor([[x, y, x + w, y + h]]).float())[0]
            nearest = max(objects, key=lambda each: iou([x, y, x + w, y + h], each))
            np.testing.assert_allclose(box, nearest if positive else [x, y, x + w, y + h], atol=1e-3)
    _, is_on, _ = drawn_region(objects, objects, size, positive=False, draw=0.9)
    assert is_on, "an image without others gives what it has"
    assert windows_of(np.array([[95.0, 85, 99, 99], [3, 3, 3, 3]]), size).tolist() == [[79, 89, 1, 1], [3, 3, 1, 1]]


def stocked(folder: Path, dataset, made, count: int = 20, **changed) -> RegionsConfig:
    """Write a localiser's boxes of both splits into a run's folder, as `proposed` and `Proposals.keep` do."""
    for split in ("train", "val"):
        rows = localised(dataset, split)
        facts = BoxFacts(
            **{"weights_sha256": "0" * 64, "dataset_fingerprint": dataset.fingerprint, "split": split, "classes": "",
               "sides": (32,), "count": count} | changed
        )  # fmt: skip
        labels = dataset.splits[split].labels[rows][:, None].astype(np.int64)
        kept_boxes(
            boxes_file(folder, split), facts, len(rows),
            lambda part, rows=rows, split=split, labels=labels: find_boxes(
                made, dataset, split, rows[part], labels[part], sides=(32,), count=count, batch_size=4,
                device=torch.device("cpu"),
            ),
        )  # fmt: skip
    return RegionsConfig(norm="batch", proposals=count, validated=5, localiser="0" * 64)


def test_a_batch_has_one_region_in_four_on_an_object_and_knows_where_that_is(located, tmp_path):
    regions = stocked(tmp_path, located, first_stage())
    changed = dataclasses.replace(region_config(), regions=regions)
    task = RegionTask(changed, located, LocalContext(), folder=tmp_path)
    seen: set[int] = set()
    near, count = 0, 0
    with task.batches(0, 6) as batches:
        for batch in batches:
            assert batch.images.shape == (4, 24, 24, 3) and batch.positive.tolist() == [1, 0, 0, 0]
            seen |= set(batch.index.tolist())
            image, label = batch.images[0], int(batch.labels[0])
            assert located.splits["train"].labels[batch.index[0]] == label
            box = CODER.decode_single(batch.wanted[:1].float(), torch.tensor([[0.0, 0, 24, 24]]))[0]
            bright = (image.float() - torch.tensor(COLORS[label])).abs().max(dim=2).values < 60
            rows, columns = bright.any(dim=1).nonzero()[:, 0], bright.any(dim=0).nonzero()[:, 0]
            around = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
            near += int(torch.allclose(box.clamp(0, 24), around, atol=2.6))
            count += 1
            assert not batch.wanted[1:].any()
    assert count == 12 and near >= 11, near
    unannotated = [i for i, key in enumerate(located.splits["train"].keys) if "n00000000_99" in key]
    assert len(seen) == 16 and not seen & set(unannotated)


@torch.inference_mode()
def test_each_region_gets_the_score_and_box_of_its_class():
    made = network(classes=5)
    images, classes = torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8), torch.tensor([4, 0, 2])
    logits, deltas = made(images, classes)
    pooled = F.adaptive_avg_pool2d(made.trunk.features(made.normalize(images)), 1).flatten(1)
    for number, label in enumerate(classes.tolist()):
        score = made.scores.weight[label] @ pooled[number] + made.scores.bias[label]
        rows = slice(4 * label, 4 * label + 4)
        torch.testing.assert_close(logits[number], score, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            deltas[number], made.boxes.weight[rows] @ pooled[number] + made.boxes.bias[rows], rtol=1e-4, atol=1e-4
        )


@torch.inference_mode()
def test_the_likeliest_region_gives_the_box_of_an_ensemble(located):
    """Regions are cut, warped and classified one by one; two networks' probabilities and deltas are averaged."""
    networks = [network(0), network(1)]
    rows, classes = np.array([6, 1]), np.array([[0, 1], [1, 0]])
    device = torch.device("cpu")
    boxes = find_boxes(first_stage(), located, "val", rows, classes, sides=(32,), count=9, batch_size=2, device=device)
    boxes[0, 1, 5:, 4] = -np.inf  # there were fewer
    boxes[0, 1, 5:, :4] = 0
    found, likely = rescored(
        networks, located, "val", rows, classes, boxes, crop=24, batch_size=4, device=device, backend="torch"
    )
    with stored_images(located, split="val", indices=rows, backend="torch") as stored:
        pictures = [image for _, image in stored]
    for image in (0, 1):
        for place in (0, 1):
            best = None
            for left, top, right, bottom, score in boxes[image, place].tolist():
                if score == -np.inf:
                    continue
                x, y = round(left), round(top)
                w, h = max(round(right) - x, 1), max(round(bottom) - y, 1)
                part = pictures[image][y : y + h, x : x + w].permute(2, 0, 1)
                warped = transforms.resize(part, [24, 24], antialias=True).permute(1, 2, 0)[None]
                said = [each(warped, torch.tensor([classes[image, place]])) for each in networks]
                chance = sum(float(logit.sigmoid()) for logit, _ in said) / 2
                delta = (said[0][1] + said[1][1]) / 2
                box = CODER.decode_single(delta, torch.tensor([[x, y, x + w, y + h]]).float())[0]
                box = box.clamp(min=0).minimum(torch.tensor([48.0, 40, 48, 40]))
                if best is None or chance > best[0]:
                    best = (chance, box)
            assert likely[image, place] == pytest.approx(best[0], abs=1e-4)
            np.testing.assert_allclose(found[image, place], best[1], atol=0.05)


@pytest.mark.slow
def test_it_is_trained_by_the_loop_and_resumes_to_the_bit(located, tmp_path):
    changed = region_config(steps=6, regions={"localiser": "0" * 64})
    whole, stopped = (RunDirectory.create(tmp_path / name, changed, located.facts) for name in ("whole", "stopped"))
    for run in (whole, stopped):
        stocked(run.path, located, first_stage())
    assert train(whole, located, LocalContext(), task=task_of(changed, located, LocalContext(), run=whole))
    context = Stopped(3)
    assert not train(stopped, located, context, task=task_of(changed, located, context, run=stopped))
    torch.manual_seed(999)  # whatever happened meanwhile
    assert train(stopped, located, LocalContext(), task=task_of(changed, located, LocalContext(), run=stopped))
    assert stopped.result().weights_sha256 == whole.result().weights_sha256
    assert set(whole.result().validation) == {"localisation_error", "images"}


def test_workers_on_other_machines_get_the_boxes_from_the_run_s_home(located, tmp_path):
    regions = stocked(tmp_path / "localiser", located, first_stage())
    changed, home = dataclasses.replace(region_config(), regions=regions), LocalStorage(tmp_path / "home")
    files = {split: boxes_file(tmp_path / "localiser", split) for split in ("train", "val")}
    run = RunDirectory.create(tmp_path / "here", changed, located.facts, home=home)
    Proposals("localiser", files).keep(run)
    there = run.elsewhere(tmp_path / "there" / run.name)
    task = task_of(changed, located, LocalContext(), run=there)
    here = RegionTask(changed, located, LocalContext(), folder=tmp_path / "localiser")
    with task.batches(0, 1) as found, here.batches(0, 1) as expected:
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.wanted, other.wanted)
    keep_proposals(None, there, ("train", "val"))
    with pytest.raises(UserError, match="the boxes that it is to be trained on are not in"):
        keep_proposals(None, RunDirectory.create(tmp_path / "alone", changed, located.facts), ("train", "val"))


@pytest.fixture
def space(located, tmp_path) -> Workspace:
    made = Workspace(tmp_path / "work")
    Path(made.data).mkdir(parents=True)
    (Path(made.data) / "d").symlink_to(located.path)
    return made


@pytest.fixture
def poor(located, space) -> RunDirectory:
    """Return a localiser of two steps, whose boxes are little better than its anchors."""
    changed = config(steps=2, recipe="ilsvrc-loc/resnet101")
    run = RunDirectory.create(space.runs, changed, located.facts)
    assert train(run, located, LocalContext(), task=task_of(changed, located, LocalContext()))
    return run


@pytest.mark.slow
def test_it_mends_the_boxes_of_a_poor_localiser(located, space, poor, tmp_path, capsys):
    before = localise(space, poor.name, "d").error
    changed, boxes = proposed(space, region_config(steps=200, bn_images=64), "d", poor.name)
    run = RunDirectory.create(space.runs, changed, located.facts)
    boxes.keep(run)
    assert boxes_file(run.path, "train").samefile(boxes.files["train"]), "on one disk it is there once"
    assert train(run, located, LocalContext(), task=task_of(changed, located, LocalContext(), run=run))
    found = localise(space, poor.name, "d", rcnns=[run.name])
    assert found.error <= before - 25, (found.error, before)
    command = ["localise", poor.name, "--rcnn", run.name, "--dataset", "d", "--root", str(space.root)]
    app([*command, "--json", str(tmp_path / "out.json")], standalone_mode=False)
    assert f"localisation error {found.error:.2f} %" in (said := capsys.readouterr().out) and "by R-CNN" in said
    assert json.loads((tmp_path / "out.json").read_text())["rcnns"] == [str(run.path)]
    assert keep_transfers(space, tmp_path / "kept")
    kept = {each.recipe: each for each in read_kept(tmp_path / "kept").transfers}
    assert kept["ilsvrc-loc/rcnn-resnet101"].figures["error"][0] == pytest.approx(found.error, abs=1e-3)
    assert f"--proposals {poor.name}" in kept["ilsvrc-loc/rcnn-resnet101"].command
    assert "regions.localiser" not in kept["ilsvrc-loc/rcnn-resnet101"].command
    assert proposer_of(run) == poor.name
    again = [run.name, run.name]  # an ensemble of itself, with the boxes of one localiser twice
    twice = localise(space, [poor.name, poor.name], "d", rcnns=again)
    assert twice.error == found.error and twice.rcnns == (str(run.path), str(run.path))
    assert len(keep_transfers(space, tmp_path / "kept")) == 3  # the localiser's, the R-CNN's and the ensemble's
    (ensemble,) = [each for each in read_kept(tmp_path / "kept").transfers if each.members]
    assert ensemble.members == (run.name, run.name) and ensemble.figures["error"][0] == pytest.approx(found.error)
    assert (
        ensemble.command
        == f"resnet-pipeline localise {poor.name} {poor.name} --rcnn {run.name} --rcnn {run.name} --dataset d"
    )
    for references, options, words in [
        (run.name, {}, "is an R-CNN .*: name the localiser, and it with --rcnn"),
        (run.name, {"rcnns": [run.name]}, "is an R-CNN .*: name the localiser, and it with --rcnn"),
        (poor.name, {"rcnns": [poor.name]}, "is no R-CNN"),
        ([poor.name, poor.name], {}, "2 localisers are tested together by an R-CNN alone"),
        (poor.name, {"rcnns": [run.name], "protocol": "center"}, "leave out --protocol center"),
    ]:
        with pytest.raises(UserError, match=words):
            localise(space, references, "d", **options)
    with pytest.raises(UserError, match=r"is an R-CNN .*: name the localiser"):
        proposed(space, region_config(), "d", run.name)
    other = config(steps=2, seed=5, recipe="ilsvrc-loc/resnet101")
    another = RunDirectory.create(space.runs, other, located.facts)
    assert train(another, located, LocalContext(), task=task_of(other, located, LocalContext()))
    with pytest.raises(UserError, match="was trained on the boxes of another localiser"):
        localise(space, another.name, "d", rcnns=[run.name])


@pytest.mark.slow
def test_the_command_trains_it_on_a_localiser_s_boxes(space, poor, tmp_path):
    fields = [
        "model.name=cifar-resnet8", "model.mean=channel", "regions.norm=batch", "regions.proposals=20",
        "augment.crop=24", "views.crop=32", "views.resize=32", "views.scales=[32]", "batch=8", "micro_batch=4",
        "steps=2", "schedule.boundaries=[]",
    ]  # fmt: skip
    command = ["train", "ilsvrc-loc/rcnn-resnet50", "--dataset", "d", "--root", str(space.root), "--launcher", "local"]
    command += ["--json", str(tmp_path / "out.json"), *(word for field in fields for word in ("--set", field))]
    with pytest.raises(UserError, match=re.escape("is trained on a localiser's boxes: name its run with --proposals")):
        app(command, standalone_mode=False)
    app([*command, "--proposals", poor.name], standalone_mode=False)
    first = json.loads((tmp_path / "out.json").read_text())
    digest = poor.result().weights_sha256
    app([*command, "--set", f"regions.localiser={digest}"], standalone_mode=False)  # as `runs` says how to resume
    again = json.loads((tmp_path / "out.json").read_text())
    assert again["reused"] and again["run"] == first["run"]
    with pytest.raises(UserError, match="the boxes that it is to be trained on are not in"):
        app([*command, "--seed", "1", "--set", f"regions.localiser={digest}"], standalone_mode=False)
    with pytest.raises(UserError, match="digits/resnet8 is trained on no boxes of a localiser"):
        proposed(space, get_recipe("digits/resnet8"), "d", poor.name)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weights_sha256": "1" * 64}, "has boxes of another localiser than the run is of"),
        ({"dataset_fingerprint": "f"}, "has boxes of other images than train of dataset 'd'"),
        ({"split": "val"}, "has boxes of other images than train of dataset 'd'"),
    ],
)
def test_boxes_of_something_else_are_refused(located, tmp_path, changed, words):
    regions = stocked(tmp_path, located, first_stage(), **changed)
    with pytest.raises(UserError, match=words):
        RegionTask(dataclasses.replace(region_config(), regions=regions), located, LocalContext(), folder=tmp_path)


def test_what_is_no_file_of_boxes_is_one_line(located, tmp_path):
    regions = stocked(tmp_path, located, first_stage())
    changed = dataclasses.replace(region_config(), regions=dataclasses.replace(regions, proposals=30))
    with pytest.raises(UserError, match="has not 30 boxes for each of 16 images"):
        RegionTask(changed, located, LocalContext(), folder=tmp_path)
    boxes_file(tmp_path, "train").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"proposals/train\.npy can't be read"):
        RegionTask(changed, located, LocalContext(), folder=tmp_path)
    facts_file(boxes_file(tmp_path, "train")).unlink()
    with pytest.raises(UserError, match=r"proposals/train\.npy can't be read"):
        RegionTask(changed, located, LocalContext(), folder=tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"regions": {"localiser": "run"}}, "regions.localiser must be a SHA-256, 64 digits, not 'run'"),
        ({"regions": {"proposals": 4}}, r"regions.validated must lie between 1 and regions.proposals \(4\), not 5"),
        ({"train_share": 0.5}, "train_share can't be set with regions"),
    ],
)
def test_a_field_that_would_not_be_followed_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        region_config(**fields)


def test_regions_are_a_task_of_their_own():
    with pytest.raises(ConfigError, match="localisation and regions are two tasks"):
        dataclasses.replace(region_config(), localisation=LocalisationConfig())
    with pytest.raises(ConfigError, match=r"augment\.kind is scale-crop: region goes with regions"):
        config(regions=RegionsConfig(), localisation=None)
