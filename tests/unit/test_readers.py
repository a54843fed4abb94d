"""Every reader over thousands of mutations of a good file: it takes one, or refuses it with a UserError, no more.

A mutation is a function of its number, so what fails comes back: run the test again, or ``mutated`` with the number.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from resnet_pipeline.adapters.mlflow.ensembles import ENSEMBLE_FILE, MemberVersion, read_ensemble, write_ensemble
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config_io import parse_assignments
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.image_audit import PixelSums, audit
from resnet_pipeline.data.manifest import DatasetFacts, read_origin
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.real_labels import read_real_labels
from resnet_pipeline.evaluation.scores import Scores, read_scores, write_scores
from resnet_pipeline.evaluation.submission import check_submission, read_class_ids
from resnet_pipeline.files import sha256_of, write_json
from resnet_pipeline.jobs.follower import Follower
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.caffe import read_mean_image
from resnet_pipeline.models.weights import build_for_weights, load_weights, save_weights, stored_preprocessing
from resnet_pipeline.progress import progress
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.services import local
from resnet_pipeline.settings import settings as own_settings
from resnet_pipeline.sources.layouts import read_catalogue
from resnet_pipeline.staging.area import catalogue_of, listing_of
from resnet_pipeline.staging.shard_writer import Record
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.checkpoint import (
    Checkpoint,
    Progress,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from resnet_pipeline.training.checkpoint_writer import best_checkpoint
from resnet_pipeline.training.metrics_log import (
    MetricsLog,
    NoteEntry,
    ResumeEntry,
    SystemEntry,
    ValidationEntry,
    read_metrics,
)
from resnet_pipeline.training.mirror import fetch_newer, send
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.schedule import ScheduleState
from resnet_pipeline.workspace import Workspace
from tests.images import jpeg
from tests.metrics import training
from tests.unit.models import caffe_writer as caffe

Read = Callable[[Path], object]
CASES = 2000

JUNK: list[Any] = [
    None,
    True,
    -1,
    2**70,
    1e308,
    float("nan"),
    "",
    "x",
    "\x1b[31m\n",
    [],
    {},
    [[]],
    {"a": None},
    "9" * 50,
]
WHOLES = [b"", b"null", b"[]", b"{}", b"1", b"\xff\xfe", b"\0" * 600, b"[" * 100_000, b'{"a":' * 100_000, b"\n\n"]


def mutated(good: bytes, number: int) -> bytes:
    """Return a mutation of a good file: whole, bytes of it (its ends more often), or, if it is JSON, a value of it."""
    rng = random.Random(number)
    if rng.random() < 0.05:
        return rng.choice(WHOLES)
    if good[:1] in b"{[" and rng.random() < 0.7:
        lines = good.splitlines(keepends=True) if b"\n{" in good else [good]  # JSON, or a JSON object a line
        place = rng.randrange(len(lines))
        lines[place] = _other_value(lines[place], rng)
        return b"".join(lines)
    content = bytearray(good)
    window = rng.choice([len(content), 600, -600])
    low, high = (max(0, len(content) + window), len(content)) if window < 0 else (0, min(window, len(content)))
    at = rng.randrange(low, max(high, low + 1))
    size = rng.choice([1, 1, 4, 16, 200])
    match rng.randrange(6):
        case 0:
            del content[at:]
        case 1:
            del content[at : at + size]
        case 2:
            content[at:at] = content[at : at + size]
        case 3:
            content[at : at + size] = rng.randbytes(size)
        case 4:
            content[at : at + size] = bytes([rng.choice([0, 1, 127, 128, 255])]) * size
        case _:
            for place in rng.sample(range(low, high), min(size, high - low)):
                content[place] ^= 1 << rng.randrange(8)
    return bytes(content)


def _other_value(line: bytes, rng: random.Random) -> bytes:
    root = [json.loads(line)]
    holder, key = root, 0
    while isinstance(inner := holder[key], dict | list) and inner and rng.random() < 0.8:
        holder, key = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    if rng.random() < 0.2 and holder is not root:
        del holder[key]
    else:
        holder[key] = rng.choice(JUNK)
    return json.dumps(root[0]).encode() + (b"\n" if line.endswith(b"\n") else b"")


def _value_errors(read: Read) -> Read:
    """Let a reader say ValueError, if that is how its callers are told."""

    def reading(path: Path) -> None:
        try:
            read(path)
        except ValueError:
            raise UserError from None

    return reading


def _scores(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    scores = Scores(
        model="m", weights_sha256="0" * 64, dataset_fingerprint="d" * 64, split="val", protocol="center", seconds=1.0,
        keys=[f"val/{i}.JPEG" for i in range(30)], labels=rng.integers(0, 5, 30),
        probabilities=rng.random((30, 5), dtype=np.float32),
    )  # fmt: skip
    write_scores(scores, folder / "s.parquet")
    return folder / "s.parquet"


def _old_scores(folder: Path) -> Path:
    table = pq.read_table(_scores(folder))
    about = json.loads(table.schema.metadata[b"resnet_pipeline"])
    del about["sha256"]
    pq.write_table(table.replace_schema_metadata({"resnet_pipeline": json.dumps(about)}), folder / "s.parquet")
    return folder / "s.parquet"


def _safetensors(folder: Path) -> Path:
    save_weights(Classifier(Normalize(torch.zeros(3)), build_model("cifar-resnet8")), folder / "w.safetensors", {})
    return folder / "w.safetensors"


def _old_safetensors(folder: Path) -> Path:
    save_file(build_model("cifar-resnet8").state_dict(), folder / "w.safetensors", {"architecture": "{}"})
    return folder / "w.safetensors"


def _pth(folder: Path, *, new: bool = True) -> Path:
    saved = {"state_dict": build_model("cifar-resnet8").state_dict(), "epoch": 3, "best": torch.tensor(71.0)}
    torch.save(saved, folder / "w.pth", _use_new_zipfile_serialization=new)
    return folder / "w.pth"


def _caffemodel(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    layers = [
        caffe.layer("conv1", "Convolution", [rng.random((4, 3, 7, 7)), rng.random(4)]),
        caffe.layer("bn_conv1", "BatchNorm", [rng.random(4), rng.random(4), np.array([2.0])], eps=1e-5),
        caffe.layer("scale_conv1", "Scale", [rng.random(4), rng.random(4)]),
        caffe.layer("fc1000", "InnerProduct", [rng.random((5, 4)), rng.random(5)]),
    ]
    (folder / "w.caffemodel").write_bytes(caffe.net(*layers))
    return folder / "w.caffemodel"


def _binaryproto(folder: Path) -> Path:
    (folder / "m.binaryproto").write_bytes(caffe.blob(np.random.default_rng(0).random((1, 3, 8, 8)), form="legacy"))
    return folder / "m.binaryproto"


def _run(folder: Path) -> RunDirectory:
    facts = DatasetFacts(name="d", fingerprint="f" * 64, classes=("a", "b"), class_words={"a": "an a"})
    run = RunDirectory.create(folder, get_recipe("digits/resnet8"), facts)
    log = MetricsLog(run.metrics_file)
    log.append(2, training(loss=1.0, error=50.0))
    log.append(2, ValidationEntry(figures={"top1": 50.0, "top5": 10.0}))
    log.append(2, NoteEntry(text="x"))
    log.append(1, ResumeEntry(workers=1))
    log.append(3, SystemEntry(values={"cpu": 1.0}))
    log.close()
    validation = {"top1": 2.0, "top5": 0.0, "images": 9}
    result = {"steps": 4, "images": 9, "seconds": 1.0, "images_per_second": 9.0, "workers": 1, "device": "cpu"}
    result |= {"train_loss": None, "train_error": 1.0, "validation": validation, "best": {"step": 4, "top1": 2.0}}
    write_json(run.result_file, {**result, "precision": "float32", "weights_sha256": "0" * 64})
    write_json(run.delivery_file, {"uri": "sqlite:///x", "run_id": "0" * 32, "sent": 0, "steps": {"train": 1}})
    return run


def _read_config(path: Path) -> None:
    run = RunDirectory(path.parent)
    run.config(), run.dataset(), run.identity()


def _read_metrics(path: Path) -> None:
    run = RunDirectory(path.parent)
    read_metrics(path)
    with progress("training", total=9) as bar:
        follower = Follower(run, get_recipe("digits/resnet8"), bar, notes=True)
        follower._lines._read = 0  # from the beginning
        follower.poll()
    _deliver(run)


def _deliver(run: RunDirectory) -> None:
    tracking = Tracking(Workspace(run.path))
    info = SimpleNamespace(run_id="1" * 32)
    tracking._client = SimpleNamespace(
        log_batch=lambda *a, **o: None,
        create_run=lambda *a, **o: SimpleNamespace(info=info),
        get_experiment_by_name=lambda name: SimpleNamespace(experiment_id="1", lifecycle_stage="active"),
    )
    tracking.deliver(run)


def _checkpoints(folder: Path) -> Path:
    checkpoint = Checkpoint(
        step=3, run="abc", model={"w": torch.ones(3)}, statistics=torch.zeros(2, 4), sums=torch.zeros(2, 3),
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        extra=Progress(seconds=1.5, schedule=ScheduleState(drops=1), last_train={}, best={"step": 1, "top1": 9.0}),
    )  # fmt: skip
    return write_checkpoint(folder / "checkpoints", checkpoint, val_error=2.0)


def _read_note(path: Path) -> None:
    newest_checkpoint(path.parent)
    best_checkpoint(path.parent, [3])


def _mirrored(folder: Path) -> Path:
    run = RunDirectory(folder / "run")
    _checkpoints(run.path)
    run.metrics_file.touch()
    send(run, LocalStorage(folder / "mirror"))
    return folder / "mirror" / "checkpoints" / "step-00000003.json"


def _read_mirror(path: Path) -> None:
    fetch_newer(RunDirectory(path.parent / "empty"), LocalStorage(path.parents[1]))


def _record(folder: Path) -> Path:
    record = Record(sums=PixelSums((8, 8)), sha256="0" * 64, size=9, rows=[(0, 512, 7, 8, 8)])
    (folder / "r.npz").write_bytes(record.to_bytes())
    return folder / "r.npz"


def _tar(folder: Path) -> Path:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name in ("train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(image := jpeg(8, 8))
            tar.addfile(info, io.BytesIO(image))
    return folder / "x.tar"


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg"):
            archive.writestr(name, jpeg(8, 8))
    return folder / "x.zip"


def _read_source(path: Path) -> None:
    catalogue = read_catalogue(LocalStorage(path.parent), path.name)
    list(catalogue.read(catalogue.entries))


def _listing(folder: Path) -> Path:
    _tar(folder)
    (folder / "l.parquet").write_bytes(listing_of(read_catalogue(LocalStorage(folder), "x.tar")))
    return folder / "l.parquet"


def _image(folder: Path) -> Path:
    (folder / "i.jpg").write_bytes(jpeg(20, 20))
    return folder / "i.jpg"


def _ensemble(folder: Path) -> Path:
    member = MemberVersion(uri="models:/a/1", recipe="r", weights_sha256="0" * 64)
    write_ensemble(folder, [member, member], DatasetFacts(name="d", fingerprint="f", classes=("a",)))
    return folder / ENSEMBLE_FILE


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        return folder / name

    return make


def _meta(folder: Path) -> Path:
    synsets = np.array([(1, "n1"), (2, "n2")], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", object)])
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets})
    return folder / "meta.mat"


def _dataset(name: str) -> Callable[[Path], Path]:
    """Return what stages the digits' small files anew, and names one; shards are not needed."""

    def make(folder: Path) -> Path:
        for file in DIGITS.iterdir():
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
        return folder / name

    return make


def _read_dataset(path: Path) -> None:
    dataset = Dataset.open(path.parent)
    assert all(len(split) for split in dataset.splits.values())
    read_origin(dataset.storage)


DIGITS = Path()
_CLASSES = "".join(f"n{i} {i}\n" for i in range(1, 6))
_PIDS = {name: {"pid": 2**22 + 1, "started": 1.5} for name in ("prefect-server", "mlflow-server", "prefect-worker")}
READERS: dict[str, tuple[Callable[[Path], Path], Read]] = {
    "scores": (_scores, read_scores),
    "scores of before": (_old_scores, read_scores),
    "safetensors": (_safetensors, lambda path: build_for_weights("cifar-resnet8", path)),
    "safetensors of others": (_old_safetensors, lambda path: load_weights(build_model("cifar-resnet8"), path)),
    "pth": (_pth, lambda path: build_for_weights("cifar-resnet8", path)),
    "old pth": (lambda folder: _pth(folder, new=False), lambda path: build_for_weights("cifar-resnet8", path)),
    "caffemodel": (_caffemodel, stored_preprocessing),
    "binaryproto": (_binaryproto, read_mean_image),
    "config": (lambda folder: _run(folder).config_file, _read_config),
    "result": (lambda folder: _run(folder).result_file, lambda path: RunDirectory(path.parent).result()),
    "metrics": (lambda folder: _run(folder).metrics_file, _read_metrics),
    "mlflow.json": (lambda folder: _run(folder).delivery_file, lambda path: _deliver(RunDirectory(path.parent))),
    "checkpoint": (_checkpoints, lambda path: read_checkpoint(path, run="abc")),
    "checkpoint's note": (lambda folder: _checkpoints(folder).with_suffix(".json"), _read_note),
    "mirror's note": (_mirrored, _read_mirror),
    "manifest": (_dataset("manifest.json"), _read_dataset),
    "index": (_dataset("index.parquet"), _read_dataset),
    "mean image": (_dataset("mean_image.npy"), _read_dataset),
    "source.json": (_dataset("source.json"), _read_dataset),
    "record": (_record, _value_errors(lambda path: Record.from_bytes(path.read_bytes()))),
    "listing": (_listing, _value_errors(lambda path: catalogue_of(path.read_bytes(), LocalStorage(path.parent)))),
    "tar": (_tar, _read_source),
    "zip": (_zip, _read_source),
    "image": (_image, lambda path: audit(path.read_bytes())),
    "ensemble.json": (_ensemble, lambda path: read_ensemble(path.parent)),
    "real labels": (_text("l.json", json.dumps({"a.JPEG": [1, 2], "b.JPEG": []})), read_real_labels),
    "class ids": (_text("c.txt", _CLASSES), lambda path: read_class_ids(path, [f"n{i}" for i in range(1, 6)])),
    "meta.mat": (_meta, lambda path: read_class_ids(path, ["n1", "n2"])),
    "submission": (_text("s.txt", "1 2 3 4 5\n" * 3), lambda path: check_submission(path, images=3)),
    "pid file": (
        _text("services/processes.json", json.dumps(_PIDS)),
        lambda path: local._alive(Workspace(path.parents[1])),
    ),
    ".env": (_text(".env", "RESNET_PIPELINE_TIMEOUT=9\nRESNET_PIPELINE_ROOT='x'\n"), lambda path: own_settings()),
    "--set": (_text("set", 'optim.lr=0.05\nx=[1, {"a": 2}]'), lambda path: _assignments(path)),
}


def _assignments(path: Path) -> None:
    parse_assignments(path.read_text(errors="replace").splitlines())


def signed(path: Path) -> None:
    """Let a dataset's manifest name a file as it is now, and itself, so that what is in it is read."""
    from resnet_pipeline.data.manifest import fingerprint_of

    manifest = path.parent / "manifest.json"
    try:
        content = json.loads(manifest.read_bytes())
        if path.name in content["files"]:
            content["files"][path.name] = sha256_of(path)
        manifest.write_text(json.dumps({**content, "fingerprint": fingerprint_of(content)}))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass  # not even that much of a manifest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
def test_a_reader_takes_a_file_or_refuses_it(kind, tmp_path, digits, monkeypatch):
    monkeypatch.setattr("tests.unit.test_readers.DIGITS", digits.path)
    monkeypatch.chdir(tmp_path)
    make, read = READERS[kind]
    path = make(tmp_path)
    good = {file: file.read_bytes() for file in {path, tmp_path / "manifest.json"} if file.exists()}
    read(path)  # the good one is taken

    @settings(derandomize=True, database=None, deadline=None, max_examples=-(-CASES // len(READERS)))
    @given(st.integers(0, 2**64))
    def reads(number: int) -> None:
        for file, content in good.items():
            file.write_bytes(content)
        path.write_bytes(mutated(good[path], number))
        if len(good) > 1 and number % 2:
            signed(path)
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error), error

    reads()


def test_a_score_file_of_other_columns_is_refused(tmp_path):
    path = _old_scores(tmp_path)
    table = pq.read_table(path)
    for column in (
        pa.array([[0.5] * 5] * 30, pa.list_(pa.float32())),
        pa.array([["x"] * 5] * 30, pa.list_(pa.string(), 5)),
        pa.array([None] * 30, pa.list_(pa.float32(), 5)),
    ):
        pq.write_table(table.set_column(2, "scores", column), path)
        with pytest.raises(UserError, match=r"s\.parquet can't be read"):
            read_scores(path)
    for label in (7, None):
        labels = pa.array([label] + [0] * 29, pa.int32())
        pq.write_table(table.set_column(1, "label", labels), path)
        with pytest.raises(UserError, match=r"s\.parquet can't be read"):
            read_scores(path)
