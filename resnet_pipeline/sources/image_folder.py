"""The plain layout: ``split/class/image`` files, in a folder or an archive.

Splits are ``train``, ``val`` (``valid`` and ``validation`` are taken as ``val``) and ``test``. One folder may enclose
everything.
"""

from __future__ import annotations

from collections.abc import Iterable

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.sources.archives import Container, Member
from resnet_pipeline.sources.catalogue import Catalogue, Entry

WANTED = "images in train/<class>/* and val/<class>/*"

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def image_folder(container: Container, members: list[Member]) -> Catalogue | None:
    """Return the catalogue, None if nothing lies under ``train/<class>/``.

    Raises RefusedError if a class folder has no files.
    """
    visible = [m for m in members if not hidden(m.name)]
    prefix = _common_prefix(m.name for m in visible)
    entries = []
    for member in visible:
        parts = member.name.removeprefix(prefix).split("/")
        if len(parts) >= 3 and parts[0] in _SPLITS:
            entries.append(Entry(member, _SPLITS[parts[0]], parts[1]))
    classes = sorted({e.label for e in entries if e.split == "train"})
    if not classes:
        return None
    _check_filled(container, members, prefix, {(e.split, e.label) for e in entries})
    return Catalogue(
        layout="image folder",
        address=container.address,
        storage=container.storage,
        entries=entries,
        classes=classes,
        stream=(lambda wanted: container.read([e.member for e in wanted])) if container.in_sequence else None,
    )


def hidden(name: str) -> bool:
    """Return whether a file is one that an operating system leaves in folders."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _check_filled(container: Container, members: list[Member], prefix: str, filled: set[tuple[str, str]]) -> None:
    folders = {m.name.rpartition("/")[0] for m in members} | set(container.folders())
    for folder in sorted(folders):
        parts = folder.removeprefix(prefix).split("/")
        if hidden(folder) or len(parts) != 2 or parts[0] not in _SPLITS:
            continue
        if (_SPLITS[parts[0]], parts[1]) not in filled:
            raise RefusedError(f"class folder {folder} of {container.address} holds no images; fill or remove it")


def _common_prefix(names: Iterable[str]) -> str:
    """Return the one folder that encloses everything, with its slash, unless the top has a split itself."""
    tops = {name.split("/", 1)[0] for name in names}
    if tops & set(_SPLITS) or len(tops) != 1:
        return ""
    return f"{tops.pop()}/"
