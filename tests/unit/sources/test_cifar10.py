"""The original CIFAR-10 archives, in miniature."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.sources import cifar10
from resnet_pipeline.sources.layouts import read_catalogue
from resnet_pipeline.staging.stage import Options, Source, stage
from resnet_pipeline.storage.local import LocalStorage
from tests.unit.sources.archives_made import (
    CIFAR_CLASSES,
    cifar10_pixels,
    python2_pickle,
    tar_of,
    write_cifar10_binary,
    write_cifar10_python,
)

OTHER = Options(check_md5=False)


@pytest.fixture(scope="module")
def batches():
    return cifar10_pixels()


def image(split, index):
    return Image.open(io.BytesIO(split.encoded(index).tobytes()))


def catalogue(path):
    source = Source.at(path)
    return read_catalogue(source.storage, source.name, check_md5=False)


def test_both_versions_give_the_same_dataset_pixel_for_pixel(batches, tmp_path):
    write = (write_cifar10_python, write_cifar10_binary)
    one, two = (
        stage(make(tmp_path, batches), tmp_path / "datasets" / make.__name__, name="x", options=OTHER, workers=1)
        for make in write
    )
    assert one.fingerprint == two.fingerprint
    assert one.classes == CIFAR_CLASSES
    assert {name: len(split) for name, split in one.splits.items()} == {"train": 100, "test": 20}
    assert one.splits["train"].keys[21] == "train/automobile/data_batch_2-00001.png"
    train = np.concatenate([batches[f"data_batch_{n}"][0] for n in range(1, 6)]).reshape(-1, 3, 32, 32)
    for name, pixels in (("train", train), ("test", batches["test_batch"][0].reshape(-1, 3, 32, 32))):
        split = one.splits[name]
        assert split.labels.tolist() == [i % 10 for i in range(len(split))]
        for i in range(len(split)):
            assert image(split, i).format == "PNG"
            np.testing.assert_array_equal(np.asarray(image(split, i)).transpose(2, 0, 1), pixels[i])
    assert one.manifest.converted == ()
    assert one.statistics.mean_image.shape == (32, 32, 3)
    np.testing.assert_allclose(one.statistics.mean_image, train.mean(0).transpose(1, 2, 0), atol=1e-3)


def test_an_archive_is_read_as_torchvision_reads_it(batches, tmp_path, monkeypatch):
    archive = write_cifar10_python(tmp_path, batches)
    ours = stage(archive, tmp_path / "datasets" / "x", name="x", options=OTHER, workers=1)
    torchvision.datasets.utils.extract_archive(str(archive), str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    for train, split in ((True, "train"), (False, "test")):
        theirs = torchvision.datasets.CIFAR10(str(tmp_path), train=train)
        assert theirs.classes == ours.classes and len(theirs) == len(ours.splits[split])
        for i, (picture, label) in enumerate(theirs):
            assert label == ours.splits[split].labels[i]
            np.testing.assert_array_equal(np.asarray(image(ours.splits[split], i)), np.asarray(picture))


def test_the_folder_of_the_archive_and_the_unpacked_one_are_sources_too(batches, tmp_path):
    (tmp_path / "a").mkdir()
    archive = write_cifar10_python(tmp_path / "a", batches)
    torchvision.datasets.utils.extract_archive(str(archive), str(tmp_path / "b"))
    found = [catalogue(path) for path in (archive, archive.parent, tmp_path / "b", tmp_path / "b/cifar-10-batches-py")]
    for other in found[1:]:
        assert [e.key for e in other.entries] == [e.key for e in found[0].entries]
        assert list(other.read(other.entries[:3])) == list(found[0].read(found[0].entries[:3]))


def test_the_paper_s_holdout_is_a_function_of_the_names(batches, tmp_path):
    options = Options(check_md5=False, holdout=30)
    archives = (write_cifar10_python(tmp_path, batches), write_cifar10_binary(tmp_path, batches))
    one, two = (stage(a, tmp_path / "datasets" / a.name, name="x", options=options, workers=1) for a in archives)
    assert one.fingerprint == two.fingerprint
    assert {name: len(split) for name, split in one.splits.items()} == {"train": 70, "val": 30, "test": 20}
    names = sorted(catalogue(archives[0]).entries, key=lambda e: hashlib.sha256(e.key.encode()).digest())
    held = {e.key.replace("train/", "val/") for e in [e for e in names if e.split == "train"][:30]}
    assert set(one.splits["val"].keys) == held
    assert not held & {key.replace("train/", "val/") for key in one.splits["train"].keys}


@pytest.mark.parametrize(("count", "named"), [(100, "only 100 training images"), (99, "without training images")])
def test_a_holdout_that_is_too_large(batches, tmp_path, count, named):
    archive = write_cifar10_python(tmp_path, batches)
    with pytest.raises(UserError, match=named):
        stage(archive, tmp_path / "x", name="x", options=Options(check_md5=False, holdout=count), workers=1)


def test_a_holdout_beside_a_val_split(photos, tmp_path):
    with pytest.raises(UserError, match="val split of its own"):
        stage(photos, tmp_path / "x", name="x", options=Options(holdout=3), workers=1)


def test_archives_are_compared_with_their_published_md5s(batches, tmp_path, monkeypatch):
    archive = write_cifar10_binary(tmp_path, batches)
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz has MD5 .*--no-md5"):
        stage(archive, tmp_path / "datasets" / "x", name="x", workers=1)
    right = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "MD5", {cifar10.BINARY: right})
    assert read_catalogue(LocalStorage(tmp_path)).md5 == {cifar10.BINARY: right}


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


def test_a_hostile_pickle_is_refused_and_does_nothing(batches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for payload in (pickle.dumps(Hostile(), 2), pickle.dumps({"data": Hostile()}), python2_pickle({"data": eval})):
        archive = write_cifar10_python(tmp_path, batches, data_batch_3=payload)
        with pytest.raises(UserError, match=r"data_batch_3 of .* can't be unpickled: it names"):
            catalogue(archive)
    assert not (tmp_path / "hostile").exists()


PIXELS = np.zeros((2, 3072), np.uint8)
BROKEN = {
    "cut off": python2_pickle({"data": PIXELS, "labels": [1, 2]})[:-100],
    "no dictionary": python2_pickle([1]),
    "no labels": python2_pickle({"data": PIXELS}),
    "labels that are no list": python2_pickle({"data": PIXELS, "labels": 3}),
    "a label too few": python2_pickle({"data": PIXELS, "labels": [1]}),
    "a label outside": python2_pickle({"data": PIXELS, "labels": [1, 10]}),
    "other pixels": python2_pickle({"data": PIXELS[:, :100].copy(), "labels": [1, 2]}),
    "numbers that are no bytes": python2_pickle({"data": PIXELS.astype(np.float64), "labels": [1, 2]}),
    "no pickle": b"\0\1\2",
    "empty": b"",
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_batches_are_named(batches, tmp_path, case):
    archive = write_cifar10_python(tmp_path, batches, data_batch_4=BROKEN[case])
    with pytest.raises(UserError, match="data_batch_4") as error:
        catalogue(archive)
    assert "cifar-10-python.tar.gz" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_and_a_cut_batch_are_named(batches, tmp_path):
    missing = {name: batch for name, batch in batches.items() if name != "data_batch_2"}
    for write in (write_cifar10_python, write_cifar10_binary):
        with pytest.raises(UserError, match="holds no data_batch_2"):
            catalogue(write(tmp_path, missing))
    with pytest.raises(UserError, match=r"data_batch_5.bin of .* is cut off"):
        catalogue(write_cifar10_binary(tmp_path, batches, data_batch_5=b"\1" * 5000))
    whole = write_cifar10_python(tmp_path, batches).read_bytes()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz can't be read"):
        catalogue(tmp_path / "cifar-10-python.tar.gz")


def test_links_in_the_archive_are_refused(tmp_path):
    info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive = tar_of(tmp_path / "cifar-10-python.tar.gz", {}, "w:gz", extra=[info])
    with pytest.raises(UserError, match="link"):
        catalogue(archive)


def test_both_loaders_read_the_shards_to_the_bit(batches, tmp_path):
    archive = write_cifar10_python(tmp_path, batches)
    dataset = stage(archive, tmp_path / "datasets" / "x", name="x", options=OTHER, workers=1)
    augment = AugmentConfig(kind="pad-crop", crop=32, pad=4)
    found = {}
    for backend in ("dali", "torch"):
        with train_batches(
            dataset, augment=augment, seed=1, batch=20, micro_batch=20, steps=5, backend=backend
        ) as loader:
            found[backend] = [(batch.index, batch.images) for batch in loader]
    for (index, images), (other_index, other_images) in zip(found["dali"], found["torch"], strict=True):
        assert torch.equal(index, other_index) and torch.equal(images, other_images)
