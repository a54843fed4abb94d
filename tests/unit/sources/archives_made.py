"""Miniature archives in the exact formats of the originals."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from scipy.io import savemat

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def tar_of(path: Path | io.BytesIO, contents: Mapping[str, bytes], mode: str = "w", extra: Iterable = ()) -> Path:
    """Write a tar file of regular files in the format of GNU tar, as the originals are."""
    where = {"fileobj": path} if isinstance(path, io.BytesIO) else {"name": path}
    with tarfile.open(mode=mode, format=tarfile.GNU_FORMAT, **where) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_340_000_000
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return path


def tar_bytes(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    tar_of(buffer, contents)
    return buffer.getvalue()


def zip_of(path: Path, contents: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def meta_mat(words: Mapping[str, str]) -> bytes:
    """Return a meta.mat: a struct array ``synsets`` of the leaves, numbered from 1, and a node above them."""
    fields = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    synsets = np.zeros((len(words) + 1, 1), dtype=[(name, object) for name in fields])
    rows = [*words.items(), ("n00001740", "entity")]
    for number, (wnid, text) in enumerate(rows, 1):
        leaf = number <= len(words)
        synsets[number - 1, 0] = (float(number), wnid, text, f"a {text}", 0.0 if leaf else 2.0, np.zeros(0), 0.0, 3.0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def write_ilsvrc(
    folder: Path, train: Mapping[str, Mapping[str, bytes]], val: list[tuple[str, bytes]], words: Mapping[str, str], *,
    test: Iterable[bytes] = (),
) -> Path:  # fmt: skip
    """Write the ILSVRC archives: ``train`` by wnid and name, ``val`` in the order of the ground truth."""
    folder.mkdir(parents=True)
    tar_of(folder / "ILSVRC2012_img_train.tar", {f"{wnid}.tar": tar_bytes(files) for wnid, files in train.items()})
    tar_of(
        folder / "ILSVRC2012_img_val.tar",
        {f"ILSVRC2012_val_{number:08d}.JPEG": data for number, (_, data) in enumerate(val, 1)},
    )
    numbers = {wnid: number for number, wnid in enumerate(words, 1)}
    truth = "".join(f"{numbers[wnid]}\n" for wnid, _ in val)
    devkit = "ILSVRC2012_devkit_t12"
    tar_of(
        folder / f"{devkit}.tar.gz",
        {
            f"{devkit}/COPYING": b"x",
            f"{devkit}/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
            f"{devkit}/data/meta.mat": meta_mat(words),
            f"{devkit}/readme.txt": b"x",
        },
        "w:gz",
    )
    test = {f"test/ILSVRC2012_test_{number:08d}.JPEG": data for number, data in enumerate(test, 1)}
    if test:
        tar_of(folder / "ILSVRC2012_img_test_v10102019.tar", test)
    return folder


def kaggle_files(
    train: Mapping[str, Mapping[str, bytes]], val: list[tuple[str, bytes]], words: Mapping[str, str],
    test: Iterable[bytes] = (),
) -> dict[str, bytes]:  # fmt: skip
    """Return the files of Kaggle's layout."""
    top = "ILSVRC/Data/CLS-LOC"
    rows = [
        f"ILSVRC2012_val_{number:08d},{wnid} 85 1 499 272 {wnid} 3 4 5 6 " for number, (wnid, _) in enumerate(val, 1)
    ]
    files = {f"{top}/train/{wnid}/{name}": data for wnid, images in train.items() for name, data in images.items()}
    files |= {f"{top}/val/ILSVRC2012_val_{number:08d}.JPEG": data for number, (_, data) in enumerate(val, 1)}
    files |= {f"{top}/test/ILSVRC2012_test_{number:08d}.JPEG": data for number, data in enumerate(test, 1)}
    files["ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml"] = b"<annotation/>"
    files["ILSVRC/ImageSets/CLS-LOC/val.txt"] = b"ILSVRC2012_val_00000001 1\n"
    files["LOC_synset_mapping.txt"] = "".join(f"{wnid} {text}\n" for wnid, text in sorted(words.items())).encode()
    files["LOC_val_solution.csv"] = ("ImageId,PredictionString\n" + "\n".join(reversed(rows)) + "\n").encode()
    return files


def cifar10_pixels(images: int = 20) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Return (uint8 [N, 3072], labels) for each batch; every batch has images of all classes."""
    rng = np.random.default_rng(7)
    return {
        batch: (rng.integers(0, 256, (images, 3072), dtype=np.uint8), [i % 10 for i in range(images)])
        for batch in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    }


def write_cifar10_python(folder: Path, batches: Mapping[str, tuple[np.ndarray, list[int]]], **extra: bytes) -> Path:
    """Write cifar-10-python.tar.gz; ``extra`` replaces batches."""
    top = "cifar-10-batches-py"
    files = {
        f"{top}/{batch}": python2_pickle(
            {"data": data, "labels": labels, "batch_label": batch, "filenames": [f"x_{i}.png" for i in labels]}
        )
        for batch, (data, labels) in batches.items()
    }
    files[f"{top}/batches.meta"] = python2_pickle({"label_names": CIFAR_CLASSES, "num_vis": 3072})
    files |= {f"{top}/{name}": data for name, data in extra.items()}
    return tar_of(folder / "cifar-10-python.tar.gz", dict(sorted(files.items())), "w:gz")


def write_cifar10_binary(folder: Path, batches: Mapping[str, tuple[np.ndarray, list[int]]], **extra: bytes) -> Path:
    """Write cifar-10-binary.tar.gz; ``extra`` replaces batches."""
    top = "cifar-10-batches-bin"
    files = {
        f"{top}/{batch}.bin": np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1).tobytes()
        for batch, (data, labels) in batches.items()
    }
    files[f"{top}/batches.meta.txt"] = ("\n".join(CIFAR_CLASSES) + "\n\n").encode()
    files |= {f"{top}/{name}.bin": data for name, data in extra.items()}
    return tar_of(folder / "cifar-10-binary.tar.gz", files, "w:gz")


def python2_pickle(value: object) -> bytes:
    """Return a pickle as Python 2 wrote it: text and raw bytes are SHORT_BINSTRING or BINSTRING."""
    out = io.BytesIO()
    _Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue()


class _Python2Pickler(pickle._Pickler):
    dispatch = pickle._Pickler.dispatch.copy()

    def _string(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)

    dispatch[str] = dispatch[bytes] = _string

    def save_global(self, obj: object, name: str | None = None) -> None:
        module = {"numpy._core.multiarray": "numpy.core.multiarray"}.get(obj.__module__, obj.__module__)
        self.write(pickle.GLOBAL + f"{module}\n{name or obj.__qualname__}\n".encode())

    dispatch[type] = save_global
    dispatch[type(pickle.dumps)] = save_global
