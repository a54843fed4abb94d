"""A training step of CIFAR's ResNet-20 against the time that its convolutions take alone, at their fastest.

Run: python benchmarks/roofline.py [--rounds 8] [--batch 128] [--threads 1] [--precision float32]
In one process, in turns: the step on one batch that lies in memory, as the training loop does it, and then every
convolution of the network alone, forward and backward (the first one's input needs no gradient), on tensors of its own
that stay in the caches as far as they fit. Each is run in NCHW and in channels_last first, and measured in the faster
of the two. Printed are CPU milliseconds, and the convolutions' share of the step with its 95 % interval: what is left
of 1 are batch norm, ReLU, additions, loss and update. Of these the first three do little but read and write their
tensors. So there is a second bound: the convolutions, and each such reading or writing (``PASSES``) at the pace of a
copy of a tensor of that size, which reads one and writes one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from ratios import ratio
from torch import nn
from training import our_step

from resnet_pipeline.models import build_model

AIM = 0.85

PASSES = {"batch norm": 8, "ReLU": 5, "addition": 3}
"""How often each reads or writes a tensor of its output's size, forward and backward, if it is a kernel of its own.

Batch norm reads its input for mean and variance, reads it again and writes the output; backward it reads input and
gradient for their two sums, and again, and writes. ReLU works in place (a reading, a writing); backward it reads output
and gradient and writes. An addition in place reads two and writes one; its gradient is that of both its terms.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    arguments = parser.parse_args()
    step = our_step(
        arguments.precision, "cifar10/resnet20", side=32, classes=10, batch_size=arguments.batch, stride="v1"
    )  # sets malloc and the number of threads, too
    torch.set_num_threads(arguments.threads)
    kinds = convolutions(arguments.batch)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    fastest = {kind: min(alone(*kind, dtype), key=lambda run: min(seconds(run) for _ in range(3))) for kind in kinds}
    copies = [(copy(shape, dtype), passes / 2) for shape, passes in passes_of(kinds)]  # a copy is two of them
    steps: list[float] = []
    sums: list[float] = []
    others: list[float] = []
    for number in range(arguments.rounds + 1):
        whole = seconds(step)
        parts = sum(count * seconds(fastest[kind]) for kind, count in kinds.items())
        passed = sum(count * seconds(run) for run, count in copies)
        if number:
            steps.append(whole)
            sums.append(parts)
            others.append(parts + passed)
    print(f"ResNet-20, {arguments.batch} images, {arguments.precision}, {arguments.threads} threads")
    print(f"{1e3 * statistics.median(steps):8.1f} ms  a step")
    print(f"{1e3 * statistics.median(sums):8.1f} ms  its convolutions alone, at their fastest")
    print(f"{1e3 * statistics.median(others):8.1f} ms  these, and what batch norm, ReLU and additions read and write")
    print(f"with these the share is {ratio(others, steps)}")
    share = statistics.median(part / whole for part, whole in zip(sums, steps, strict=True))
    print(f"share {ratio(sums, steps)}; aim {AIM}: {'reached' if share >= AIM else 'NOT reached'}")


Kind = tuple[nn.Conv2d, torch.Size]


def convolutions(batch: int) -> dict[Kind, int]:
    """Return each kind of convolution, by one that does it and its input's shape, and how many there are."""
    network = build_model("cifar-resnet20")
    found: dict[tuple[object, ...], tuple[Kind, int]] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        shape = inputs[0].shape
        key = (module.weight.shape, module.stride, module.padding, shape)
        kind, count = found.get(key, ((module, shape), 0))
        found[key] = kind, count + 1

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(batch, 3, 32, 32))
    return dict(found.values())


def passes_of(kinds: dict[Kind, int]) -> list[tuple[torch.Size, int]]:
    """Return each size of a feature map, and how often batch norm, ReLU and additions read or write one in a step.

    A batch norm and a ReLU follow each convolution; an addition each second one but the first.
    """
    found: dict[torch.Size, int] = {}
    for (module, shape), count in kinds.items():
        output = module(torch.zeros(shape)).shape
        found[output] = found.get(output, 0) + count
    added = {shape: count // 2 for shape, count in found.items()}  # of the first stage's seven convolutions three
    own = PASSES["batch norm"] + PASSES["ReLU"]
    return [(shape, own * count + PASSES["addition"] * added[shape]) for shape, count in found.items()]


def copy(shape: torch.Size, dtype: torch.dtype) -> Callable[[], object]:
    """Return what copies a tensor to one that is there already."""
    source, target = torch.randn(shape).to(dtype), torch.empty(shape, dtype=dtype)
    return lambda: target.copy_(source)


def alone(module: nn.Conv2d, shape: torch.Size, dtype: torch.dtype) -> list[Callable[[], object]]:
    """Return a convolution's forward and backward pass, in both layouts of memory."""

    def one(layout: torch.memory_format) -> Callable[[], object]:
        image = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
        weight = module.weight.detach().to(dtype).contiguous(memory_format=layout)
        place = {"stride": list(module.stride), "padding": list(module.padding), "dilation": [1, 1]}
        convolution = torch.ops.aten.convolution
        gradient = torch.randn_like(convolution(image, weight, None, *place.values(), False, [0, 0], 1))
        wanted = [shape[1] != 3, True, False]  # of the image, of the weights, of a bias

        def run() -> None:
            convolution(image, weight, None, *place.values(), False, [0, 0], 1)
            torch.ops.aten.convolution_backward(
                gradient, image, weight, None, *place.values(), False, [0, 0], 1, wanted
            )

        return run

    return [one(torch.contiguous_format), one(torch.channels_last)]


def seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds of all threads of a call, the second of two: the first brings its data near."""
    run()
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
