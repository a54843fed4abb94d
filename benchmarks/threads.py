"""What waiting threads cost: steps of a small network by two threads, which spin or sleep when they wait.

Run: python benchmarks/threads.py [--rounds 5] [--steps 60]
OMP_WAIT_POLICY=PASSIVE, which `resnet_pipeline` sets, against OpenMP's default, in turns, each in a process of its own;
on cores that are idle, and beside one other process that computes. A row: seconds of each, and their median ratio with
the smallest and largest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

STEPS = """
import sys, time
import torch
from resnet_pipeline.models import build_model
torch.set_num_threads(2)
model = build_model("cifar-resnet8")
optimizer = torch.optim.SGD(model.parameters(), 0.1)
images, labels = torch.randn(64, 3, 16, 16), torch.randint(0, 10, (64,))
def steps(count):
    for _ in range(count):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
steps(3)
start = time.perf_counter()
steps(int(sys.argv[1]))
print(time.perf_counter() - start)
"""


def seconds(policy: str | None, steps: int) -> float:
    """Return the seconds of the steps, in a new process."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    # the package sets its own policy: it is imported after PyTorch, which has read the variable by then
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    command = [sys.executable, "-c", STEPS, str(steps)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    for name, beside in (("idle", 0), ("one process beside", 1)):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
        try:
            pairs = [(seconds(None, options.steps), seconds("PASSIVE", options.steps)) for _ in range(options.rounds)]
        finally:
            for other in others:
                other.kill()
        ratios = sorted(spinning / sleeping for spinning, sleeping in pairs)
        spinning, sleeping = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:20} spinning {spinning:6.2f} s, sleeping {sleeping:6.2f} s: {statistics.median(ratios):5.2f}"
              f" ({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
