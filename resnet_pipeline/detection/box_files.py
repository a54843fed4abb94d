"""Files of a localiser's best boxes: what an R-CNN is trained on, kept once and mapped.

A file has a row for each image, float32 [images, k, count, 5]: for each of k classes its best boxes, the best first,
as (left, top, right, bottom) in pixels of the stored image and the logit. Where there are fewer, the logit is −∞.
Beside it stands what it is of.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.order import Int64
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing, sha256_of, write_json
from resnet_pipeline.records import RecordError, load_record, plain

_log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

PART_IMAGES = 500
"""Images after which what was found is kept, so that work that was stopped goes on there."""


@dataclass(frozen=True, kw_only=True)
class BoxFacts:
    """What a kept file of boxes is of; ``sha256`` is the file's own, compared by who reads it.

    ``weights_sha256`` is the localiser's, and ``run`` its name. ``classes`` is `classes_sha256` of the images and the
    classes whose boxes these are, ``sides`` are the shorter sides at which the images were seen.
    """

    weights_sha256: str
    dataset_fingerprint: str
    split: str
    classes: str
    sides: tuple[int, ...]
    count: int
    run: str = ""
    sha256: str = ""

    @property
    def name(self) -> str:
        """A name for the file, of its own for whatever else it could be of."""
        of = repr(replace(self, run="", sha256=""))
        return f"{self.split}-{hashlib.sha256(of.encode()).hexdigest()[:16]}.npy"

    def same(self, other: BoxFacts) -> bool:
        """Return whether both are of the same boxes."""
        return replace(self, run="", sha256="") == replace(other, run="", sha256="")


def classes_sha256(rows: Int64, classes: Int64) -> str:
    """Return what identifies the classes int64 [n, k] that are asked of images int64 [n].

    >>> len(classes_sha256(np.arange(2), np.zeros((2, 1), np.int64)))
    64
    """
    return hashlib.sha256(repr(classes.shape).encode() + rows.tobytes() + classes.tobytes()).hexdigest()


def facts_file(boxes: Path) -> Path:
    """Return where it stands what a file of boxes is of.

    >>> str(facts_file(Path("proposals/train.npy")))
    'proposals/train.json'
    """
    return boxes.with_suffix(".json")


def read_boxes(path: Path, wanted: BoxFacts | None = None) -> tuple[Float32, BoxFacts]:
    """Return a kept file of boxes, mapped, and what it is of.

    Raises UserError if it can't be read, or with ``wanted`` if it is of something else, or is not what was written.

    Example: ``read_boxes(run.path / "proposals/train.npy")[0].shape``
    """
    try:
        facts = load_record(BoxFacts, facts_file(path))
        boxes = np.load(path, mmap_mode="r")
    except (OSError, ValueError, RecordError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    if wanted is not None and not facts.same(wanted):
        raise UserError(f"{path} has boxes of another localiser or of other images")
    if wanted is not None and facts.sha256 != sha256_of(path):
        raise UserError(f"{path} is not what was written: its SHA-256 differs")
    return boxes, facts


def kept_boxes(path: Path, facts: BoxFacts, images: int, find: Callable[[slice], Float32]) -> tuple[Float32, BoxFacts]:
    """Return the boxes of ``images``, from the file if it is of these ``facts``, or else found part by part and kept.

    ``find`` returns those of some rows. Each part is kept until all are there. One process does it while the others of
    the machine wait.

    Example: ``kept_boxes(path, facts, len(rows), lambda part: find_boxes(…, rows[part], classes[part]))``
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            try:
                return read_boxes(path, facts)
            except UserError as error:
                _log.warning("%s: found again", error)
        for left in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
            left.unlink(missing_ok=True)
        parts = [slice(start, min(start + PART_IMAGES, images)) for start in range(0, images, PART_IMAGES)]
        folder = path.with_suffix(".parts")
        files = [folder / f"{number:05d}-of-{len(parts):05d}.npy" for number in range(len(parts))]
        for part, file in zip(parts, files, strict=True):
            if not file.exists():
                with replacing(file) as temporary, temporary.open("wb") as stream:
                    np.save(stream, find(part))
        facts_file(path).unlink(missing_ok=True)
        with replacing(path) as temporary:
            _join(files, temporary, images)
        facts = replace(facts, sha256=sha256_of(path))
        write_json(facts_file(path), plain(facts))
        shutil.rmtree(folder)
    return np.load(path, mmap_mode="r"), facts


def _join(files: Sequence[Path], target: Path, images: int) -> None:
    first = np.load(files[0], mmap_mode="r")
    joined = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=(images, *first.shape[1:]))
    at = 0
    for file in files:
        part = np.load(file, mmap_mode="r")
        joined[at : at + len(part)] = part
        at += len(part)
    joined.flush()


def boxes_file(folder: Path, split: str) -> Path:
    """Return where a run's directory has the localiser's boxes of a split.

    >>> str(boxes_file(Path("run"), "train"))
    'run/proposals/train.npy'
    """
    return folder / "proposals" / f"{split}.npy"
