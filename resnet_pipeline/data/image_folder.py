"""Sources: a folder of ``split/class/image`` files, or an archive of that, read without unpacking it.

Splits are ``train`` and ``val`` (``valid`` and ``validation`` are taken as ``val``) or ``test``. An archive may have
one folder around everything.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from resnet_pipeline.errors import UserError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_TAR_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


@dataclass(frozen=True)
class File:
    """A file of a source: its name there (``/`` between folders) and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A file with its place in the dataset; ``key`` is ``split/class/name``."""

    file: File
    split: str
    label: str

    @property
    def key(self) -> str:
        """The sample's name, kept in the index and in score files."""
        return f"{self.split}/{self.label}/{PurePosixPath(self.file.name).name}"


class Source(ABC):
    """Files by name, and their contents in the same order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def files(self) -> list[File]:
        """List the regular files; UserError for an unreadable source or a member that could write elsewhere."""

    @abstractmethod
    def read(self, files: Sequence[File]) -> Iterator[bytes]:
        """Yield the contents of files, which are in the order of ``files()``."""

    @property
    @abstractmethod
    def folders(self) -> list[str]:
        """The folders that were listed, also empty ones; known after ``files()``."""


class _Folder(Source):
    def files(self) -> list[File]:
        found: list[File] = []
        self._folders: list[str] = []
        for folder, names, files in os.walk(self.path, followlinks=True):
            names.sort()
            relative = Path(folder).relative_to(self.path)
            self._folders.append(relative.as_posix())
            for name in sorted(files):
                path = Path(folder) / name
                if path.is_file():
                    found.append(File((relative / name).as_posix(), path.stat().st_size))
        return found

    def read(self, files: Sequence[File]) -> Iterator[bytes]:
        for file in files:
            try:
                yield (self.path / file.name).read_bytes()
            except OSError as error:
                raise UserError(f"{self.path / file.name} can't be read: {error.strerror}") from None

    @property
    def folders(self) -> list[str]:
        return self._folders


class _Tar(Source):
    def files(self) -> list[File]:
        found: list[File] = []
        self._folders: list[str] = []
        end = 0
        try:
            with _open_tar(self.path) as tar:
                for member in tar:
                    end = member.offset_data + (-(-member.size // 512) * 512 if member.isreg() else 0)
                    _check_member(self.path, member.name, plain=member.isreg() or member.isdir())
                    if member.isdir():
                        self._folders.append(_clean(member.name))
                    else:
                        found.append(File(_clean(member.name), member.size))
        except _TAR_ERRORS as error:
            raise UserError(f"archive {self.path} can't be read: {_reason(error)}") from None
        # tarfile takes a missing end for the end; compressed archives have checks of their own
        if self.path.name.lower().endswith(".tar") and self.path.stat().st_size < end + 512:
            raise UserError(f"archive {self.path} can't be read: it is cut off after {found[-1].name if found else 0}")
        return found

    def read(self, files: Sequence[File]) -> Iterator[bytes]:
        wanted = iter(files)
        file = next(wanted, None)
        try:
            with _open_tar(self.path) as tar:
                for member in tar:
                    if file is None:
                        return
                    if not member.isreg() or _clean(member.name) != file.name:
                        continue
                    content = tar.extractfile(member)
                    yield content.read() if content else b""
                    file = next(wanted, None)
        except _TAR_ERRORS as error:
            raise UserError(f"archive {self.path} can't be read at {file and file.name}: {_reason(error)}") from None

    @property
    def folders(self) -> list[str]:
        return self._folders


class _Zip(Source):
    def files(self) -> list[File]:
        found: list[File] = []
        self._folders: list[str] = []
        try:
            with zipfile.ZipFile(self.path) as archive:
                for info in archive.infolist():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    _check_member(self.path, info.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
                    if info.is_dir():
                        self._folders.append(_clean(info.filename))
                    else:
                        found.append(File(_clean(info.filename), info.file_size))
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"archive {self.path} can't be read: {_reason(error)}") from None
        return found

    def read(self, files: Sequence[File]) -> Iterator[bytes]:
        name = ""
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = {_clean(info.filename): info for info in archive.infolist()}
                for file in files:
                    name = file.name
                    yield archive.read(names[name])
        except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError) as error:
            raise UserError(f"archive {self.path} can't be read at {name}: {_reason(error)}") from None

    @property
    def folders(self) -> list[str]:
        return self._folders


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file as a stream; the decompressors raise at a cut, which tarfile's own stream mode overlooks."""
    name = path.name.lower()
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opener: Callable[..., Any] = next((o for suffix, o in openers.items() if name.endswith(suffix)), open)
    with opener(path, "rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
        yield tar


def open_source(path: Path) -> Source:
    """Return the source of a folder or archive; UserError where the path is missing or neither."""
    if path.is_dir():
        return _Folder(path)
    if not path.exists():
        raise UserError(f"source {path} does not exist; name a folder or an archive of images")
    if path.name.lower().endswith(".zip"):
        return _Zip(path)
    if path.name.lower().endswith(_ARCHIVES):
        return _Tar(path)
    raise UserError(f"source {path} is neither a folder nor an archive ({', '.join(_ARCHIVES)})")


def list_entries(source: Source) -> tuple[list[Entry], list[str]]:
    """Return the source's entries, in its order, and the classes, sorted.

    Raises UserError where there is no train split, a class folder without files, a class that train lacks, or two
    files of one name.
    """
    files = [f for f in source.files() if not _hidden(f.name)]
    folders = [f for f in source.folders if not _hidden(f)]
    if not files:
        raise UserError(f"{source.path} holds no files")
    prefix = _common_prefix([f.name for f in files])
    entries = []
    for file in files:
        parts = _below(file.name, prefix).split("/")
        if len(parts) >= 3 and parts[0] in _SPLITS:
            entries.append(Entry(file, _SPLITS[parts[0]], parts[1]))
    classes = sorted({e.label for e in entries if e.split == "train"})
    if not classes:
        raise UserError(f"{source.path} has no images under train/<class>/; it needs train/<class>/* and val/<class>/*")
    filled = {(e.split, e.label) for e in entries}
    for folder in folders:
        parts = _below(folder, prefix).split("/")
        if len(parts) == 2 and parts[0] in _SPLITS and (_SPLITS[parts[0]], parts[1]) not in filled:
            raise UserError(f"class folder {folder} of {source.path} holds no images; fill or remove it")
    known = set(classes)
    for entry in entries:
        if entry.label not in known:
            raise UserError(f"{source.path}: class {entry.label!r} of {entry.split} has no images in train")
    seen: set[str] = set()
    for entry in entries:
        if entry.key in seen:
            raise UserError(f"{source.path} holds {entry.key} twice")
        seen.add(entry.key)
    return entries, classes


def _common_prefix(names: Iterable[str]) -> str:
    """Return the one folder that stands around everything, with its slash, unless the top has a split itself."""
    tops = {name.split("/", 1)[0] for name in names}
    if tops & set(_SPLITS) or len(tops) != 1:
        return ""
    return f"{tops.pop()}/"


def _below(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _clean(name: str) -> str:
    return PurePosixPath(name).as_posix()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")) and name != "."


def _check_member(path: Path, name: str, *, plain: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and parts[0].endswith(":")):
        raise UserError(f"archive {path} is refused: member {name!r} points outside of it")
    if not plain:
        raise UserError(f"archive {path} is refused: member {name!r} is a link or a device, not a file")


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
