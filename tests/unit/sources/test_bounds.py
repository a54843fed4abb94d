"""Nothing that a source says of itself makes staging take memory without end."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import pytest

from resnet_pipeline.data.image_files import Limits
from resnet_pipeline.errors import RefusedError
from resnet_pipeline.sources.layouts import read_catalogue
from resnet_pipeline.staging.shard_plan import plan_shards
from resnet_pipeline.staging.stage import Options, stage
from resnet_pipeline.storage.local import LocalStorage
from tests.images import jpeg
from tests.packing import InThisProcess

HUGE = 120 * 10**6
GOOD = {
    f"{split}/{label}/{i}.JPEG": jpeg(20, 30, seed=i) for split in ("train", "val") for label in "ab" for i in (0, 1)
}

STAGE_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from resnet_pipeline.data.image_files import Limits
from resnet_pipeline.staging.stage import Options, stage
from tests.packing import InThisProcess

source, target, warm = map(Path, sys.argv[1:])
stage(warm, target.with_name("warm"), name="x", workers=InThisProcess)  # everything is imported and has its pools
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 60 * 10**6,) * 2)
options = Options(limits=Limits(bytes=10**6))
made = stage(source, target, name="x", workers=InThisProcess, max_refused=0.5, options=options)
print([remark.file for remark in made.manifest.refused])
"""


def tar_gz(path, extra):
    with gzip.open(path, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w:") as tar:
        for name, data in (GOOD | extra).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def zipped(path, extra):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in (GOOD | extra).items():
            archive.writestr(name, data)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), [("x.tar.gz", tar_gz), ("x.zip", zipped)])
def test_a_member_beyond_the_limit_is_refused_without_being_read(tmp_path, make_folder, name, write):
    write(tmp_path / name, {"train/a/huge.JPEG": bytes(HUGE)})
    command = [sys.executable, "-c", STAGE_WITH_LITTLE_MEMORY, tmp_path / name, tmp_path / "made", make_folder(GOOD)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "['train/a/huge.JPEG']", done.stderr


def test_a_member_inflates_to_its_declared_size_and_no_further(tmp_path):
    zipped(tmp_path / "x.zip", {"train/a/bomb.JPEG": bytes(HUGE)})
    data = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data.replace(struct.pack("<I", HUGE), struct.pack("<I", 5_000)))
    catalogue = read_catalogue(LocalStorage(tmp_path), "x.zip")
    (bomb,) = (entry for entry in catalogue.entries if "bomb" in entry.key)
    assert bomb.member.size == 5_000
    with at_most(10 * 10**6), pytest.raises(RefusedError, match="bomb"):
        next(catalogue.read([bomb]))


@contextmanager
def at_most(limit):
    """Inside, Python's objects take no more bytes than this."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_long_name_in_a_tar_header_is_not_read_without_end(tmp_path):
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as file:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, HUGE
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(HUGE))
    with at_most(10 * 10**6), pytest.raises(RefusedError, match="a header says"):
        read_catalogue(LocalStorage(tmp_path), "x.tar.gz")


def test_a_header_with_a_negative_size_ends_the_listing(tmp_path):
    """Older versions of tarfile go back to the same header for ever."""
    info = tarfile.TarInfo("train/a/0.JPEG")
    info.size = -1024
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(RefusedError, match="a header says"):
        read_catalogue(LocalStorage(tmp_path), "x.tar")


def test_a_declared_size_makes_no_more_shards_than_there_are_files(make_folder):
    entries = read_catalogue(LocalStorage(make_folder(GOOD))).entries
    huge = [replace(entry, member=replace(entry.member, size=2**60)) for entry in entries]
    assert sum(len(shard.entries) for shard in plan_shards(huge)) == len(entries)


def test_what_is_refused_for_its_size_needs_no_disk(tmp_path):
    zipped(tmp_path / "x.zip", {"train/a/huge.JPEG": bytes(2_000_000)})
    data = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data.replace(struct.pack("<I", 2_000_000), struct.pack("<I", 2**32 - 2)))
    options = Options(limits=Limits(bytes=10**6), shard_bytes=2**40)
    made = stage(
        tmp_path / "x.zip", tmp_path / "made", name="x", workers=InThisProcess, max_refused=0.5, options=options
    )
    assert [remark.file for remark in made.manifest.refused] == ["train/a/huge.JPEG"]
