"""The original ILSVRC archives and Kaggle's layout, in miniature."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile

import numpy as np
import pytest
from torchvision.datasets import imagenet as torchvision_imagenet

from resnet_pipeline.errors import UserError
from resnet_pipeline.progress import BYTES, displayed_on
from resnet_pipeline.sources import file_views, ilsvrc
from resnet_pipeline.sources.layouts import read_catalogue
from resnet_pipeline.staging import stage as staging
from resnet_pipeline.staging.area import catalogue_of, listing_of
from resnet_pipeline.staging.stage import Options, Source, stage
from resnet_pipeline.storage.local import LocalStorage
from tests.images import jpeg
from tests.recording import Recording
from tests.unit.sources.archives_made import kaggle_files, tar_bytes, tar_of, write_ilsvrc, zip_of

WORDS = {"n01491361": "tiger shark, Galeocerdo cuvieri", "n01440764": "tench, Tinca tinca", "n01443537": "goldfish"}
OTHER = Options(check_md5=False)


@pytest.fixture
def images():
    """Training images by wnid and name, validation images with their wnid, test images."""
    train = {
        wnid: {f"{wnid}_{i}.JPEG": jpeg(40 + i, 50, seed=10 * n + i) for i in (9, 3, 12)}
        for n, wnid in enumerate(sorted(WORDS))
    }
    val = [(wnid, jpeg(30, 40, seed=100 + n)) for n, wnid in enumerate([*WORDS, *WORDS])]
    return train, val, [jpeg(30, 40, seed=200 + n) for n in range(4)]


@pytest.fixture
def archives(images, tmp_path):
    train, val, test = images
    return write_ilsvrc(tmp_path / "ilsvrc", train, val, WORDS, test=test)


def samples(dataset):
    return {
        key: (split.encoded(i).tobytes(), int(split.labels[i]))
        for split in dataset.splits.values()
        for i, key in enumerate(split.keys)
    }


def expected(images):
    train, val, test = images
    classes = sorted(WORDS)
    found = {f"train/{w}/{n}": (data, classes.index(w)) for w, files in train.items() for n, data in files.items()}
    found |= {f"val/{w}/ILSVRC2012_val_{n:08d}.JPEG": (data, classes.index(w)) for n, (w, data) in enumerate(val, 1)}
    return found | {f"test/ILSVRC2012_test_{n:08d}.JPEG": (data, -1) for n, data in enumerate(test, 1)}


def test_the_original_archives_are_read_without_unpacking(images, archives, tmp_path):
    dataset = stage(archives, tmp_path / "datasets" / "x", name="x", options=OTHER, workers=1)
    assert samples(dataset) == expected(images)
    assert dataset.classes == sorted(WORDS)
    assert dataset.manifest.class_words == WORDS
    assert dataset.manifest.layout == "ILSVRC-2012 archives"


def test_the_development_kit_is_read_as_torchvision_reads_it(archives, monkeypatch):
    monkeypatch.setattr(torchvision_imagenet, "_verify_archive", lambda *_: None)
    torchvision_imagenet.parse_devkit_archive(str(archives))
    classes, truth = torchvision_imagenet.load_meta_file(str(archives))
    kit = ilsvrc._devkit(LocalStorage(archives))
    assert kit.truth == truth and set(kit.classes) == set(classes)
    assert {wnid: tuple(text.split(", ")) for wnid, text in kit.words.items() if wnid in WORDS} == classes


def test_archives_are_compared_with_their_published_md5s(archives, tmp_path, monkeypatch):
    target = tmp_path / "datasets" / "x"
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12.tar.gz has MD5 .*--no-md5"):
        stage(archives, target, name="x", workers=1)
    assert list(target.parent.iterdir()) == []
    right = {name: hashlib.md5((archives / name).read_bytes()).hexdigest() for name in ilsvrc.MD5}
    for name in ilsvrc.MD5:
        monkeypatch.setattr(ilsvrc, "MD5", right | {name: "0" * 32})
        with pytest.raises(UserError, match=name):
            read_catalogue(LocalStorage(archives))
    monkeypatch.setattr(ilsvrc, "MD5", right)
    display = Recording()
    with displayed_on(display):
        checked = read_catalogue(LocalStorage(archives))
    assert checked.md5 == right
    size = (archives / ilsvrc.TRAIN).stat().st_size
    assert display.shown[-1] == (f"comparing the MD5 of {ilsvrc.TRAIN}", size, size, BYTES, "")
    assert checked.entries == read_catalogue(LocalStorage(archives), check_md5=False).entries


def test_large_archives_are_hashed_and_listed_in_one_forward_pass(images, tmp_path, monkeypatch):
    """Blocks smaller than images and headers: every boundary is crossed."""
    train, val, _ = images
    folder = write_ilsvrc(tmp_path / "ilsvrc", train, val, WORDS)
    plain = read_catalogue(LocalStorage(folder), check_md5=False)
    monkeypatch.setattr(ilsvrc, "MD5", {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()})
    for block in (700, 1024, 5000):
        monkeypatch.setattr(file_views, "_BLOCK", block)
        assert read_catalogue(LocalStorage(folder)).entries == plain.entries


@pytest.mark.parametrize("name", [ilsvrc.VAL, ilsvrc.DEVKIT])
def test_a_missing_archive_is_named(archives, name):
    (archives / name).unlink()
    with pytest.raises(UserError, match=name):
        read_catalogue(LocalStorage(archives), check_md5=False)


def truncated(path, size):
    path.write_bytes(path.read_bytes()[:size])


def rewritten(path, change):
    with tarfile.open(path) as tar:
        contents = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}
    tar_of(path, change(contents), "w:gz" if path.name.endswith("gz") else "w")


DAMAGE = {
    "the training archive cut in a class archive": (ilsvrc.TRAIN, lambda p: truncated(p, 5000), "cut|end of data"),
    "the training archive cut at its end": (ilsvrc.TRAIN, lambda p: truncated(p, p.stat().st_size - 10240), "cut|end"),
    "a class archive cut at a member": (
        ilsvrc.TRAIN,
        lambda p: rewritten(p, lambda c: c | {"n01440764.tar": c["n01440764.tar"][:512]}),
        "n01440764.tar",
    ),
    "a class archive without images": (
        ilsvrc.TRAIN, lambda p: rewritten(p, lambda c: c | {"n01440764.tar": tar_bytes({})}), "n01440764.tar"
    ),
    "images in the training archive": (
        ilsvrc.TRAIN, lambda p: rewritten(p, lambda c: c | {"n01440764_1.JPEG": b"x"}), "n01440764_1.JPEG"
    ),
    "a class archive that points outside": (
        ilsvrc.TRAIN, lambda p: rewritten(p, lambda c: c | {"n01440764.tar": tar_bytes({"../x": b"x"})}), "outside"
    ),
    "a validation image too many": (
        ilsvrc.VAL, lambda p: rewritten(p, lambda c: c | {"ILSVRC2012_val_00000007.JPEG": b"x"}), "7 images.* 6 lines"
    ),
    "a validation image of another name": (
        ilsvrc.VAL, lambda p: rewritten(p, lambda c: {n.replace("0006", "0007"): d for n, d in c.items()}), "00000007"
    ),
    "a development kit that is cut off": (ilsvrc.DEVKIT, lambda p: truncated(p, p.stat().st_size // 2), "devkit"),
    "a development kit without ground truth": (
        ilsvrc.DEVKIT, lambda p: rewritten(p, lambda c: {n: d for n, d in c.items() if "truth" not in n}), "truth"
    ),
    "a damaged meta.mat": (
        ilsvrc.DEVKIT, lambda p: rewritten(p, lambda c: {n: b"x" if "meta" in n else d for n, d in c.items()}), "meta"
    ),
    "a class number that is none": (
        ilsvrc.DEVKIT,
        lambda p: rewritten(p, lambda c: {n: d + b"77\n" if "truth" in n else d for n, d in c.items()}),
        "77",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_archives_are_named(archives, case):
    name, damage, reason = DAMAGE[case]
    damage(archives / name)
    with pytest.raises(UserError, match=reason) as error:
        read_catalogue(LocalStorage(archives), check_md5=False)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_single_archive_of_several_says_so(archives):
    with pytest.raises(UserError, match="folder that holds them"):
        read_catalogue(LocalStorage(archives), ilsvrc.TRAIN)


@pytest.mark.parametrize("kind", ["folder", "zip", "deflated.zip", "tar.gz"])
def test_kaggle_s_layout_holds_the_same_samples(images, tmp_path, make_folder, kind):
    files = kaggle_files(*images[:2], WORDS, images[2])
    path = {
        "folder": lambda: make_folder(files),
        "zip": lambda: zip_of(tmp_path / "x.zip", files),
        "deflated.zip": lambda: zip_of(tmp_path / "x.zip", files, zipfile.ZIP_DEFLATED),
        "tar.gz": lambda: tar_of(tmp_path / "x.tar.gz", files, "w:gz"),
    }[kind]()
    dataset = stage(path, tmp_path / "datasets" / "x", name="x", workers=1)
    assert samples(dataset) == expected(images)
    assert (dataset.classes, dataset.manifest.class_words) == (sorted(WORDS), WORDS)
    assert dataset.manifest.layout == "Kaggle's ILSVRC"


def test_kaggle_s_validation_images_need_their_classes(images, make_folder):
    files = kaggle_files(*images[:2], WORDS)
    del files["LOC_val_solution.csv"]
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000001.JPEG has no class in LOC_val_solution.csv"):
        read_catalogue(LocalStorage(make_folder(files)))


def test_what_is_no_source_says_what_could_be(make_folder):
    with pytest.raises(UserError) as error:
        read_catalogue(LocalStorage(make_folder({"notes/x.txt": b"x"})))
    for wanted in ("notes/x.txt", "ILSVRC2012_img_train.tar", "CLS-LOC", "cifar-10-python.tar.gz", "train/<class>"):
        assert wanted in str(error.value)


def test_a_thousand_real_images_come_out_of_a_nested_archive(imagenet_sample, tmp_path):
    """The ImageNet sample as ILSVRC's archives: every image byte for byte, labels by sorted wnid."""
    with tarfile.open(imagenet_sample) as tar:
        members = [m for m in tar if m.name.endswith(".JPEG")][:100]
        contents = {m.name.rpartition("/")[2]: tar.extractfile(m).read() for m in members}
    train: dict[str, dict[str, bytes]] = {}
    for name, data in contents.items():
        wnid, _, words = name.removesuffix(".JPEG").partition("_")
        train.setdefault(wnid, {})[f"{wnid}_1.JPEG"] = data
    words = {name.split("_")[0]: name.partition("_")[2].removesuffix(".JPEG") for name in contents}
    val = [(wnid, next(iter(files.values()))) for wnid, files in list(train.items())[:10]]
    folder = write_ilsvrc(tmp_path / "ilsvrc", train, val, words)
    options = Options(check_md5=False, shard_bytes=2**20)
    dataset = stage(folder, tmp_path / "datasets" / "x", name="x", options=options, workers=2)
    assert len(dataset.splits["train"].shards) > 5
    assert dataset.manifest.refused == dataset.manifest.converted == ()
    found = samples(dataset)
    for label, wnid in enumerate(sorted(train)):
        assert found[f"train/{wnid}/{wnid}_1.JPEG"] == (train[wnid][f"{wnid}_1.JPEG"], label)
    assert len(found) == 110 and np.ptp(dataset.splits["val"].labels) > 0


def test_a_stopped_staging_neither_lists_nor_hashes_again(images, archives, tmp_path, monkeypatch):
    monkeypatch.setattr(ilsvrc, "MD5", {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in archives.iterdir()})
    target = tmp_path / "datasets" / "x"

    def stop(shown):
        if shown.title == "staging x":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), displayed_on(Recording(on_update=stop)):
        stage(archives, target, name="x", workers=1)
    assert not target.exists()
    with monkeypatch.context() as patched:
        patched.setattr(staging, "read_catalogue", None)
        dataset = stage(archives, target, name="x", workers=1)
    assert samples(dataset) == expected(images)
    assert dataset.manifest.md5 == ilsvrc.MD5
    assert [p.name for p in target.parent.iterdir()] == ["x"]


def test_what_lies_beside_the_archives_does_not_matter(archives):
    before = staging.source_fingerprint(Source(LocalStorage(archives)))
    (archives / "notes.txt").write_text("x")
    assert staging.source_fingerprint(Source(LocalStorage(archives))) == before
    (archives / ilsvrc.VAL).write_bytes(b"x")
    assert staging.source_fingerprint(Source(LocalStorage(archives))) != before


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, None])
def test_a_listing_comes_back_from_its_file(images, tmp_path, make_folder, method):
    files = kaggle_files(*images[:2], WORDS, images[2])
    place = Source.at(make_folder(files) if method is None else zip_of(tmp_path / "x.zip", files, method))
    found = read_catalogue(place.storage, place.name)
    assert catalogue_of(listing_of(found), place.storage) == found
