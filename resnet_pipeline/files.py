"""Files written whole or not at all, their hashes, and JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_pipeline.errors import UserError

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class WriteError(UserError, OSError):
    """A file can't be written: no room, no permission. An OSError too, for who can do without the file."""

    def __init__(self, text: str, number: int = 0, reason: str = "") -> None:
        super().__init__(text)
        self.errno, self.strerror = number, reason

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``, on error removed.

    A link stays, and what it names is replaced. What is no regular file (a device, a pipe) is written into.
    Raises WriteError, which names ``path``, for a folder that can't be written to and a disk that is full, also if a
    library has made an exception of its own of that.

    Example: ``with replacing(path) as temporary: temporary.write_text("all of it, or nothing")``
    """
    # a file beside the one that is to be replaced, so that renaming does it
    temporary, target = _begun(path)
    # the caller writes it; then it is made safe and takes the place
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if target is None:
            with temporary.open("rb") as source, path.open("wb") as stream:
                shutil.copyfileobj(source, stream)
            return
        temporary.chmod(0o644)  # mkstemp's 0600 would hide the file from other users of a shared root
        temporary.replace(target)
    except UserError:
        raise
    # a disk that is full, whatever a library has made of that
    except Exception as error:
        for one in (error, error.__context__):
            for number in _OF_THE_DISK:
                if one and (getattr(one, "errno", None) == number or os.strerror(number) in str(one)):
                    raise _not_written(path, number) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def local_path(address: Path | str) -> Path:
    """Return the absolute path of a place on this machine, ``~`` and links followed.

    Raises UserError for an address of something else, which would become a folder called ``https:``, and for none.
    """
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(?=/)", str(address))
    if scheme and not Path(scheme[0]).exists():  # what follows may hold a password, so it is not shown
        raise UserError(f"an address that begins with {scheme[0]}// is no place on this machine; name a path")
    if not str(address):
        raise UserError("a path is empty; name a folder or a file")
    return Path(os.path.realpath(Path(address).expanduser()))  # which takes a link to itself for a path, too


def check_writable(path: Path) -> None:
    """Raise WriteError if a file can't be written there: before the work whose result it is to hold."""
    temporary, _ = _begun(path)
    temporary.unlink(missing_ok=True)


def _begun(path: Path) -> tuple[Path, Path | None]:
    """Make a temporary file for ``path``; return it, and what it is to be renamed to, None if that is no file."""
    try:
        special = _is_special(path)
        target = path.resolve() if path.is_symlink() and not special else path
        folder = Path(tempfile.gettempdir()) if special else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
        os.close(handle)
    except OSError as error:  # what mkdir says of a file in a folder's place is that it exists
        number = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno or 0
        raise _not_written(path, number) from error
    return Path(name), None if special else target


def _is_special(path: Path) -> bool:
    """Return whether what is there is no regular file; IsADirectoryError for a folder."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return not stat.S_ISREG(mode)


def _not_written(path: Path, number: int) -> WriteError:
    reason = os.strerror(number)
    return WriteError(f"{path} can't be written: {reason}", number, reason)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Example: ``sha256_of(path)[:12]``
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; UserError names the file if it can't be read or holds something else.

    Example: ``read_json(run.result_file)["steps"]``
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{path} can't be read: {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} can't be read: it holds no JSON object")
    return value


def json_text(value: Any) -> str:
    """Return a value as indented JSON, its keys sorted, with a new line at the end."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Example: ``write_json(Path("result.json"), {"steps": 60})``
    """
    with replacing(path) as temporary:
        temporary.write_text(json_text(value))
