"""The staging job: images from anywhere to a staged dataset in the workspace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path

from resnet_pipeline.data.dataset import checked_manifest
from resnet_pipeline.data.image_files import Limits
from resnet_pipeline.data.manifest import MANIFEST, DamagedDatasetError, Manifest, Remark, read_origin
from resnet_pipeline.errors import StoppedError, UserError
from resnet_pipeline.files import local_path
from resnet_pipeline.settings import surroundings
from resnet_pipeline.sources.archives import ARCHIVES
from resnet_pipeline.sources.digits import write_digits
from resnet_pipeline.sources.scenes import write_scenes
from resnet_pipeline.staging.shard_pool import Workers
from resnet_pipeline.staging.stage import MAX_REFUSED, Options, Source, pack, source_fingerprint
from resnet_pipeline.storage import storage_at
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

DIGITS, SCENES = "builtin:digits", "builtin:scenes"
"""The sources that need no files: scikit-learn's handwritten digits, and these on backgrounds, for detectors."""


@dataclass(frozen=True, kw_only=True)
class StagedDataset:
    """A staged dataset: where it is, and its manifest; ``reused`` if the same source had been staged before."""

    address: str
    manifest: Manifest
    reused: bool


@dataclass(frozen=True, kw_only=True)
class StagingSummary:
    """What machines are told of a staged dataset.

    ``samples`` counts those of each split, ``classes`` the classes, ``resized`` the images that were made smaller;
    ``refused`` and ``converted`` are lists; ``hidden`` and ``ignored`` count files that the manifest names.
    """

    name: str
    path: str
    layout: str
    fingerprint: str
    samples: Mapping[str, int]
    classes: int
    refused: tuple[Remark, ...]
    converted: tuple[Remark, ...]
    resized: int
    hidden: int
    ignored: int
    reused: bool


def stage_dataset(
    workspace: Workspace,
    source: str,
    name: str,
    *,
    options: Options = Options(),  # noqa: B008 - frozen
    workers: int | None = None,
    max_refused: float = MAX_REFUSED,
    replace: bool = False,
) -> StagedDataset:
    """Audit and pack a source (or ``builtin:digits``, ``builtin:scenes``) as dataset ``name`` of the workspace.

    A dataset that was staged from the same source with the same options is reused. Another one of that name is an error
    unless ``replace``; one from this source whose own files are damaged is staged again. An interrupted one resumes.
    Raises UserError for whatever is wrong.

    Example: ``stage_dataset(Workspace.of(), "images.tar", "mine")``
    """
    options = replaced(options, limits=Limits.of_settings())
    destination = storage_at(workspace.dataset(name))
    place = _place(workspace, source)
    # a dataset of this name: reuse it, or say why not
    if destination.stat(MANIFEST) is not None:
        origin = read_origin(destination)
        if origin is not None and origin.fingerprint == source_fingerprint(place, options):
            try:
                manifest = checked_manifest(destination)
            except DamagedDatasetError as error:
                fault = str(error).partition(";")[0]
                _log.warning("dataset %s: %s; staging it again from the same files", name, fault)
                replace = True
            else:
                return StagedDataset(address=destination.url, manifest=manifest, reused=True)
        elif not replace:
            raise UserError(
                f"dataset {name!r} exists and was staged from other files or with other options; choose another "
                "--name, or --replace it"
            )
    # none yet, or one to replace
    with _makers(workers) as makers, _interruptible():
        manifest = pack(
            place,
            destination,
            name=name,
            options=options,
            workers=makers,
            max_refused=max_refused,
            replace=replace,
        )
    return StagedDataset(address=destination.url, manifest=manifest, reused=False)


def describe(staged: StagedDataset) -> str:
    """Return one line on a dataset: samples per split, classes, what was converted and left out, fingerprint.

    Example: ``describe(stage_dataset(Workspace.of(), "builtin:digits", "digits"))``
    """
    manifest = staged.manifest
    if staged.reused:
        return f"dataset {manifest.name}: staged before from the same files ({manifest.fingerprint[:12]})"
    samples = ", ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    resized, account = manifest.resized.images, manifest.account()
    return (
        f"dataset {manifest.name}: {samples} images of {len(manifest.classes)} classes "
        f"({manifest.layout}); {len(manifest.converted)} converted, "
        f"{f'{resized:,} made smaller, ' if resized else ''}{account['refused']:,} refused, "
        f"{account['hidden']:,} hidden, {account['ignored']:,} ignored; "
        f"fingerprint {manifest.fingerprint[:12]}; in {staged.address}"
    )


def summary(staged: StagedDataset) -> StagingSummary:
    """Return what ``--json`` writes.

    Example: ``summary(stage_dataset(Workspace.of(), "builtin:digits", "digits")).samples``
    """
    manifest, account = staged.manifest, staged.manifest.account()
    return StagingSummary(
        name=manifest.name,
        path=staged.address,
        layout=manifest.layout,
        fingerprint=manifest.fingerprint,
        samples={name: split.samples for name, split in manifest.splits.items()},
        classes=len(manifest.classes),
        refused=manifest.refused,
        converted=manifest.converted,
        resized=manifest.resized.images,
        hidden=account["hidden"],
        ignored=account["ignored"],
        reused=staged.reused,
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError("staging was stopped; the same command resumes it") from None


@contextmanager
def _makers(workers: int | None) -> Iterator[int | Callable[[], Workers] | None]:
    """Yield who makes the shards: the tasks of the cluster that RAY_ADDRESS names, else processes of this machine."""
    if not surroundings().ray_address:
        yield workers
        return
    from resnet_pipeline.adapters.ray.cluster import ray_cluster
    from resnet_pipeline.adapters.ray.staging import RayTasks

    with ray_cluster() as resources:
        yield lambda: RayTasks(resources, workers)


def digits_folder(workspace: Workspace) -> Path:
    """Return where ``builtin:digits`` are written."""
    return workspace.root / "sources" / "digits"


def _place(workspace: Workspace, source: str) -> Source:
    if source == DIGITS:
        folder = digits_folder(workspace)
        write_digits(folder)
        return Source.at(folder)
    if source == SCENES:
        folder = digits_folder(workspace).with_name("scenes")
        write_scenes(folder)
        return Source.at(folder)
    if not source.startswith("s3://"):
        return Source.at(local_path(source))
    if source.lower().endswith(ARCHIVES):
        prefix, _, archive = source.rpartition("/")
        return Source(storage_at(prefix), archive)
    return Source(storage_at(source))
