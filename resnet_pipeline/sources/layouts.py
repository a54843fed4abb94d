"""Which layout a source has, found by looking at what it holds."""

from __future__ import annotations

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.names import escaped
from resnet_pipeline.sources import cifar10, coco, ilsvrc, image_folder, kaggle, voc
from resnet_pipeline.sources.archives import open_container
from resnet_pipeline.sources.catalogue import Catalogue, checked
from resnet_pipeline.sources.members import address_of
from resnet_pipeline.storage.base import Storage

LAYOUTS = (ilsvrc.WANTED, kaggle.WANTED, cifar10.WANTED, coco.WANTED, voc.WANTED, image_folder.WANTED)


def read_catalogue(storage: Storage, name: str = "", *, check_md5: bool = True) -> Catalogue:
    """Return what a source holds: the archive ``name`` of a storage, or all of the storage if the name is empty.

    ``check_md5`` compares ILSVRC's and CIFAR-10's archives with their published MD5s. Raises UserError if nothing
    is there or nothing can be read, RefusedError if the content is wrong.

    Example: ``read_catalogue(storage_at("raw"), "images.tar").layout``
    """
    if name and storage.stat(name) is None:
        raise UserError(f"source {address_of(storage, name)} does not exist; name a folder or an archive of images")
    if name in (ilsvrc.TRAIN, ilsvrc.VAL):
        raise UserError(f"source {address_of(storage, name)} is one of several; name the folder that holds them all")
    if not name:
        if (found := ilsvrc.ilsvrc(storage, check=check_md5)) is not None:
            return checked(found)
        for archive in (cifar10.PYTHON, cifar10.BINARY):
            if storage.stat(archive) is not None:
                return read_catalogue(storage, archive, check_md5=check_md5)
    container = open_container(storage, name)
    members = container.members()
    if not members:
        raise RefusedError(f"source {container.address} holds no files; it can be {_wanted()}")
    catalogue = (
        kaggle.kaggle(container, members)
        or cifar10.cifar10(container, members, check=check_md5)
        or coco.coco(container, members)
        or voc.voc(container, members)
        or image_folder.image_folder(container, members)
    )
    if catalogue is None:
        raise RefusedError(
            f"source {container.address} holds {len(members)} files (the first: {members[0].name}), but none of what "
            f"a source can be: {_wanted()}"
        )
    return checked(catalogue)


def source_files(storage: Storage, name: str = "") -> str:
    """Return what a source looks like from outside: its files' names, sizes and versions, a line for each.

    Example: ``source_files(storage_at("raw"))``
    """
    if name:
        stored = storage.stat(name)
        if stored is None:
            raise UserError(f"source {address_of(storage, name)} does not exist; name a folder or an archive of images")
        return f"{stored.size} {stored.version}"
    if any(
        storage.stat(archive) is not None for archive in (ilsvrc.TRAIN, ilsvrc.VAL)
    ):  # what else lies beside the archives does not matter
        files = [
            stored for archive in sorted((*ilsvrc.MD5, *ilsvrc.BOXES)) if (stored := storage.stat(archive)) is not None
        ]
    else:
        files = storage.files()
    return "\n".join(f"{escaped(f.name)} {f.size} {f.version}" for f in files)


def _wanted() -> str:
    return "; or ".join(LAYOUTS)
