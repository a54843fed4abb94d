"""Peak memory of a detector at the paper's size: one training step of one image, and the search of one image.

Each row is a fresh process, whose peak resident memory is told; on a GPU PyTorch's own count. Weights are random, each
residual block an identity at first, so that frozen batch norm does no harm; nothing of what is found matters.

    python benchmarks/detection_memory.py --recipe voc/fasterrcnn-resnet101-c4
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
    """Print a row for the step and one for the search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="voc/fasterrcnn-resnet101-c4")
    parser.add_argument("--width", type=int, default=800, help="of the image, whose height is the recipe's")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--measure", choices=["step", "search"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments)))
        return
    for what in ("step", "search"):
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", what]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{what}: ended with status {run.returncode} (negative: a signal; -9 for want of memory)")
            continue
        row = json.loads(run.stdout)
        print(f"{arguments.recipe} {what:<7}{row['peak'] / 2**30:6.2f} GiB {row['seconds']:8.1f} s", flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the peak in bytes and the seconds of a step or of a search."""
    import torch

    from resnet_pipeline.detection.networks import build_detector
    from resnet_pipeline.models import Normalize, build_model
    from resnet_pipeline.models.blocks import Bottleneck
    from resnet_pipeline.models.resnet import ResNet
    from resnet_pipeline.recipes import get_recipe
    from resnet_pipeline.training.optim import build_optimizer

    config = get_recipe(arguments.recipe)
    assert config.detection is not None
    torch.manual_seed(0)
    network = build_model(config.model.name, num_classes=arguments.classes, stride=config.model.stride)
    assert isinstance(network, ResNet)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.zeros_(module.last_norm.weight)
    network.freeze(config.optim.frozen_stages)
    mean = Normalize(torch.full((3,), 120.0), torch.full((3,), 60.0))
    detector = build_detector(network, config.detection, classes=arguments.classes, normalize=mean)
    detector = detector.to(arguments.device)
    image = torch.randint(0, 256, (config.views.resize, arguments.width, 3), dtype=torch.uint8, device=arguments.device)
    boxes = torch.tensor([[50.0, 60, 250, 300], [300, 100, 700, 500]], device=arguments.device)
    target = {"boxes": boxes, "labels": torch.tensor([1, 2], device=arguments.device)}
    if config.detection.masks:
        target["masks"] = torch.ones(2, *image.shape[:2], dtype=torch.uint8, device=arguments.device)
    start = time.perf_counter()
    if arguments.measure == "step":
        optimizer = build_optimizer(detector, config.optim)
        losses = detector.train()([image], [target])
        sum(losses.values()).backward()
        optimizer.step()
    else:
        with torch.inference_mode():
            detector.eval()([image])
    seconds = time.perf_counter() - start
    if arguments.device == "cuda":
        return {"peak": float(torch.cuda.max_memory_allocated()), "seconds": seconds}
    return {"peak": 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "seconds": seconds}


if __name__ == "__main__":
    main()
