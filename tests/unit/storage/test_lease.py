"""A lease: one process at a time, in a folder and in a bucket."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.storage import lease, storage_at
from resnet_pipeline.storage.base import HeldError


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path):
    if request.param == "folder":
        return storage_at(tmp_path / "folder")
    return storage_at(f"s3://{request.getfixturevalue('bucket')}/datasets/x")


@pytest.fixture
def in_a_bucket(bucket, monkeypatch):
    """Return a bucket whose leases are renewed often."""
    monkeypatch.setattr(lease, "BEAT", 0.02)
    monkeypatch.setattr(lease, "EXPIRES", 0.3)
    return storage_at(f"s3://{bucket}/x")


def other(**changed) -> bytes:
    """Return the lease of a process of another machine, or of this one."""
    holder = lease.Holder(token="t", machine="another", pid=os.getpid(), started=0.0)
    return json.dumps(dataclasses.asdict(dataclasses.replace(holder, **changed))).encode()


@pytest.mark.slow
def test_one_has_it_at_a_time(storage):
    for _ in range(2):
        with storage.lease("a/lease") as check:
            check()
            with pytest.raises(HeldError), storage.lease("a/lease"):
                pass
            check()
            with storage.lease("a/another"):
                check()
        assert storage.files() == []


def test_who_only_looks_keeps_nobody_out(tmp_path):
    storage = storage_at(tmp_path)
    (tmp_path / "lease").touch()
    assert not storage.is_leased("lease")
    with (tmp_path / "lease").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # what `is_leased` has for an instant
        threading.Timer(0.05, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with storage.lease("lease"):
            assert storage.is_leased("lease")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog, number):
    def none(file: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with storage_at(tmp_path).lease("lease") as check:
        check()
    assert f"{tmp_path}: there are no locks" in caplog.text and not list(tmp_path.iterdir())


def test_a_process_that_was_killed_has_it_no_more(storage):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = other(machine=lease._machine(), pid=ended.pid)
    storage.write("lease", left)
    with storage.lease("lease") as check:
        check()
    storage.write("lease", other(machine=lease._machine()))  # a later process of its id
    with storage.lease("lease") as check:
        check()


@pytest.mark.slow
@pytest.mark.parametrize("left", [other(), b"rubbish", b"[" * 100_000], ids=["another machine", "rubbish", "deep"])
def test_one_of_another_machine_has_it_while_it_renews_it(in_a_bucket, left):
    in_a_bucket.write("lease", left)
    with in_a_bucket.lease("lease") as check:  # not renewed
        check()
        version = in_a_bucket.stat("lease")
        while in_a_bucket.stat("lease") == version:  # this one is
            pass
        check()


@pytest.mark.slow
def test_one_that_renews_it_is_left_alone(in_a_bucket, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRES", 60.0)
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    with in_a_bucket.lease("lease") as check:
        monkeypatch.undo()
        monkeypatch.setattr(lease, "EXPIRES", 60.0)
        with pytest.raises(HeldError, match=f"in use by process {os.getpid()} of another"), in_a_bucket.lease("lease"):
            pass
        check()


def test_one_that_lost_it_is_told_and_removes_nothing(in_a_bucket):
    with in_a_bucket.lease("lease") as check:
        in_a_bucket.write("lease", other())
        with pytest.raises(UserError, match=r"another process took s3://.* over"):
            check()
    assert in_a_bucket.read("lease") == other()


@pytest.mark.slow
def test_a_file_is_written_on_a_condition(bucket):
    storage = storage_at(f"s3://{bucket}/x")
    assert storage.write_if("a", b"1", "an old version") is None and storage.stat("a") is None
    first = storage.write_if("a", b"1", None)
    assert first == storage.stat("a").version
    assert storage.write_if("a", b"2", None) is None and storage.read("a") == b"1"
    assert storage.write_if("a", b"1", None) == first, "its own, sent twice since the answer was lost"
    second = storage.write_if("a", b"2", first)
    assert storage.read("a") == b"2" and storage.write_if("a", b"3", first) is None
    assert second == storage.stat("a").version
