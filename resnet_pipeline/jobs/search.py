"""A split searched part by part, so that a test that was stopped goes on; here or by Ray's workers."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.detection.results import Find, ImageFound, Results, ResultsFacts, read_kept_results, read_results
from resnet_pipeline.evaluation.scoring import chosen_samples
from resnet_pipeline.jobs.evaluate import on_ray
from resnet_pipeline.progress import progress
from resnet_pipeline.storage.copies import Copies
from resnet_pipeline.workspace import Workspace

PART_IMAGES = 100
"""Images that are searched before what was found is kept, so that a test that is killed goes on there."""


def searched(
    text: str,
    find: Find,
    micro_batch: int,
    dataset: Dataset,
    facts: ResultsFacts,
    path: Path,
    copies: Copies,
    *,
    workspace: Workspace,
    images: int | None = None,
    workers: int | None = None,
) -> tuple[Results, ResultsFacts]:
    """Search a split part by part, each kept until all are there, and keep the whole at ``path``; return it.

    ``dataset`` has the ``images`` that are searched alone (`chosen_samples`), ``text`` names what searches. The parts
    depend on them and on ``micro_batch`` alone, and are of whole batches, so that a test that was interrupted, or that
    ``workers`` of Ray make, finds the same.

    Example: ``searched("run", find, 16, dataset, facts, path, copies, workspace=workspace)[0].found``
    """
    split = facts.split
    count = len(dataset.splits[split])
    size = max(PART_IMAGES // micro_batch, 1) * micro_batch
    cuts = np.split(np.arange(count), range(size, count, size))
    folder = path.with_suffix(".parts")
    copies.bring_all(folder)
    files = [folder / f"{number:05d}-of-{len(cuts):05d}-{len(rows)}.json" for number, rows in enumerate(cuts)]
    cut = [dataset.part(split, rows) for rows in cuts]
    kept = {number: read_kept_results(file, facts, cut[number]) for number, file in enumerate(files)}
    there = {number: known for number, known in kept.items() if known is not None}
    lacking = [number for number in range(len(cuts)) if number not in there]

    def keep(number: int, found: list[ImageFound], seconds: float) -> None:
        own = replace(facts, seconds=seconds)
        there[number] = keep_results(Results(split=split, found=found), own, cut[number], files[number], copies)

    with progress(f"objects: {text}", total=sum(len(cuts[number]) for number in lacking)) as bar:
        if lacking and on_ray(workers, len(cuts)):
            from resnet_pipeline.adapters.ray.detect import find_on_ray

            whole_split = open_dataset(workspace, dataset.name)
            chosen = chosen_samples(len(whole_split.splits[split]), images)

            def keep_and_show(number: int, found: list[ImageFound], seconds: float) -> None:
                keep(number, found, seconds)
                bar.advance(len(found))

            parts = {number: (chosen[cuts[number]], cuts[number]) for number in lacking}
            find_on_ray(find, workspace, whole_split, split, parts, workers=workers, keep=keep_and_show)
        else:
            for number in lacking:
                start = time.perf_counter()
                found = find(cut[number], split, cuts[number], bar.advance)
                keep(number, found, time.perf_counter() - start)
    parts_there = [there[number] for number in range(len(cuts))]
    results = Results(split=split, found=[found for part, _ in parts_there for found in part.found])
    facts = replace(facts, seconds=sum(own.seconds for _, own in parts_there))
    whole = keep_results(results, facts, dataset, path, copies)
    shutil.rmtree(folder, ignore_errors=True)
    copies.remove_all(folder)
    return whole


def bring_results(
    path: Path, wanted: ResultsFacts, dataset: Dataset, copies: Copies
) -> tuple[Results, ResultsFacts] | None:
    """Return what is kept at a path, here or where score files are kept, as `read_kept_results` does.

    Example: ``bring_results(path, facts, dataset, score_copies(workspace))``
    """
    copies.bring(path)
    copies.bring(wanted.file(path))
    return read_kept_results(path, wanted, dataset)


def keep_results(
    results: Results, facts: ResultsFacts, dataset: Dataset, path: Path, copies: Copies
) -> tuple[Results, ResultsFacts]:
    """Write results and what they are of, here and where score files are kept; return them as they are read back.

    Example: ``keep_results(Results(split="val", found=found), facts, dataset, path, score_copies(workspace))``
    """
    results.write(dataset, path)
    facts = facts.keep(path)
    copies.send(path)
    copies.send(facts.file(path))
    return read_results(path, dataset, results.split), facts
