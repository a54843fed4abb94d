"""The file that the ILSVRC classification test server takes, from kept scores.

A line per test image, in the order of the images' names (``ILSVRC2012_test_00000001.JPEG`` first), with five class ids
separated by spaces, best first (the development kit's readme). Ids are the devkit's ``ILSVRC2012_ID``, 1 to 1000, which
is another order than that of the class names (wnids) in a dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnet_pipeline.data.order import Int64
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.confusion import top_classes
from resnet_pipeline.evaluation.scores import Scores
from resnet_pipeline.files import replacing

CLASSES, GUESSES = 1000, 5
TEST_IMAGES = 100_000


def read_class_ids(path: Path, classes: Sequence[str]) -> Int64:
    """Return the devkit's id of each class int64 [C], 1 to C.

    ``path`` is the devkit's ``meta.mat``, or text with a wnid first on each line, followed by its id, or in the order
    of the ids. Raises UserError if the file can't be read, lacks a class, or its ids are not 1 to C.

    Example: ``read_class_ids(Path("meta.mat"), dataset.classes)``
    """
    try:
        ids = _from_meta(path) if path.suffix == ".mat" else _from_text(path)
    except Exception as error:  # a file from anywhere can fail anywhere in the reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"class ids {path} can't be read: {reason}") from None
    missing = [name for name in classes if name not in ids]
    if missing:
        raise UserError(f"class ids {path} lack {len(missing)} of {len(classes)} classes, {missing[0]} first")
    found = [ids[name] for name in classes]
    if sorted(found) != list(range(1, len(classes) + 1)):
        raise UserError(
            f"class ids {path}: the ids of the {len(classes)} classes are not 1 to {len(classes)}, each once"
        )
    return np.array(found, dtype=np.int64)


def write_submission(scores: Scores, ids: Int64, path: Path) -> None:
    """Write the five best classes of each image, atomically; the file passes `check_submission`.

    ``ids`` int64 [C] are the classes' ids. Raises UserError if there are not 1,000 of them, and if the file
    can't be written.

    Example: ``write_submission(average(members), read_class_ids(meta, dataset.classes), Path("submission.txt"))``
    """
    if scores.probabilities.shape[1] != CLASSES or len(ids) != CLASSES:
        raise UserError(f"ILSVRC has {CLASSES} classes, the scores of {scores.model} {scores.probabilities.shape[1]}")
    best = ids[top_classes(scores.probabilities, GUESSES)]
    order = sorted(range(len(scores.keys)), key=lambda row: scores.keys[row].rpartition("/")[2])
    try:
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{' '.join(map(str, best[row]))}\n" for row in order))
            check_submission(temporary, images=len(scores.keys))
    except OSError as error:
        raise UserError(f"submission {path} can't be written: {error.strerror or error}") from None


def check_submission(path: Path, *, images: int = TEST_IMAGES) -> None:
    """Raise UserError naming the first line that the test server would refuse.

    Example: ``check_submission(Path("submission.txt"))``
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"submission {path} can't be read: {error}") from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        valid = [word for word in words if word.isascii() and word.isdecimal() and 1 <= int(word[:9]) <= CLASSES]
        if len(words) != GUESSES or valid != words or len({int(word) for word in words}) != GUESSES:
            raise UserError(
                f"submission {path}, line {number}: needs {GUESSES} different ids of 1 to {CLASSES}, not {line[:60]!r}"
            )
    if len(lines) != images:
        raise UserError(f"submission {path} has {len(lines):,} lines, there are {images:,} images")


def _from_meta(path: Path) -> dict[str, int]:
    from scipy.io import loadmat

    synsets = loadmat(path, squeeze_me=True)["synsets"]
    # ids above 1000 are inner nodes of WordNet's tree
    return {str(entry["WNID"]): int(entry["ILSVRC2012_ID"]) for entry in synsets if entry["ILSVRC2012_ID"] <= CLASSES}


def _from_text(path: Path) -> dict[str, int]:
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    numbered = all(len(words) > 1 and words[1].isdecimal() for words in lines)
    return {words[0]: int(words[1]) if numbered else place for place, words in enumerate(lines, 1)}
