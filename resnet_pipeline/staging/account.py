"""What a staging has packed, refused, hidden and ignored: the account of a source's files, and what it warns of."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.duplicates import Duplicates, duplicates_of
from resnet_pipeline.data.manifest import Manifest, ObjectFacts, Remark
from resnet_pipeline.sources.catalogue import Catalogue
from resnet_pipeline.sources.columns import Numbers, repeated
from resnet_pipeline.sources.entries import UNLABELLED
from resnet_pipeline.staging.manifest import labels_of
from resnet_pipeline.staging.shard_plan import Shard
from resnet_pipeline.staging.shard_writer import Record

_log = logging.getLogger(__name__)

_NAMED = 5  # refused and ignored files that the log names


class Account:
    """What has been packed, and what was refused, beside what was found."""

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self.refused: list[Remark] = []
        self._packed: list[Numbers] = []
        self._checksums: list[npt.NDArray[np.uint64]] = []

    def counted(self, records: Iterable[tuple[Shard, Record]]) -> Iterator[tuple[Shard, Record]]:
        """Yield the records, counting what they say."""
        for shard, record in records:
            self.samples[shard.split] += len(record.rows)
            self.refused += record.refused
            if len(record.checksums) == len(record.rows):  # an older version's record has none
                self._packed.append(shard.numbers[[row[0] for row in record.rows]])
                self._checksums.append(np.array(record.checksums, np.uint64))
            yield shard, record

    def log(self, name: str, catalogue: Catalogue, manifest: Manifest) -> None:
        """Log the account of the source's files, the first of each kind by name, and what the dataset lacks."""
        counts = manifest.account()
        _log.info(
            "dataset %s: %s files found = %s packed + %s refused + %s hidden + %s ignored",
            name,
            *(f"{count:,}" for count in (sum(counts.values()), *counts.values())),
        )
        _log_first("refused", sorted((remark.file, remark.reason) for remark in self.refused))
        _log_first("ignored", [(item.file, item.reason) for item in catalogue.ignored])
        for line in self._duplicates(catalogue).lines():
            _log.warning("dataset %s: %s; `data verify --json` names more", name, line)
        if manifest.objects is not None:
            self._log_objects(name, manifest.objects)
        kinds = catalogue.entries.kinds()
        useful = {split for split, label in kinds if label != UNLABELLED or catalogue.objects is not None}
        splits = {split for split in useful if self.samples[split]}
        if "train" not in splits:
            _log.warning("dataset %s has no training images: it is for testing alone", name)
        elif not splits - {"train"}:
            _log.warning(
                "dataset %s has no validation split, and no recipe trains without one: give it val/<class>/*, or stage "
                "it with --holdout N",
                name,
            )

    def _duplicates(self, catalogue: Catalogue) -> Duplicates:
        """Return what samples have a checksum in common; only such samples are looked at one by one."""
        checksums = np.concatenate([np.zeros(0, np.uint64), *self._checksums])
        numbers = np.concatenate([np.zeros(0, np.int64), *self._packed])
        again = repeated(checksums)
        label_of, packed = labels_of(catalogue), list(catalogue.entries.part(numbers[again]))
        return duplicates_of(
            checksums[again],
            [entry.split for entry in packed],
            [label_of[entry.label] for entry in packed],
            [entry.key for entry in packed],
        )

    def _log_objects(self, name: str, facts: ObjectFacts) -> None:
        _log.info(
            "dataset %s: %s objects, %s of them with masks; %s boxes clipped to their images, %s objects or masks left "
            "out",
            name,
            *(f"{count:,}" for count in (facts.objects, facts.masks, facts.clipped, len(facts.left_out))),
        )
        _log_first("left out", [(remark.file, remark.reason) for remark in facts.left_out])


def _log_first(what: str, files: list[tuple[str, str]]) -> None:
    for file, reason in files[:_NAMED]:
        _log.info("  %s: %s, %s", what, file, reason)
    if len(files) > _NAMED:
        _log.info("  %s: and %s more", what, f"{len(files) - _NAMED:,}")
