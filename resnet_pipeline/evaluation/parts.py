"""Scores of finished chunks, kept beside the score file until it is whole, so that a killed evaluation goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.scores import Scores, merge_scores, read_scores, write_scores


class Parts:
    """The chunks of one score file: a folder of score files, named by the chunk's number and its size.

    Each is written whole or not at all. Its folder belongs to the weights, dataset, protocol and samples of the score
    file's own path.
    """

    def __init__(self, path: Path, sizes: Sequence[int]) -> None:
        self.path, self._sizes = path, list(sizes)
        self._folder = path.with_name(f"{path.stem}.parts")

    def file(self, number: int) -> Path:
        """Return where a chunk's scores are kept."""
        return self._folder / f"{number:05d}-of-{len(self._sizes):05d}-{self._sizes[number]}.parquet"

    def missing(self) -> list[int]:
        """Return the numbers of the chunks that are not there, or can't be read."""
        return [number for number in range(len(self._sizes)) if not self._good(number)]

    def write(self, number: int, scores: Scores) -> None:
        """Keep a chunk's scores."""
        write_scores(scores, self.file(number))

    def merge(self, keys: Sequence[str]) -> Scores:
        """Return the scores of all chunks, in the order of ``keys``."""
        return merge_scores([read_scores(self.file(number)) for number in range(len(self._sizes))], keys)

    def remove(self) -> None:
        """Remove the folder: the score file is written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _good(self, number: int) -> bool:
        if not self.file(number).exists():
            return False
        try:
            return len(read_scores(self.file(number)).keys) == self._sizes[number]
        except UserError:  # a disk that filled up, a file that someone shortened: compute it again
            return False


def lacking_models(parts: Mapping[str, Parts]) -> dict[int, list[str]]:
    """Return the chunks that some model lacks, ascending, each with the names of those models."""
    missing = {name: set(part.missing()) for name, part in parts.items()}
    numbers = sorted(set().union(*missing.values()))
    return {number: [name for name in parts if number in missing[name]] for number in numbers}
