from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.storage import cache as module
from resnet_pipeline.storage import download as downloads
from resnet_pipeline.storage.cache import Cache, CacheFolder, Wanted
from resnet_pipeline.storage.local import LocalStorage

SIZE = 100_000


@dataclass(frozen=True)
class Counted(LocalStorage):
    """A folder that counts what is read, and can fail or wait first."""

    reads: list[int] = field(default_factory=list)
    fail_at: int = 10**9
    gate: threading.Event | None = None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if self.gate is not None:
            self.gate.wait(10)
        if len(self.reads) >= self.fail_at:
            raise UserError(f"{self.url}/{name}: the connection was cut again and again")
        self.reads.append(offset)
        return super().read(name, offset, length)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(downloads, "BLOCK", 10_000)


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a storage with files of random bytes, and what is wanted of it."""

    def make(count: int, **options) -> tuple[Counted, list[Wanted]]:
        (tmp_path / "bucket").mkdir(exist_ok=True)
        storage = Counted(tmp_path / "bucket", **options)
        wanted = []
        for i in range(count):
            content = np.random.default_rng(i).bytes(SIZE)
            storage.write(f"shards/{i}", content)
            wanted.append(Wanted(f"shards/{i}", SIZE, hashlib.sha256(content).hexdigest()))
        return storage, wanted

    return make


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "locks")


def test_a_file_is_brought_once_and_is_what_was_stored(make, tmp_path):
    storage, wanted = make(1)
    folder = CacheFolder(tmp_path / "cache")
    for _ in range(2):
        path = Cache(folder).hold(storage, wanted[0])
        assert path.read_bytes() == storage.root.joinpath("shards/0").read_bytes()
    assert sorted(storage.reads) == list(range(0, SIZE, 10_000)) and files_in(folder.path) == [wanted[0].sha256]


def test_a_download_that_was_cut_goes_on_where_it_was(make, tmp_path):
    storage, wanted = make(1, fail_at=4)
    folder = CacheFolder(tmp_path / "cache")
    with pytest.raises(UserError, match="cut again"):
        Cache(folder).hold(storage, wanted[0])
    assert files_in(folder.path) == [f"{wanted[0].sha256}.blocks", f"{wanted[0].sha256}.part"]
    again = Counted(storage.root)
    path = Cache(folder).hold(again, wanted[0])
    assert sorted(storage.reads + again.reads) == list(range(0, SIZE, 10_000)) and len(storage.reads) == 4
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted[0].sha256


def test_a_download_that_never_began_leaves_nothing(make, tmp_path):
    storage, wanted = make(1, fail_at=0)
    with pytest.raises(UserError, match="cut again"):
        Cache(CacheFolder(tmp_path / "cache")).hold(storage, wanted[0])
    assert files_in(tmp_path / "cache") == []


@pytest.mark.slow
def test_a_killed_download_goes_on(make, tmp_path):
    storage, wanted = make(1)
    code = f"""
import os, signal, time
from pathlib import Path
from resnet_pipeline.storage import download
from resnet_pipeline.storage.cache import Cache, CacheFolder, Wanted
from resnet_pipeline.storage.local import LocalStorage
download.BLOCK = 10_000
class Dies(LocalStorage):
    def read(self, name, offset=0, length=None):
        if offset == 70_000:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name, offset, length)
Cache(CacheFolder(Path({str(tmp_path / "cache")!r}))).hold(Dies(Path({str(storage.root)!r})), {wanted[0]!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    path = Cache(CacheFolder(tmp_path / "cache")).hold(storage, wanted[0])
    assert 70_000 in storage.reads and len(storage.reads) < 5
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted[0].sha256


def test_a_part_that_was_damaged_is_brought_again(make, tmp_path):
    storage, wanted = make(1, fail_at=6)
    folder = CacheFolder(tmp_path / "cache")
    with pytest.raises(UserError):
        Cache(folder).hold(storage, wanted[0])
    (folder.path / f"{wanted[0].sha256}.part").write_bytes(b"\1" * SIZE)
    path = Cache(folder).hold(Counted(storage.root), wanted[0])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted[0].sha256
    assert files_in(folder.path) == [wanted[0].sha256]


@pytest.mark.parametrize("content", [b"short", b"x" * SIZE, b"x" * (SIZE + 1)])
def test_what_is_not_what_was_staged_is_fetched_twice_and_named(make, tmp_path, content):
    storage, wanted = make(1)
    storage.write("shards/0", content)
    with pytest.raises(UserError, match=r"shards/0 is not what was staged: fetched twice, it has .* stage the dataset"):
        Cache(CacheFolder(tmp_path / "cache")).hold(storage, wanted[0])
    assert sorted(storage.reads) == sorted(2 * list(range(0, SIZE, 10_000))) and files_in(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", [b"short", b"x" * SIZE])
def test_a_cached_file_that_changed_is_brought_again(make, tmp_path, damage):
    storage, wanted = make(1)
    cache = Cache(CacheFolder(tmp_path / "cache"))
    path = cache.hold(storage, wanted[0])
    cache.release(wanted[0])
    path.write_bytes(damage)
    assert cache.hold(storage, wanted[0]).read_bytes() == storage.root.joinpath("shards/0").read_bytes()
    assert len(storage.reads) == 20


def test_a_cache_that_was_copied_is_hashed_instead_of_brought(make, tmp_path):
    storage, wanted = make(1)
    path = Cache(CacheFolder(tmp_path / "cache")).hold(storage, wanted[0])
    path.touch()
    Cache(CacheFolder(tmp_path / "cache")).hold(storage, wanted[0])
    assert len(storage.reads) == 10 and path.stat().st_mtime_ns == module._VERIFIED_NS


def test_the_least_recently_used_file_goes_and_never_one_that_is_held(make, tmp_path):
    storage, wanted = make(6)
    folder = CacheFolder(tmp_path / "cache", limit=3 * SIZE)
    cache, other = Cache(folder), Cache(folder)
    for i in (0, 1, 2):
        cache.hold(storage, wanted[i])
    cache.release(wanted[0])
    cache.release(wanted[1])
    other.hold(storage, wanted[0])  # in use by another reader, and used more recently than 1
    other.release(wanted[0])
    other.hold(storage, wanted[2])
    cache.release(wanted[2])  # the other one still holds it
    cache.hold(storage, wanted[3])
    assert set(files_in(folder.path)) == {wanted[i].sha256 for i in (0, 2, 3)}
    cache.hold(storage, wanted[4])
    assert set(files_in(folder.path)) == {wanted[i].sha256 for i in (2, 3, 4)}
    assert cache.hold(storage, wanted[5], unless=lambda: False) is None  # all is held: no room in the background
    assert cache.hold(storage, wanted[5]) is not None  # but who needs it now gets it
    assert set(files_in(folder.path)) == {wanted[i].sha256 for i in (2, 3, 4, 5)}


def test_one_brings_a_file_and_the_others_wait(make, tmp_path):
    gate = threading.Event()
    storage, wanted = make(1, gate=gate)
    folder = CacheFolder(tmp_path / "cache")
    found: list[Path | None] = []
    threads = [threading.Thread(target=lambda: found.append(Cache(folder).hold(storage, wanted[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not (folder.path / f"{wanted[0].sha256}.part").exists():
        time.sleep(0.01)
    assert Cache(folder).hold(storage, wanted[0], unless=lambda: False) is None  # in the background nobody waits
    gate.set()
    for thread in threads:
        thread.join()
    assert len(storage.reads) == 10 and len(set(found)) == 1


def test_bringing_in_the_background_can_be_given_up_and_goes_on_later(make, tmp_path):
    storage, wanted = make(1)
    cache = Cache(CacheFolder(tmp_path / "cache"))
    assert cache.hold(storage, wanted[0], unless=lambda: bool(storage.reads)) is None
    before = len(storage.reads)
    assert before > 0 and cache.hold(storage, wanted[0]) is not None
    assert len(storage.reads) == 10


def test_leftovers_of_killed_processes_are_removed_in_time(make, tmp_path):
    storage, wanted = make(2, fail_at=3)
    folder = CacheFolder(tmp_path / "cache", limit=SIZE)
    with pytest.raises(UserError):
        Cache(folder).hold(storage, wanted[0])
    part = folder.path / f"{wanted[0].sha256}.part"
    Cache(folder)
    assert part.exists()
    os.utime(part, (time.time() - 2 * 86400,) * 2)
    Cache(folder)
    assert files_in(folder.path) == []
    with pytest.raises(UserError):
        Cache(folder).hold(Counted(storage.root, fail_at=3), wanted[0])
    assert Cache(folder).hold(Counted(storage.root), wanted[1]) is not None
    assert files_in(folder.path) == [wanted[1].sha256]


def test_a_full_disk_is_told_before_and_while_bringing(make, tmp_path, monkeypatch):
    storage, wanted = make(2)
    cache = Cache(CacheFolder(tmp_path / "cache"))
    cache.hold(storage, wanted[0])
    real = module.shutil.disk_usage
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: real(path)._replace(free=SIZE - 1))
    with pytest.raises(UserError, match=r"cache .*cache needs 0 MiB for shards/1, but 0 MiB are free; free some, or"):
        cache.hold(storage, wanted[1])
    cache.release(wanted[0])  # now it may go, but frees nothing here
    with pytest.raises(UserError, match="are free"):
        cache.hold(storage, wanted[1])
    assert files_in(tmp_path / "cache") == []


@pytest.mark.slow
def test_a_file_too_large_for_the_disk(make, tmp_path):
    storage, wanted = make(1)
    code = f"""
import resource, signal
from pathlib import Path
from resnet_pipeline.storage.cache import *
from resnet_pipeline.storage.local import LocalStorage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    Cache(CacheFolder(Path({str(tmp_path / "cache")!r}))).hold(LocalStorage(Path({str(storage.root)!r})), {wanted[0]!r})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and "File too large" in done.stdout and not done.stderr
    assert files_in(tmp_path / "cache") == []


def test_a_disk_that_others_fill_while_bringing(make, tmp_path, monkeypatch):
    storage, wanted = make(1)
    written = []

    def pwrite(descriptor, data, offset):
        written.append(offset)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(UserError, match=r"shards/0 can't be brought to the cache .*cache: No space left on device"):
        Cache(CacheFolder(tmp_path / "cache")).hold(storage, wanted[0])
    assert files_in(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cache .*file/x can't be used: Not a directory; name another with RESNET"):
        Cache(CacheFolder(tmp_path / "file" / "x"))


@pytest.mark.slow
def test_many_processes_share_a_small_cache(make, tmp_path):
    """Each holds, checks and lets go in its own order; nobody ever finds a wrong or missing file."""
    storage, wanted = make(8)
    code = f"""
import hashlib, random, sys
from pathlib import Path
from resnet_pipeline.storage.cache import *
from resnet_pipeline.storage.local import LocalStorage
rng = random.Random(int(sys.argv[1]))
cache = Cache(CacheFolder(Path({str(tmp_path / "cache")!r}), limit={4 * SIZE}))
storage, wanted = LocalStorage(Path({str(storage.root)!r})), {wanted!r}
for _ in range(60):
    one = rng.choice(wanted)
    path = cache.hold(storage, one, unless=None if rng.random() < 0.7 else lambda: rng.random() < 0.1)
    if path is not None:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == one.sha256
        cache.release(one)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len([name for name in files_in(tmp_path / "cache") if "." not in name]) <= 4
