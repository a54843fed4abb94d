"""The prediction job: the best classes of every image in a folder, as a table in a file."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.data.image_files import ImageError, Limits
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import Image, Predictor, checked
from resnet_pipeline.evaluation.protocols import protocol_of
from resnet_pipeline.evaluation.scoring import class_count
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.files import check_writable, replacing
from resnet_pipeline.jobs.references import expanded, load_all, parse
from resnet_pipeline.names import escaped, hidden
from resnet_pipeline.progress import progress
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.workspace import Workspace

ENDINGS = (".csv", ".parquet", ".json")
_BATCH_IMAGES, _BATCH_BYTES = 256, 256 * 2**20
_FORMULA = ("=", "+", "-", "@")

_File = tuple[str, Path]


@dataclass(frozen=True, kw_only=True)
class FolderPredictions:
    """What a folder came to: the file that was written, the images that are in it, and (file, reason) of the others."""

    path: Path
    images: int
    broken: list[tuple[str, str]]


def predict_folder(
    workspace: Workspace,
    reference: str,
    folder: Path,
    output: Path,
    *,
    protocol: str = "center",
    top: int = 5,
    dataset_name: str | None = None,
) -> FolderPredictions:
    """Write the ``top`` best classes of every image below a folder (or of one file) to a CSV, Parquet or JSON file.

    The model is any MODEL reference or a registered ensemble. Class names are the model's own, else those of
    ``dataset_name``. A file that can't be decoded is listed with the reason, in the output too. Raises UserError if
    the model, the folder or the output can't be used, or no file is an image.

    Example: ``predict_folder(Workspace.of(), "digits-resnet8", Path("images"), Path("predictions.csv")).images``
    """
    if output.suffix not in ENDINGS:
        raise UserError(f"{output} must end in one of {', '.join(ENDINGS)}")
    files = files_of(folder, output)
    predictor = Predictor(named_members(workspace, reference, dataset_name), local_device())
    for member in predictor.members:
        protocol_of(protocol, member.views)  # a wrong name is known before anything is decoded
    check_writable(output)
    names, best, broken = [], [], []
    with progress(f"predicting {folder.name}", total=len(files)) as bar:
        for batch, found in checked_batches(files, Limits.of_settings()):
            good = [image for image in found if isinstance(image, Image)]
            if good:
                predicted = predictor.predict(good, protocol=protocol, top=top)
                best.append((predicted.classes, predicted.probabilities))
            for (name, _), image in zip(batch, found, strict=True):
                if isinstance(image, str):
                    broken.append((name, image))
                else:
                    names.append(name)
            bar.advance(len(batch), detail=f"{len(broken)} broken")
    if not names:
        raise UserError(f"none of the {len(files):,} files of {folder} is an image; {broken[0][0]}: {broken[0][1]}")
    classes, probabilities = (np.concatenate(parts) for parts in zip(*best, strict=True))
    _write(output, predictor, names, classes, probabilities, broken)
    return FolderPredictions(path=output, images=len(names), broken=broken)


def named_members(workspace: Workspace, reference: str, dataset_name: str | None = None) -> list[Member]:
    """Load the networks that a MODEL reference stands for, with names for their classes.

    These are the model's own, else those of the staged dataset ``dataset_name``, else numbers. Raises UserError if the
    reference points nowhere or the dataset has another number of classes.

    Example: ``named_members(Workspace.of(), "torchvision:resnet50", "ilsvrc2012")[0].classes``
    """
    members = [m for one in expanded(workspace, [reference]) for m in load_all(workspace, parse(workspace, one))]
    return [_named(workspace, member, dataset_name) for member in members]


def _named(workspace: Workspace, member: Member, dataset_name: str | None) -> Member:
    if member.classes:
        return member
    count = class_count(member.classifier)
    if dataset_name is None:
        numbers = tuple(map(str, range(count)))
        return replace(member, classes=numbers, class_words=numbers)
    dataset = open_dataset(workspace, dataset_name)
    if len(dataset.classes) != count:
        raise UserError(f"{member.name} has {count} classes, dataset {dataset_name!r} has {len(dataset.classes)}")
    return replace(member, classes=tuple(dataset.classes), class_words=dataset.facts.words)


def files_of(folder: Path, output: Path) -> list[_File]:
    """Return the files below a folder, links followed, each by the name that the output has and by its path."""
    if folder.is_file():
        return [(escaped(folder.name), folder)]
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name a folder of images, or an image")
    listing = LocalStorage(folder).listing()
    names = sorted([stored.name for stored in listing.files] + [name for name, _ in listing.others])
    files = [(escaped(name), folder / name) for name in names if not hidden(name)]
    written = os.path.realpath(output)
    files = [(name, file) for name, file in files if os.path.realpath(file) != written]
    if not files:
        raise UserError(f"{folder} holds no files")
    return files


def checked_batches(files: Sequence[_File], limits: Limits) -> Iterator[tuple[list[_File], list[Image | str]]]:
    """Yield the files in batches, as many as memory should hold at once, each decoded once to see whether it can be."""
    batch: list[_File] = []
    contents: list[bytes | str] = []
    size = 0
    for file in files:
        content = _content(file[1], limits)
        batch.append(file)
        contents.append(content)
        size += len(content)
        if len(batch) == _BATCH_IMAGES or size >= _BATCH_BYTES:
            yield batch, _images(contents, limits)
            batch, contents, size = [], [], 0
    if batch:
        yield batch, _images(contents, limits)


def _content(file: Path, limits: Limits) -> bytes | str:
    """Return a file's content, or why it can't be had; one that is too large is not read."""
    try:
        if not file.is_file():
            return "not a regular file"
        limits.check_bytes(file.stat().st_size)
        return file.read_bytes()
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _images(contents: Sequence[bytes | str], limits: Limits) -> list[Image | str]:
    images = iter(checked([content for content in contents if isinstance(content, bytes)], limits))
    return [content if isinstance(content, str) else next(images) for content in contents]


def _write(
    output: Path,
    predictor: Predictor,
    names: Sequence[str],
    classes: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    broken: Sequence[tuple[str, str]],
) -> None:
    """Write a row per image, ``file``, then label, words and probability of each place, and a row per broken file."""
    nothing = [None] * len(broken)
    columns: dict[str, list[Any]] = {"file": [*names, *(name for name, _ in broken)]}
    for place in range(classes.shape[1]):
        chosen = classes[:, place].tolist()
        columns[f"label_{place + 1}"] = [*(predictor.classes[k] for k in chosen), *nothing]
        columns[f"words_{place + 1}"] = [*(predictor.class_words[k] for k in chosen), *nothing]
        columns[f"probability_{place + 1}"] = [*probabilities[:, place].tolist(), *nothing]
    columns["error"] = [*itertools.repeat(None, len(names)), *(reason for _, reason in broken)]
    table = pa.table(columns)
    write_table(table.set_column(table.num_columns - 1, "error", table.column("error").cast(pa.string())), output)


def write_table(table: pa.Table, output: Path) -> None:
    """Write a table as the file's ending says, one of ENDINGS; UserError if it can't be written."""
    try:
        with replacing(output) as temporary:
            if output.suffix == ".csv":
                pa.csv.write_csv(_without_formulas(table), temporary)
            elif output.suffix == ".parquet":
                pa.parquet.write_table(table, temporary)
            else:
                temporary.write_text(json.dumps(table.to_pylist(), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{output} can't be written: {error.strerror or error}") from None


def _without_formulas(table: pa.Table) -> pa.Table:
    """Return a table in which an apostrophe stands before what a spreadsheet would take for a formula and run."""
    for place, name in enumerate(table.column_names):
        if pa.types.is_string(table.schema.field(name).type):
            cells = (f"'{c}" if c and c.startswith(_FORMULA) else c for c in table.column(name).to_pylist())
            table = table.set_column(place, name, pa.array(cells, pa.string()))
    return table
