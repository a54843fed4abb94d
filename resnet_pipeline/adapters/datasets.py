"""Staged datasets by name, wherever the workspace's datasets lie."""

from __future__ import annotations

from resnet_pipeline.data.dataset import MANIFEST, Dataset, NoDatasetError
from resnet_pipeline.errors import UserError
from resnet_pipeline.storage.cache import CacheFolder
from resnet_pipeline.storage.s3 import storage_at
from resnet_pipeline.workspace import Workspace


def open_dataset(workspace: Workspace, name: str) -> Dataset:
    """Open a dataset of the workspace; from S3 by means of this machine's cache. UserError where it is not there."""
    try:
        return open_dataset_at(workspace, workspace.dataset(name))
    except NoDatasetError:
        names = dataset_names(workspace)
        known = f"staged are: {', '.join(names)}" if names else "none is staged"
        raise UserError(
            f"no dataset {name!r} under {workspace.data} ({known}); "
            f"stage it with: resnet-pipeline stage --source FOLDER-OR-ARCHIVE --name {name}"
        ) from None


def open_dataset_at(workspace: Workspace, address: str) -> Dataset:
    """Open the dataset at an address, as ``Workspace.dataset`` gave it on another machine, with this one's cache."""
    return Dataset.open(storage_at(address), CacheFolder(workspace.cache, workspace.cache_limit))


def dataset_names(workspace: Workspace) -> list[str]:
    """Return the names of the staged datasets."""
    paths = [stored.name.split("/") for stored in storage_at(workspace.data).files()]
    return [path[0] for path in paths if len(path) == 2 and path[1] == MANIFEST and not path[0].startswith(".")]
