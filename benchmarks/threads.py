"""What waiting threads cost: steps of a small network by two threads, which spin or sleep when they wait.

Run: python benchmarks/threads.py [--rounds 5] [--steps 60] [--network cifar-resnet8] [--batch 64] [--size 16]
GNU OpenMP's default (300,000 spins), the 20,000 that `resnet_pipeline` sets, and none, in turns, each in a process of
its own; on cores that are idle, and beside one other process that computes. A row: the median seconds of a way, and
its median ratio to the default with the smallest and largest (below 1 is faster).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

WAYS = {
    "default": {},
    "20,000 spins": {"GOMP_SPINCOUNT": "20000"},
    "none": {"OMP_WAIT_POLICY": "PASSIVE"},
}

STEPS = """
import sys, time
import torch
from resnet_pipeline.models import build_model
network, batch, size, count = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(2)
model = build_model(network).to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
labels = torch.randint(0, 10, (batch,))
def steps(count):
    for _ in range(count):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
steps(3)
start = time.perf_counter()
steps(count)
print(time.perf_counter() - start)
"""


def seconds(way: dict[str, str], arguments: list[str]) -> float:
    """Return the seconds of the steps, in a new process."""
    of_openmp = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    # the package sets its own way: it is imported after PyTorch, which has read the variables by then
    environment = {k: v for k, v in os.environ.items() if k not in of_openmp} | way
    command = [sys.executable, "-c", STEPS, *arguments]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--network", default="cifar-resnet8")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=16)
    options = parser.parse_args()
    arguments = [options.network, str(options.batch), str(options.size), str(options.steps)]
    for name, beside in (("idle", 0), ("one process beside", 1)):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
        try:
            rounds = [[seconds(way, arguments) for way in WAYS.values()] for _ in range(options.rounds)]
        finally:
            for other in others:
                other.kill()
        for way, times in zip(WAYS, zip(*rounds, strict=True), strict=True):
            ratios = sorted(time / first for time, (first, *_) in zip(times, rounds, strict=True))
            print(f"{name:20} {way:12} {statistics.median(times):6.2f} s, ratio {statistics.median(ratios):5.2f}"
                  f" ({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
