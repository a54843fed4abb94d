"""Score files: a network's class probabilities for each sample of a split, under one protocol, kept for good.

A score file is a Parquet table: ``key`` (the sample's original name), ``label`` (int32; −1 if it is not known),
``scores`` (a list of one probability per class, float32 or float16). What it belongs to is JSON in the schema's
metadata, with a hash of that and of the columns, which every reader compares; so do the pages' checksums.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.records import OMIT_NONE, plain_record, read_record
from resnet_pipeline.storage.copies import Copies

FORMAT = 1
_METADATA = b"resnet_pipeline"
_ROWS_PER_GROUP = 1024


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Probabilities float32 or float16 [N, C] of N samples in the split's order, with what they were computed from."""

    model: str
    weights_sha256: str
    dataset_fingerprint: str
    split: str
    protocol: str
    seconds: float
    keys: list[str]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.floating]

    @property
    def images_per_second(self) -> float:
        """Images (not views) per second of the evaluation that made the scores."""
        return len(self.keys) / self.seconds if self.seconds > 0 else 0.0

    @property
    def labelled(self) -> bool:
        """Whether every sample's label is known; those of a test archive are not."""
        return bool((self.labels >= 0).all())


def score_path(folder: Path, *, dataset_fingerprint: str, split: str, protocol: str, weights_sha256: str) -> Path:
    """Return where the scores of these weights under this protocol are kept.

    >>> sha = "0123456789abcdef" * 4
    >>> path = score_path(Path("s"), dataset_fingerprint=sha, split="val", protocol="p", weights_sha256=sha)
    >>> path.as_posix()
    's/0123456789ab/val/p/0123456789abcdef.parquet'
    """
    return folder / dataset_fingerprint[:12] / split / protocol / f"{weights_sha256[:16]}.parquet"


def write_scores(scores: Scores, path: Path) -> None:
    """Write a score file, atomically, with the probabilities' own type.

    Example: ``write_scores(average(members), path)``
    """
    classes = scores.probabilities.shape[1]
    flat = pa.array(np.ascontiguousarray(scores.probabilities).reshape(-1))
    facts = replace(_facts_of(scores), sha256=_digest(scores))
    table = pa.table(
        {
            "key": pa.array(scores.keys, pa.string()),
            "label": pa.array(scores.labels, pa.int32()),
            "scores": pa.FixedSizeListArray.from_arrays(flat, classes),
        }
    ).replace_schema_metadata({_METADATA: json.dumps(plain_record(facts)).encode()})
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=_ROWS_PER_GROUP,
            # probabilities don't repeat: a dictionary and compression cost time and save nothing
            use_dictionary=False,
            compression="none",
            write_page_checksum=True,
        )


def read_scores(path: Path) -> Scores:
    """Read a score file; UserError, naming the file, if it is missing, damaged or something else.

    Example: ``read_scores(path).probabilities.shape``
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = json.loads((file.schema_arrow.metadata or {}).get(_METADATA, b"{}"))
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is no score file of format {FORMAT}; evaluate again to make one")
            facts = read_record(_Facts, metadata)
            keys, labels, probabilities = _columns(file)
    except Exception as error:  # a damaged file makes its readers raise almost anything
        if str(path) in str(error) and isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"score file {path} can't be read: {reason}") from None
    scores = Scores(
        model=facts.model,
        weights_sha256=facts.weights_sha256,
        dataset_fingerprint=facts.dataset_fingerprint,
        split=facts.split,
        protocol=facts.protocol,
        seconds=facts.seconds,
        keys=keys,
        labels=labels,
        probabilities=probabilities,
    )
    if facts.sha256 is not None and facts.sha256 != _digest(scores):  # earlier versions wrote none
        raise UserError(f"score file {path} is damaged: it does not match its checksum; evaluate again")
    return scores


def merge_scores(parts: Sequence[Scores], keys: Sequence[str]) -> Scores:
    """Put the scores of disjoint parts of a split together, in the order of ``keys``.

    Raises ValueError unless the parts hold each key exactly once.

    Example: ``merge_scores(parts, dataset.splits["val"].keys)``
    """
    place = {key: row for row, key in enumerate(keys)}
    found = [key for part in parts for key in part.keys]
    if len(place) != len(keys) or len(found) != len(keys) or set(found) != set(place):
        raise ValueError(f"parts with {len(found)} samples are not the {len(keys)} samples, each once")
    rows = np.fromiter((place[key] for key in found), dtype=np.int64, count=len(found))
    probabilities = np.empty((len(keys), parts[0].probabilities.shape[1]), dtype=parts[0].probabilities.dtype)
    labels = np.empty(len(keys), dtype=np.int64)
    start = 0
    for part in parts:
        own = rows[start : start + len(part.keys)]
        probabilities[own], labels[own] = part.probabilities, part.labels
        start += len(part.keys)
    return replace(
        parts[0],
        seconds=sum(part.seconds for part in parts),
        keys=list(keys),
        labels=labels,
        probabilities=probabilities,
    )


def check_same_samples(scores: Sequence[Scores]) -> None:
    """Raise UserError naming the first scores whose dataset, split, samples or classes are not the first one's."""
    if not scores:
        raise UserError("no scores were named")
    first = scores[0]
    for other in scores[1:]:
        both = f"scores of {other.model} and {first.model} can't be used together"
        if other.dataset_fingerprint != first.dataset_fingerprint:
            raise UserError(f"{both}: their dataset fingerprints differ, {_short(other)} and {_short(first)}")
        if other.split != first.split:
            raise UserError(f"{both}: their splits differ, {other.split} and {first.split}")
        if len(other.keys) != len(first.keys):
            raise UserError(f"{both}: they have {len(other.keys):,} and {len(first.keys):,} samples")
        if other.keys != first.keys:
            row = next(row for row, pair in enumerate(zip(other.keys, first.keys, strict=True)) if pair[0] != pair[1])
            raise UserError(
                f"{both}: their keys differ: sample {row} is {other.keys[row]} in one, {first.keys[row]} in the other"
            )
        if other.probabilities.shape != first.probabilities.shape:
            raise UserError(
                f"{both}: they have {other.probabilities.shape[1]} and {first.probabilities.shape[1]} classes"
            )
        if not np.array_equal(other.labels, first.labels):
            raise UserError(f"{both}: their labels differ")


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """A score file's metadata: what its columns are of, and the SHA-256 of all that."""

    format: int
    model: str
    weights_sha256: str
    dataset_fingerprint: str
    split: str
    protocol: str
    seconds: float
    samples: int
    sha256: str | None = field(default=None, metadata=OMIT_NONE)


def _facts_of(scores: Scores) -> _Facts:
    return _Facts(
        format=FORMAT,
        model=scores.model,
        weights_sha256=scores.weights_sha256,
        dataset_fingerprint=scores.dataset_fingerprint,
        split=scores.split,
        protocol=scores.protocol,
        seconds=float(scores.seconds),
        samples=len(scores.keys),
    )


def _digest(scores: Scores) -> str:
    """Return the SHA-256 of scores: what they are of, their keys, labels and probabilities."""
    digest = hashlib.sha256(json.dumps([plain_record(_facts_of(scores)), scores.keys], sort_keys=True).encode())
    for column in (scores.labels.astype("<i4"), scores.probabilities):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _short(scores: Scores) -> str:
    return scores.dataset_fingerprint[:12]


def _columns(file: pq.ParquetFile) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.floating]]:
    """Read keys, labels and probabilities group by group, so that no second copy of the whole is made.

    Raises ValueError for values that are missing or not finite, and for labels beyond the classes.
    """
    rows, kind = file.metadata.num_rows, file.schema_arrow.field("scores").type
    keys: list[str] = []
    labels = np.empty(rows, dtype=np.int64)
    probabilities = np.empty((rows, kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    for number in range(file.num_row_groups):
        group = file.read_row_group(number)
        if any(group.column(name).null_count for name in group.column_names):
            raise ValueError(f"values are missing in row group {number}")
        part = slice(len(keys), len(keys) + group.num_rows)
        labels[part] = group.column("label").to_numpy()
        scores = group.column("scores").combine_chunks()
        probabilities[part] = scores.flatten().to_numpy().reshape(-1, kind.list_size)
        keys += group.column("key").to_pylist()
    if not np.isfinite(probabilities).all():
        raise ValueError("some scores are no finite numbers")
    if rows and not -1 <= labels.min() <= labels.max() < kind.list_size:
        raise ValueError(f"labels lie between {labels.min()} and {labels.max()}, of {kind.list_size} classes")
    return keys, labels, probabilities


class Parts:
    """The chunks of one score file: a folder of score files, named by the chunk's number and its size.

    Each is written whole or not at all, by the process that puts them together. Its folder belongs to the weights,
    dataset, protocol and samples of the score file's own path. What this object has read or been given it holds, so
    that no file is read twice. With ``copies`` they are kept elsewhere too, and found there.
    """

    def __init__(self, path: Path, sizes: Sequence[int], copies: Copies | None = None) -> None:
        self.path, self._sizes, self._copies = path, list(sizes), copies or Copies(path.parent)
        self._folder = path.with_name(f"{path.stem}.parts")
        self._held: dict[int, Scores] = {}

    def file(self, number: int) -> Path:
        """Return where a chunk's scores are kept."""
        return self._folder / f"{number:05d}-of-{len(self._sizes):05d}-{self._sizes[number]}.parquet"

    def missing(self) -> list[int]:
        """Return the numbers of the chunks that are not there, or can't be read."""
        self._copies.bring_all(self._folder)
        return [number for number in range(len(self._sizes)) if not self._good(number)]

    def keep(self, number: int, scores: Scores) -> None:
        """Keep a chunk's scores, here and on disk; the only chunk here alone: it is all that its score file holds."""
        if len(self._sizes) > 1:
            write_scores(scores, self.file(number))
            self._copies.send(self.file(number))
        self._held[number] = scores

    def merge(self, keys: Sequence[str]) -> Scores:
        """Return the scores of all chunks, none of which may be missing, in the order of ``keys``."""
        return merge_scores([self._held[number] for number in range(len(self._sizes))], keys)

    @property
    def seconds(self) -> float:
        """What the chunks that are held here took, added up."""
        return sum(scores.seconds for scores in self._held.values())

    def remove(self) -> None:
        """Remove the folder, and let go of what is held: the score file is written."""
        self._held.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._copies.remove_all(self._folder)

    def _good(self, number: int) -> bool:
        if number in self._held:
            return True
        if not self.file(number).exists():
            return False
        try:
            scores = read_scores(self.file(number))
        except UserError:  # a disk that filled up, a file that someone shortened: compute it again
            return False
        if len(scores.keys) != self._sizes[number]:
            return False
        self._held[number] = scores
        return True


def lacking_models(parts: Mapping[str, Parts]) -> dict[int, list[str]]:
    """Return the chunks that some model lacks, ascending, each with the names of those models."""
    missing = {name: set(part.missing()) for name, part in parts.items()}
    numbers = sorted(set().union(*missing.values()))
    return {number: [name for name in parts if number in missing[name]] for number in numbers}
