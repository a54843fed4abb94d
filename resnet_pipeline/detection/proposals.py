"""A localiser's best boxes of each image, kept in a file that is mapped: what an R-CNN is trained and tested on.

A file has a row for each image, float32 [images, k, count, 5]: for each of k classes its best boxes, the best first,
as (left, top, right, bottom) in pixels of the stored image and the logit. Where there are fewer, the logit is −∞.
Beside it stands what it is of.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import nms

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend
from resnet_pipeline.data.order import Int64
from resnet_pipeline.data.whole_images import by_shape, whole_batches
from resnet_pipeline.detection.localisation import BATCH_PIXELS, stored_boxes
from resnet_pipeline.detection.localiser import Localiser
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing, sha256_of, write_json
from resnet_pipeline.records import RecordError, load_record, plain

_log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

# Faster R-CNN's for its proposals, which the appendix keeps; the number before is torchvision's
_IOU, _BEFORE = 0.7, 1_000
_LEAST_SIDE = 1.0  # of a box, in pixels of the stored image

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


def find_boxes(
    localiser: Localiser,
    dataset: Dataset,
    split: str,
    rows: Int64,
    classes: Int64,
    *,
    sides: Sequence[int],
    count: int,
    batch_size: int,
    device: torch.device,
    backend: Backend = "auto",
    on_images: Callable[[int], None] = lambda images: None,
) -> Float32:
    """Return a localiser's ``count`` best boxes of each class of some images, float32 [n, k, count, 5].

    ``rows`` int64 [n] are the images of the split, ``classes`` int64 [n, k]. Whole images are seen at each of
    ``sides``; of the boxes of all sizes, 1,000 of each, those are left out that overlap a better one by an IoU of more
    than 0.7. If none of a class is a pixel wide, it is the whole image.

    Example: ``find_boxes(localiser, dataset, "val", rows, labels[:, None], sides=(256,), count=200, …)``
    """
    samples = dataset.splits[split]
    place = {int(row): number for number, row in enumerate(rows)}
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
    order = rows[by_shape(samples.width[rows], samples.height[rows])]
    localiser.eval()
    with (
        torch.inference_mode(),
        whole_batches(
            dataset, split=split, sides=sides, indices=order, batch_size=batch_size, batch_pixels=BATCH_PIXELS,
            device=device, backend=backend,
        ) as batches,
    ):  # fmt: skip
        for batch in batches:
            own = batch.index.numpy()
            asked = torch.from_numpy(classes[[place[int(row)] for row in own]]).to(device)
            found, logits = localiser.candidates(batch.images.to(device), asked, _BEFORE)
            flat = stored_boxes(found.double().cpu().flatten(1, 2).numpy(), samples, own, sides[batch.side])
            stored = torch.from_numpy(flat).float().view(found.shape)
            for number, row in enumerate(own):
                seen[int(row)].append((stored[number], logits[number].float().cpu()))
            on_images(len(own) if batch.side == 0 else 0)
        best = np.zeros((len(rows), classes.shape[1], count, 5), np.float32)
        best[..., 4] = -np.inf
        for row, parts in seen.items():
            boxes, logits = (torch.cat(each, dim=1).to(device) for each in zip(*parts, strict=True))
            size = boxes.new_tensor([samples.width[row], samples.height[row]] * 2)
            for number in range(classes.shape[1]):
                chosen = best_apart(boxes[number].minimum(size), logits[number], count)
                if not len(chosen):
                    chosen = torch.cat([torch.zeros_like(size[:2]), size[2:], logits[number].max()[None]])[None]
                best[place[row], number, : len(chosen)] = chosen.cpu().numpy()
    return best


def best_apart(boxes: torch.Tensor, logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the best boxes float [M, 4] with their logits float [M], as [at most count, 5], the best first.

    None overlaps a better one by an IoU of more than 0.7, and none is narrower than a pixel.

    Example: ``best_apart(boxes, logits, 200)``
    """
    wide = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST_SIDE).all(dim=1)
    boxes, logits = boxes[wide], logits[wide]
    kept = nms(boxes, logits, _IOU)[:count]
    return torch.cat([boxes[kept], logits[kept, None]], dim=1)
