"""A training step of CIFAR's ResNet-20 against the time that its convolutions take alone, at their fastest.

Run: python benchmarks/roofline.py [--rounds 8] [--batch 128] [--threads 1] [--precision float32]
In one process, in turns: the step on one batch that lies in memory, as the training loop does it, and then every
convolution of the network alone, forward and backward (the first one's input needs no gradient), on tensors of its own
that stay in the caches as far as they fit. Each is run in NCHW and in channels_last first, and measured in the faster
of the two. Printed are CPU milliseconds, and the convolutions' share of the step with its 95 % interval: what is left
of 1 are batch norm, ReLU, additions, loss and update.
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
    steps: list[float] = []
    sums: list[float] = []
    for number in range(arguments.rounds + 1):
        whole = seconds(step)
        parts = sum(count * seconds(fastest[kind]) for kind, count in kinds.items())
        if number:
            steps.append(whole)
            sums.append(parts)
    print(f"ResNet-20, {arguments.batch} images, {arguments.precision}, {arguments.threads} threads")
    print(f"{1e3 * statistics.median(steps):8.1f} ms  a step")
    print(f"{1e3 * statistics.median(sums):8.1f} ms  its convolutions alone, at their fastest")
    share = statistics.median(sums) / statistics.median(steps)
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
