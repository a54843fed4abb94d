"""Memory that is freed and asked for again, in the process's main thread and, as under Ray Train, in another."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from resnet_pipeline.adapters.ray.train import WORKER_VARIABLES

MAPS, TIMES = [98, 24, 49, 24, 98, 49, 24, 24, 12, 98, 12], 10  # MiB, as ResNet-50's maps of 32 images

WORK = f"""
import resource, sys, threading, torch
from resnet_pipeline.device import keep_freed_memory

def step():
    maps = [torch.ones(mebibytes << 18) for mebibytes in {MAPS}]
    while maps:
        maps.pop()

def work():
    keep_freed_memory()
    step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({TIMES}):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "main":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


def fresh_pages(where: str, variables: dict[str, str]) -> float:
    """Return the share of the written pages that came from the kernel."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", WORK, where], env=environment | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE") / (TIMES * sum(MAPS) << 20)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has these switches")
def test_a_thread_of_a_ray_worker_keeps_its_memory_as_the_main_thread_does():
    assert fresh_pages("main", {}) < 0.15
    assert fresh_pages("thread", WORKER_VARIABLES) < 0.15
    assert fresh_pages("thread", {}) > 0.3  # why the workers have the variable
