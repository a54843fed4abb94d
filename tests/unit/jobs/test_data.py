from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pipeline import cli
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.data import Spread, _examples, dataset_stats, show_dataset, verify_dataset
from resnet_pipeline.progress import displayed_on
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.staging.stage import stage
from resnet_pipeline.workspace import Workspace
from tests.images import jpeg
from tests.packing import InThisProcess
from tests.recording import Recording


@pytest.fixture
def copied(digits, tmp_path):
    return Dataset.open(shutil.copytree(digits.path, tmp_path / "work" / "datasets" / "digits"))


def overwrite(dataset, split, sample, data):
    """Write over the first bytes of a sample in its shard."""
    samples = dataset.splits[split]
    shard = dataset.path / "shards" / samples.shard_of(sample)
    offset = shard.read_bytes().index(samples.encoded(sample).tobytes())
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("command", ["verify", "show", "stats"])
def test_each_command_has_help_and_names_the_datasets_there_are(command, workspace, tmp_path, monkeypatch, capsys):
    for arguments, code in ((["--help"], 0), (["nothing", "--root", str(workspace.root)], 2)):
        monkeypatch.setattr(sys, "argv", ["resnet-pipeline", "data", command, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert int(ended.value.code or 0) == code
    out = capsys.readouterr()
    assert "Usage" in out.out and out.err.count("\n") == 1 and "nothing" in out.err


@pytest.mark.slow
def test_a_good_dataset_is_good(workspace, digits):
    display = Recording()
    with displayed_on(display):
        found = verify_dataset(workspace, "digits", threads=2)
    samples = sum(map(len, digits.splits.values()))
    assert found.good and found.samples == samples and found.shards == 2
    assert display.shown[-1] == ("verifying digits", samples, samples, "images", "0 bad")


@pytest.mark.slow
def test_verify_names_each_bad_shard_and_sample_and_ends_with_status_2(copied, tmp_path, monkeypatch, capsys):
    train, val = copied.splits["train"], copied.splits["val"]
    bad = {train.keys[3], train.keys[700]}
    for sample in (3, 700):
        overwrite(copied, "train", sample, b"\0" * 200)
    (copied.path / "shards" / val.shards[0]).unlink()
    report = tmp_path / "report.json"
    arguments = ["resnet-pipeline", "data", "verify", "digits", "--root", str(tmp_path / "work"), "--json", str(report)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr()
    assert ended.value.code == 2
    found = json.loads(report.read_text())
    assert not found["good"]
    assert {s["file"] for s in found["samples"]["bad"] if s["split"] == "train"} == bad
    assert len([s for s in found["samples"]["bad"] if s["split"] == "val"]) == len(val)
    reasons = {s["file"]: s["reason"] for s in found["shards"]["bad"]}
    assert "checksum" in reasons[train.shards[0]] and "No such file" in reasons[val.shards[0]]
    for name in (*bad, train.shards[0], val.shards[0]):
        assert name in out.out
    counted, fault = out.err.splitlines()
    assert counted.startswith("verifying digits  ") and f"  {2 + len(val)} bad  " in counted
    assert fault.startswith("resnet-pipeline: ") and f"{2 + len(val)} of" in fault


@pytest.mark.slow
def test_verify_sees_one_changed_byte_that_every_decoder_overlooks(copied, tmp_path):
    shard = copied.path / "shards" / copied.splits["val"].shards[0]
    with shard.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\1")
    found = verify_dataset(Workspace(tmp_path / "work"), "digits")
    assert [shard.file for shard in found.bad_shards] == [shard.name] and not found.bad_samples


@pytest.mark.slow
def test_verify_sees_a_good_image_of_another_size(copied, tmp_path):
    other = io.BytesIO()
    Image.new("RGB", (8, 4)).save(other, "JPEG")
    room = len(copied.splits["train"].encoded(9))
    assert len(other.getvalue()) <= room
    overwrite(copied, "train", 9, other.getvalue())
    (bad,) = verify_dataset(Workspace(tmp_path / "work"), "digits").bad_samples
    assert "8×4" in bad.reason and bad.file == copied.splits["train"].keys[9]


@pytest.mark.slow
def test_stats_are_those_of_the_images(workspace, digits):
    found = dataset_stats(workspace, "digits")
    for name, split in digits.splits.items():
        images = [Image.open(io.BytesIO(split.encoded(i).tobytes())) for i in range(len(split))]
        sizes = sorted(image.height for image in images)
        counted = found.splits[name]
        assert counted.images == len(images) and counted.bytes > sum(len(split.encoded(i)) for i in range(len(split)))
        assert counted.height == Spread(least=sizes[0], median=sizes[len(sizes) // 2], most=sizes[-1])
        assert counted.images_per_class.most == max(split.labels.tolist().count(label) for label in range(10))
        if name == "train":
            pixels = np.concatenate([np.asarray(image.convert("RGB")).reshape(-1, 3) for image in images]) / 255
            np.testing.assert_allclose(found.statistics.mean_rgb, pixels.mean(0) * 255, rtol=1e-5)
            values = np.linalg.eigvalsh(np.cov(pixels.T, bias=True))
            np.testing.assert_allclose(found.statistics.eigenvalues, values, atol=1e-8)


def test_what_is_shown_is_what_training_gets(digits):
    config, count = get_recipe("digits/resnet8"), len(digits.splits["train"])
    shown = list(_examples(digits, config, seed=5, epoch=1, count=6))
    options = {"augment": config.augment, "seed": 5, "batch": count, "micro_batch": count}
    with train_batches(digits, **options, start_step=1, steps=1) as batches:
        (epoch,) = batches
    for example, image, index in zip(shown, epoch.images, epoch.index, strict=False):
        assert torch.equal(torch.from_numpy(np.array(example.crop)), image)
        assert digits.splits["train"].keys[int(index)].endswith(example.caption.split("  ")[1])


@pytest.mark.slow
def test_the_sheet_is_a_png_that_depends_on_the_epoch(workspace, tmp_path):
    paths = [
        show_dataset(workspace, "digits", epoch=epoch, count=4, output=tmp_path / f"{epoch}{again}.png")
        for epoch, again in ((0, ""), (0, "again"), (1, ""))
    ]
    first, again, second = (Image.open(path).tobytes() for path in paths)
    assert first == again != second


def test_a_sheet_that_can_t_be_written_is_one_line(workspace, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.png"):
        show_dataset(workspace, "digits", output=tmp_path / "x.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        show_dataset(workspace, "digits", count=1, output=tmp_path / "file" / "x.png")


def smaller(data):
    """Return an image of three quarters of the size."""
    image, again = Image.open(io.BytesIO(data)), io.BytesIO()
    image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(again, "JPEG")
    return again.getvalue()


def test_verify_names_images_across_splits_and_under_two_classes(tmp_path):
    names = [f"{split}/{label}/{i}.JPEG" for split in ("train", "val") for label in "ab" for i in range(2)]
    contents = {name: jpeg(20, 30, seed=number) for number, name in enumerate(names)}
    contents |= {"val/a/0.JPEG": contents["train/a/1.JPEG"], "train/b/0.JPEG": contents["train/a/0.JPEG"]}
    contents["val/b/0.JPEG"] = smaller(contents["train/b/1.JPEG"])
    for name, data in contents.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(data)
    stage(tmp_path / "source", tmp_path / "work" / "datasets" / "x", name="x", workers=InThisProcess)
    found = verify_dataset(Workspace(tmp_path / "work"), "x", threads=1, near_duplicates=True)
    assert ("train/b/1.JPEG", "val/b/0.JPEG") in found.near_duplicates.split_keys
    assert "of different splits look alike, as train/" in found.near_duplicates.lines()[0]
    assert found.good and found.duplicates.split_keys == (("train/a/1.JPEG", "val/a/0.JPEG"),)
    assert found.duplicates.class_keys == (("train/a/0.JPEG", "train/b/0.JPEG"),)
