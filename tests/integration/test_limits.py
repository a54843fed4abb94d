"""A machine that is too small for a training: its disk is full, few files may be open, shared memory is short."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.run_directory import RunDirectory

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs the right to mount file systems"
)

STEPS = 40


def command(digits, root: Path, *more: str) -> list[str]:
    changes = ["eval_every=1000", "checkpoint_every=5", "log_every=5", "bn_images=128"]
    return [
        *(sys.executable, "-m", "resnet_pipeline.cli", "train", "digits/resnet8", "--dataset", digits.name),
        *("--root", str(root), "--no-register", "--steps", str(STEPS), *more),
        *(word for change in changes for word in ("--set", change)),
    ]


@pytest.fixture(autouse=True)
def data(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_PIPELINE_DATA", str(digits.path.parent))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True, capture_output=True)
    yield folder
    subprocess.run(["umount", folder], check=True, capture_output=True)


@as_root
def test_a_full_disk_costs_no_checkpoint_and_the_same_command_finishes(digits, small_disk, tmp_path):
    log, ballast = tmp_path / "log", small_disk / "ballast"
    start = command(digits, small_disk, "--launcher", "local")
    with log.open("w") as output:
        process = subprocess.Popen(start, stdout=output, stderr=subprocess.STDOUT)
        while not (
            found := [steps for run in small_disk.glob("runs/*") if (steps := checkpoint_steps(run / "checkpoints"))]
        ):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(b"\0" * 4096):
                    pass
            except OSError:
                pass
        assert process.wait(120) == 2
    said = log.read_text()
    assert "not written: No space left on device; the earlier ones are intact" in said
    last = said.strip().splitlines()[-1]
    assert "earlier checkpoints are intact: make room and start the same run again" in last and "Traceback" not in said
    (run,) = (RunDirectory(path) for path in small_disk.glob("runs/*"))
    # what was there is there, unless a later one took its place before the disk was full
    assert checkpoint_steps(run.checkpoints)[-1] >= found[0][-1]
    ballast.unlink()
    again = subprocess.run(start, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "resuming from step" in again.stderr + again.stdout
    subprocess.run(command(digits, tmp_path / "other", "--launcher", "local"), check=True, capture_output=True)
    (undisturbed,) = (RunDirectory(path) for path in tmp_path.glob("other/runs/*"))
    assert run.result().weights_sha256 == undisturbed.result().weights_sha256


def test_a_training_needs_few_open_files(digits, tmp_path):
    done = subprocess.run(
        command(digits, tmp_path, "--launcher", "local"), capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@as_root
def test_ray_trains_where_shared_memory_is_as_short_as_in_a_container(digits, tmp_path):
    """Docker gives a container 64 MB at /dev/shm."""
    short = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]
    done = subprocess.run([*short, *command(digits, tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
