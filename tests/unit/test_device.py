"""Which precision a device computes in, and memory that is freed and asked for again, in any thread of the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnet_pipeline.adapters.ray.worker import WORKER_VARIABLES
from resnet_pipeline.device import chosen_precision, prepare_device

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

if "main" in sys.argv:
    work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def fresh_pages(variables: dict[str, str], *more: str) -> list[float]:
    """Return the shares of the written pages that came from the kernel: of the main thread if told, of another one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", WORK, *more], env=environment | variables, capture_output=True, text=True, check=True
    )
    return [int(faults) * os.sysconf("SC_PAGE_SIZE") / (TIMES * sum(MAPS) << 20) for faults in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has these switches")
def test_a_thread_of_a_ray_worker_keeps_its_memory():
    (of_a_worker,) = fresh_pages(WORKER_VARIABLES)
    assert of_a_worker < 0.15
    of_main, of_another = fresh_pages({}, "main")
    assert of_main < 0.15
    assert of_another > 0.3  # why the workers have the variable


def flags() -> set[str]:
    """Return the processor's flags as Linux names them."""
    with Path("/proc/cpuinfo").open() as file:
        return {flag for line in file if line.startswith("flags") for flag in line.partition(":")[2].split()}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags of other processors have other names")
def test_auto_is_bf16_if_the_processor_has_it():
    expected = "bf16" if flags() & {"avx512_bf16", "amx_bf16"} else "float32"
    assert chosen_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("has", [True, False])
def test_auto_follows_the_processor_and_other_precisions_are_kept(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has})
    assert chosen_precision("auto", torch.device("cpu")) == ("bf16" if has else "float32")
    for wanted in ("float32", "bf16", "float64"):
        assert chosen_precision(wanted, torch.device("cpu")) == wanted
    assert chosen_precision("tf32", torch.device("cpu")) == "float32"


@pytest.mark.parametrize(("precision", "kind"), [("float32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_float32_is_float32_on_a_gpu_too(precision, kind):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.conv.fp32_precision, matmul.fp32_precision
    assert chosen_precision(precision, torch.device("cuda")) == precision
    try:
        prepare_device(torch.device("cuda"), precision)  # sets switches, and needs no GPU
        assert (cudnn.conv.fp32_precision, matmul.fp32_precision) == (kind, kind)
    finally:
        cudnn.benchmark, cudnn.conv.fp32_precision, matmul.fp32_precision = before
