"""Score files: a network's class probabilities for each sample of a split, under one protocol, kept for good.

A score file is a Parquet table: ``key`` (the sample's original name), ``label`` (int32), ``scores`` (a list of one
float32 probability per class). What it belongs to is JSON in the schema's metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from resnet_pipeline.errors import UserError
from resnet_pipeline.workspace import replacing

FORMAT = 1
_METADATA = b"resnet_pipeline"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Probabilities float32 [N, C] of N samples in the split's order, with what they were computed from."""

    model: str
    weights_sha256: str
    dataset_fingerprint: str
    split: str
    protocol: str
    seconds: float
    keys: list[str]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @property
    def images_per_second(self) -> float:
        """Images (not views) per second of the evaluation that made the scores."""
        return len(self.keys) / self.seconds if self.seconds > 0 else 0.0


def score_path(folder: Path, *, dataset_fingerprint: str, split: str, protocol: str, weights_sha256: str) -> Path:
    """Return where the scores of these weights under this protocol are kept."""
    return folder / dataset_fingerprint[:12] / split / protocol / f"{weights_sha256[:16]}.parquet"


def write_scores(scores: Scores, path: Path) -> None:
    """Write a score file, atomically."""
    samples, classes = scores.probabilities.shape
    flat = pa.array(np.ascontiguousarray(scores.probabilities, dtype=np.float32).reshape(-1))
    metadata = {
        "format": FORMAT,
        "model": scores.model,
        "weights_sha256": scores.weights_sha256,
        "dataset_fingerprint": scores.dataset_fingerprint,
        "split": scores.split,
        "protocol": scores.protocol,
        "seconds": scores.seconds,
        "samples": samples,
    }
    table = pa.table(
        {
            "key": pa.array(scores.keys, pa.string()),
            "label": pa.array(scores.labels, pa.int32()),
            "scores": pa.FixedSizeListArray.from_arrays(flat, classes),
        }
    ).replace_schema_metadata({_METADATA: json.dumps(metadata).encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_scores(path: Path) -> Scores:
    """Read a score file; UserError names the file where it is missing, damaged or something else."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"score file {path} can't be read: {str(error).splitlines()[0]}") from None
    metadata = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is no score file of format {FORMAT}; evaluate again to make one")
    column = table.column("scores").combine_chunks()
    return Scores(
        model=metadata["model"],
        weights_sha256=metadata["weights_sha256"],
        dataset_fingerprint=metadata["dataset_fingerprint"],
        split=metadata["split"],
        protocol=metadata["protocol"],
        seconds=metadata["seconds"],
        keys=table.column("key").to_pylist(),
        labels=table.column("label").to_numpy().astype(np.int64),
        # a copy: Arrow's memory is read-only, which torch warns of
        probabilities=column.flatten().to_numpy().reshape(len(column), column.type.list_size).copy(),
    )
