"""Peak memory and time of a training step with activation checkpointing, against the same step without.

Each row is a fresh process, one after another: the network is built, makes one step (forward, backward, SGD with
momentum) to warm up and ``--steps`` timed ones. On the CPU the peak is that of the process's resident memory, less
what it was before the first step; on a GPU PyTorch's ``max_memory_allocated``. Peak memory of ResNet-1202:

    python benchmarks/memory.py --batch 128
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

# torch is imported by the measured processes alone: a process starts with its parent's peak as its own


def main() -> None:
    """Print a row per segment length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="cifar-resnet1202")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    parser.add_argument("--steps", type=int, default=1, help="timed steps")
    parser.add_argument("--segments", type=int, nargs="+", default=[0, 1, 14], help="blocks per segment; 0: none")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments, arguments.measure)))
        return
    print(f"{arguments.network}, {arguments.batch} images of {arguments.size}², {arguments.device}")
    print(f"{'checkpointing':<16}{'peak memory':>14}{'of none':>9}{'a step':>10}{'of none':>9}{'loss':>12}")
    first = None
    for segment in arguments.segments:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(segment)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(
                f"{name_of(segment):<16}ended with status {run.returncode} (negative: a signal; -9 for want of memory)"
            )
            continue
        result = json.loads(run.stdout)
        first = first or result
        peak, seconds = result["peak"], result["seconds"]
        print(
            f"{name_of(segment):<16}{peak / 2**20:>10.0f} MiB{peak / first['peak']:>9.2f}"
            f"{seconds:>8.2f} s{seconds / first['seconds']:>9.2f}{result['loss']:>12.6f}",
            flush=True,
        )


def name_of(segment: int) -> str:
    """Return what a row is called."""
    return f"every {segment}" if segment else "none"


def measure(arguments: argparse.Namespace, segment: int) -> dict[str, float]:
    """Return peak memory in bytes, seconds per step, and the last loss, the same whatever is kept."""
    import torch
    from torch.nn import functional as F

    from resnet_pipeline.models import build_model

    torch.manual_seed(0)
    device = torch.device(arguments.device)
    network = build_model(arguments.network, num_classes=10, checkpointing=segment).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    labels = torch.arange(arguments.batch, device=device) % 10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = 0.0
    for step in range(1 + arguments.steps):
        if step == 1:
            start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        last = loss.item()  # waits for the device
    seconds = (time.perf_counter() - start) / arguments.steps
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"peak": peak, "seconds": seconds, "loss": last}


if __name__ == "__main__":
    main()
