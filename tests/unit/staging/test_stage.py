from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import shutil
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.image_files import Limits
from resnet_pipeline.data.manifest import Resized
from resnet_pipeline.errors import UserError
from resnet_pipeline.progress import displayed_on
from resnet_pipeline.sources.digits import write_digits
from resnet_pipeline.staging import shard_writer
from resnet_pipeline.staging.stage import Options, Source, source_fingerprint, stage
from tests.images import jpeg
from tests.packing import InThisProcess
from tests.recording import Recording


def pixels(split, index):
    return np.array(Image.open(io.BytesIO(split.encoded(index).tobytes())).convert("RGB"))


def test_the_result_is_the_same_for_any_number_of_workers(photos, tmp_path):
    one = stage(photos, tmp_path / "one", name="photos", workers=1, options=Options(shard_bytes=100_000))
    three = stage(photos, tmp_path / "three", name="other", workers=3, options=Options(shard_bytes=100_000))
    assert one.fingerprint == three.fingerprint
    names = sorted(p.name for p in (one.path / "shards").iterdir())
    assert len(names) > 3  # several shards a split
    for name in names:
        assert (one.path / "shards" / name).read_bytes() == (three.path / "shards" / name).read_bytes()


def test_shards_are_tar_files_of_the_original_bytes(photos, tmp_path):
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, options=Options(shard_bytes=100_000))
    seen = set()
    for name, split in dataset.manifest.splits.items():
        for shard in split.shards:
            path = dataset.path / "shards" / shard.file
            assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
            assert path.stat().st_size == shard.bytes + 1024 or path.stat().st_size == shard.bytes
            with tarfile.open(path) as tar:
                members = {m.name: tar.extractfile(m).read() for m in tar}
            stems = sorted({n.split(".")[0] for n in members})
            assert len(stems) == shard.samples
            for stem in stems:
                about = json.loads(members[f"{stem}.json"])
                assert members[f"{stem}.jpg"] == (photos / about["key"]).read_bytes()
                assert dataset.classes[about["label"]] == about["class"]
                seen.add((name, about["key"]))
    assert len(seen) == 34


def test_the_index_points_at_the_images(photos, tmp_path):
    dataset = stage(photos, tmp_path / "x", name="x", workers=2)
    for split in dataset.splits.values():
        for i, key in enumerate(split.keys):
            assert split.encoded(i).tobytes() == (photos / key).read_bytes()
            with Image.open(photos / key) as image:
                assert (split.width[i], split.height[i]) == image.size
            assert dataset.classes[split.labels[i]] == key.split("/")[1]


@pytest.mark.slow
def test_statistics_are_those_of_the_pixels(digits):
    train = digits.splits["train"]
    images = np.stack([pixels(train, i) for i in range(len(train))]).astype(np.float64)
    flat = images.reshape(-1, 3)
    np.testing.assert_allclose(digits.statistics.mean_rgb, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(digits.statistics.mean_image, images.mean(0), atol=1e-3)
    basis = digits.statistics.color_basis
    # columns: unit eigenvectors of the covariance in 0..1 units, times eigenvalue, times 255
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True) / 255**2)
    np.testing.assert_allclose(np.abs(basis), np.abs(vectors * values * 255), atol=1e-4)


def test_of_grey_images_no_number_is_minus_zero(digits):
    # which of two that are 0 but for rounding is -0.0 differs between processors, and so would the fingerprint
    assert "-0.0" not in (digits.path / "manifest.json").read_text()


def test_large_images_have_the_mean_of_their_centre_crops(photos, tmp_path):
    dataset = stage(photos, tmp_path / "x", name="x", workers=1)
    assert dataset.statistics.mean_image.shape == (224, 224, 3)
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    train = dataset.splits["train"]
    crops = [np.asarray(transform(Image.fromarray(pixels(train, i)))).astype(float) for i in range(len(train))]
    assert np.abs(np.mean(crops, axis=0) - dataset.statistics.mean_image).mean() < 1


def test_refusals_are_listed_and_too_many_stop(make_folder, photos, tmp_path):
    (photos / "train/cat/broken.JPEG").write_bytes(b"x")
    with pytest.raises(UserError, match=r"broken.JPEG"):
        stage(photos, tmp_path / "x", name="x", workers=1)
    assert not (tmp_path / "x").exists()
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, max_refused=0.05)
    assert [remark.file for remark in dataset.manifest.refused] == ["train/cat/broken.JPEG"]
    assert len(dataset.splits["train"]) == 24


def test_changes_after_staging_are_noticed(photos, tmp_path):
    dataset = stage(photos, tmp_path / "x", name="x", workers=1)
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    manifest["classes"][0] = "cow"
    (dataset.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json"):
        Dataset.open(dataset.path)
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, replace=True)
    index = dataset.path / "index.parquet"
    index.write_bytes(index.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"index.parquet"):
        Dataset.open(dataset.path)


def test_a_missing_dataset_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match="resnet-pipeline stage"):
        Dataset.open(tmp_path / "nothing")


def test_a_source_that_changed_looks_different(photos):
    before = source_fingerprint(Source.at(photos))
    assert source_fingerprint(Source.at(photos)) == before
    (photos / "train/cat/new.JPEG").write_bytes(b"x")
    assert source_fingerprint(Source.at(photos)) != before


def test_the_digits_are_the_same_source_when_they_are_written_again(tmp_path):
    fingerprints = []
    for _ in range(2):
        write_digits(tmp_path / "digits")
        fingerprints.append(source_fingerprint(Source.at(tmp_path / "digits")))
        shutil.rmtree(tmp_path / "digits")
    assert fingerprints[0] == fingerprints[1]


def test_training_samples_are_dealt_out_to_the_shards(photos, tmp_path):
    """A block of shards holds every class: what an order shuffled within blocks relies on."""
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, options=Options(shard_bytes=60_000))
    train = dataset.splits["train"]
    count = len(train.shards)
    assert count > 3
    in_order = sorted(train.keys)
    for number in range(count):
        mine = [key for i, key in enumerate(train.keys) if train.shard_of(i) == train.shards[number]]
        assert mine == in_order[number::count]


@pytest.mark.slow
def test_staging_stops_as_soon_as_too_many_are_refused(make_folder, tmp_path):
    """Of 2,000 files the first hundreds are enough to know."""
    rubbish = {f"train/{label}/{i:04d}.JPEG": b"rubbish" for label in "ab" for i in range(1000)}
    folder = make_folder(rubbish)
    display = Recording()
    refused = pytest.raises(UserError, match=r"of 2000 files of .* can't be used, more than the allowed 1.0%")
    with refused, displayed_on(display):
        stage(folder, tmp_path / "x", name="x", workers=2, options=Options(shard_bytes=10**6))
    assert all(at.reached < 1000 for at in display.shown) and display.ended == ["staging x"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.slow
def test_larger_images_are_made_smaller_where_asked(photos, tmp_path):
    plain = stage(photos, tmp_path / "plain", name="x", workers=1)
    small = stage(photos, tmp_path / "small", name="x", workers=1, options=Options(max_shorter_side=300))
    count = 0
    for name, split in small.splits.items():
        before = plain.splits[name]
        for i in range(len(split)):
            size, original = (split.width[i], split.height[i]), (before.width[i], before.height[i])
            assert Image.open(io.BytesIO(split.encoded(i).tobytes())).size == size
            if min(original) <= 300:
                assert split.encoded(i).tobytes() == before.encoded(i).tobytes()
                continue
            count += 1
            assert min(size) == 300
            assert size[0] / size[1] == pytest.approx(original[0] / original[1], rel=0.01)
            theirs = Image.fromarray(pixels(before, i)).resize(size, Image.Resampling.LANCZOS)
            assert np.abs(pixels(split, i).astype(int) - np.asarray(theirs)).mean() < 1.5
    assert 0 < count < 34
    assert small.manifest.resized == Resized(max_shorter_side=300, quality=95, images=count)
    assert small.fingerprint != plain.fingerprint


def test_progress_ends_with_all_and_counts_what_was_done_before(photos, tmp_path):
    display = Recording()
    with displayed_on(display):
        stage(photos, tmp_path / "x", name="x", workers=2)
    last, seen = display.shown[-1], [at.reached for at in display.shown]
    assert last[:4] == ("staging x", 34, 34, "images") and last.detail.endswith("MB/s  0 refused")
    assert seen == sorted(seen) and display.ended == ["staging x"]


@pytest.mark.parametrize("size", [0, 1, 511, 130_000, 8 * 2**30 - 1])
def test_headers_are_those_of_tarfile(size):
    info = tarfile.TarInfo("00000012.jpg")
    info.size, info.mode = size, 0o644
    assert shard_writer._header("00000012.jpg", size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_another_white_is_an_option_that_the_manifest_keeps(tmp_path):
    deep = np.linspace(0, 4095, 40 * 60).reshape(40, 60).astype(np.uint16)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / "source" / split / label
            folder.mkdir(parents=True)
            Image.fromarray(deep).save(folder / "1.png")
    plain = stage(tmp_path / "source", tmp_path / "plain", name="x", workers=1)
    white = stage(tmp_path / "source", tmp_path / "white", name="x", workers=1, options=Options(max_value=4095))
    assert pixels(plain.splits["train"], 0).max() == 16 and pixels(white.splits["train"], 0).max() == 255
    assert plain.manifest.max_value is None and white.manifest.max_value == 4095


def test_an_image_beyond_the_limits_is_refused_by_name(photos, tmp_path):
    sizes = {path: path.stat().st_size for path in photos.rglob("*.JPEG")}
    largest = max(sizes, key=sizes.get)
    options = Options(limits=Limits(bytes=sizes[largest] - 1))
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, options=options, max_refused=0.5)
    (refused,) = dataset.manifest.refused
    assert refused.file == largest.relative_to(photos).as_posix() and "MB" in refused.reason


def small(make_folder, *names, **tables):
    return make_folder({name: jpeg(20, 30, seed=seed) for seed, name in enumerate(names)} | tables)


def staged(caplog, folder, target, **options):
    with caplog.at_level(logging.INFO, "resnet_pipeline"):
        return stage(folder, target, name="x", workers=InThisProcess, **options)


def test_the_log_has_an_account_of_the_files(make_folder, tmp_path, caplog):
    names = [f"{split}/{label}/{i}.JPEG" for split in ("train", "val") for label in "ab" for i in range(3)]
    folder = small(make_folder, *names, "train/a/.x", "Thumbs.db", **{"notes.txt": b"", "train/b/bad.JPEG": b"x"})
    dataset = staged(caplog, folder, tmp_path / "x", max_refused=0.5)
    said = [record.getMessage() for record in caplog.records if record.name.endswith("staging.account")]
    assert said == [
        "dataset x: 16 files found = 12 packed + 1 refused + 2 hidden + 1 ignored",
        "  refused: train/b/bad.JPEG, no image format that is read here (JPEG, PNG, BMP, GIF, PPM, TIFF, WEBP)",
        "  ignored: notes.txt, no image, by its name",
    ]
    manifest = dataset.manifest
    assert manifest.account() == {"packed": 12, "refused": 1, "hidden": 2, "ignored": 1}
    assert [item.file for item in (*manifest.hidden, *manifest.ignored)] == ["Thumbs.db", "train/a/.x", "notes.txt"]
    for left in ("Thumbs.db", "train/a/.x", "notes.txt"):
        (folder / left).unlink()
    clean = staged(caplog, folder, tmp_path / "y", max_refused=0.5)
    assert clean.fingerprint == dataset.fingerprint and b"hidden" not in clean.manifest.to_bytes()


def test_a_dataset_that_lost_its_validation_split_says_so(make_folder, tmp_path, caplog):
    folder = small(make_folder, "train/a/0.JPEG", "train/b/0.JPEG", "val/0.JPEG")
    dataset = staged(caplog, folder, tmp_path / "x")
    assert set(dataset.splits) == {"train"}
    assert "ignored: val/0.JPEG" in caplog.text and "no validation split" in caplog.text and "--holdout" in caplog.text


def test_a_validation_set_alone_is_staged_for_testing(make_folder, tmp_path, caplog):
    tables = {"val.csv": b"x1,b\nx2,a\n", "synset_words.txt": b"c third\nb second\na first\n"}
    dataset = staged(caplog, small(make_folder, "val/x1.JPEG", "val/x2.JPEG", **tables), tmp_path / "x")
    assert dataset.eval_split == "val" and dataset.splits["val"].labels.tolist() == [1, 2]
    assert dataset.classes == ["c", "b", "a"] and "for testing alone" in caplog.text
    assert dataset.statistics.mean_image.shape == (20, 30, 3)


def test_images_across_splits_and_under_two_classes_are_reported(make_folder, tmp_path, caplog):
    names = [f"{split}/{label}/{i}.JPEG" for split in ("train", "val") for label in "ab" for i in range(2)]
    folder = small(make_folder, *names)
    (folder / "val/a/0.JPEG").write_bytes((folder / "train/a/1.JPEG").read_bytes())
    (folder / "train/b/0.JPEG").write_bytes((folder / "train/a/0.JPEG").read_bytes())
    staged(caplog, folder, tmp_path / "x")
    assert "1 images are in more than one split, as train/a/1.JPEG and val/a/0.JPEG" in caplog.text
    assert "1 images are under more than one class, as train/a/0.JPEG and train/b/0.JPEG" in caplog.text


@pytest.mark.slow
def test_a_script_that_stages_without_a_guard_is_told_so(photos, tmp_path, monkeypatch):
    script = tmp_path / "script.py"  # which the worker process imports, and so calls once more
    call = f"stage(Path({str(photos)!r}), Path({str(tmp_path / 'x')!r}), name='x', workers=1)"
    script.write_text(f"from pathlib import Path\nfrom resnet_pipeline.staging.stage import stage\n{call}\n")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    with pytest.raises(UserError, match=r"can't start.* below `if __name__ == \"__main__\":`"):
        stage(photos, tmp_path / "x", name="x", workers=1)
    assert not (tmp_path / "x").exists()


def test_a_process_that_is_still_importing_its_script_stages_nothing(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match=r"while a worker process imports the script: .*__main__"):
        stage(photos, tmp_path / "x", name="x", workers=1)
    assert not (tmp_path / "x").exists()
