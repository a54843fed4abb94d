"""A file of a storage brought to this machine: in concurrent ranges, hashed on the way; a killed one is resumed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from resnet_pipeline.parallel import map_ahead
from resnet_pipeline.storage.base import Storage

BLOCK = 8 * 2**20
_CONCURRENT = 8  # ranges that are under way at once


def download(
    storage: Storage, name: str, size: int, part: Path, blocks: Path, *, unless: Callable[[], bool] | None = None
) -> str | None:
    """Bring ``size`` bytes of a file into ``part`` and return their SHA-256, hexadecimal.

    ``blocks`` lists the blocks that are in ``part`` already, so that a killed download resumes. If the stored file is
    shorter, the hash is that of less. Returns None as soon as ``unless`` returns True. Raises what the storage raises,
    and OSError if ``part`` can't be written.

    Example: ``download(storage, "shards/train-00000.tar", size, path, path.with_suffix(".blocks"))``
    """
    have = _finished_blocks(blocks) if part.exists() else set()
    digest = hashlib.sha256()
    part.touch()  # it is never emptied: others count its size
    with part.open("r+b", buffering=0) as target, blocks.open("ab" if have else "wb", 0) as log:
        descriptor = target.fileno()
        os.ftruncate(descriptor, size)

        def bring(number: int) -> list[bytes]:
            offset, length = number * BLOCK, min(BLOCK, size - number * BLOCK)
            if number in have:
                return [os.pread(descriptor, length, offset)]
            pieces = storage.pieces(name, offset, length)
            for piece in pieces:
                _write_all(descriptor, piece, offset)
                offset += len(piece)
            log.write(b"%d\n" % number)
            return pieces

        with ThreadPoolExecutor(_CONCURRENT, thread_name_prefix="download") as pool:
            try:
                for pieces in map_ahead(pool, bring, range(-(-size // BLOCK)), _CONCURRENT):
                    for piece in pieces:
                        digest.update(piece)
                    if unless and unless():
                        return None
            finally:
                pool.shutdown(cancel_futures=True)
        os.fsync(descriptor)
    return digest.hexdigest()


def _finished_blocks(blocks: Path) -> set[int]:
    found: set[int] = set()
    with suppress(OSError, ValueError):
        found.update(int(line) for line in blocks.read_bytes().split(b"\n")[:-1])
    return found


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
