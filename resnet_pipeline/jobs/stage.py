"""The staging job: images from anywhere to a staged dataset in the workspace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.digits import write_digits
from resnet_pipeline.data.shards import source_fingerprint, stage
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.progress import counting
from resnet_pipeline.workspace import Workspace

DIGITS = "builtin:digits"
"""The source that needs no files: scikit-learn's handwritten digits."""


@dataclass(frozen=True, kw_only=True)
class StagedDataset:
    """A staged dataset; ``reused`` if the same source had been staged before."""

    dataset: Dataset
    reused: bool


def stage_dataset(
    workspace: Workspace,
    source: str,
    name: str,
    *,
    workers: int | None = None,
    max_refused: float = 0.01,
    replace: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> StagedDataset:
    """Audit and pack a folder or archive of images (or ``builtin:digits``) as dataset ``name`` of the workspace.

    A dataset that was staged from the same source is reused. Another one of that name is an error unless ``replace``.
    Raises UserError for whatever is wrong with the source.
    """
    destination = Path(workspace.dataset(name))
    path = _local(workspace, source)
    if destination.exists():
        existing = Dataset.open(destination)
        if existing.source_fingerprint == source_fingerprint(path):
            say(f"dataset {name}: staged before from the same files ({existing.fingerprint[:12]})")
            return StagedDataset(dataset=existing, reused=True)
        if not replace:
            raise UserError(
                f"dataset {name!r} exists and was staged from other files; choose another --name, or --replace it"
            )
    with counting(f"staging {name}", quiet=quiet, say=say) as update:
        dataset = stage(
            path,
            destination,
            name=name,
            workers=workers,
            max_refused=max_refused,
            replace=replace,
            progress=lambda done, total, refused: update(done, total, f"{refused} refused"),
        )
    say(describe(dataset))
    return StagedDataset(dataset=dataset, reused=False)


def describe(dataset: Dataset) -> str:
    """Return one line on a dataset: samples per split, classes, what was converted and refused, fingerprint."""
    samples = ", ".join(f"{len(split):,} {split_name}" for split_name, split in dataset.splits.items())
    manifest = dataset.manifest
    return (
        f"dataset {dataset.name}: {samples} images of {len(dataset.classes)} classes; {len(manifest['converted'])} "
        f"converted, {len(manifest['refused'])} refused; fingerprint {dataset.fingerprint[:12]}; in {dataset.path}"
    )


def summary(staged: StagedDataset) -> dict[str, Any]:
    """Return what ``--json`` writes."""
    dataset = staged.dataset
    return {
        "name": dataset.name,
        "path": str(dataset.path),
        "fingerprint": dataset.fingerprint,
        "samples": {name: len(split) for name, split in dataset.splits.items()},
        "classes": len(dataset.classes),
        "refused": dataset.manifest["refused"],
        "converted": dataset.manifest["converted"],
        "reused": staged.reused,
    }


def _local(workspace: Workspace, source: str) -> Path:
    if source == DIGITS:
        folder = workspace.root / "sources" / "digits"
        write_digits(folder)
        return folder
    if source.startswith("s3://"):
        raise UserError(f"{source}: sources in S3 are not read yet; copy the folder or archive to this machine first")
    return Path(source).expanduser().resolve()
