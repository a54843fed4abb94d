"""What N nodes would give: a model of the time of a training step of ResNet-50, checked against published runs.

Run: python benchmarks/scaling.py --nodes 8 --gpus 8 --batch 3200       what that many GPUs would give
     python benchmarks/scaling.py --check                               the model beside published results

A step is computing (a fixed time and the images' own), what of the gradients' exchange the backward pass does not hide,
and waiting for the slowest worker; it is never shorter than reading and decoding its images takes. Gradients are
summed within a node, then between nodes by a ring or a tree, whichever is faster.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

IMAGES = 1_281_167
PARAMETERS = 25_557_032  # ResNet-50; the golden file of the models has it
IMAGE_BYTES = 110_000  # the mean of the 1,000 ImageNet files that the tests use
BACKWARD = 2 / 3  # of the computing: two of three passes over each layer


@dataclass(frozen=True)
class Machine:
    """What a node is made of. Times in seconds, rates in bytes/s and images/s, of one GPU unless it says else."""

    images_per_second: float  # of computing alone, at large batches
    fixed: float  # seconds of a step that do not depend on the number of images: launches, optimiser
    inside: float  # bytes/s between the GPUs of a node, each way
    between: float  # bytes/s from a node to the others, each way, all its adapters together
    latency: float = 10e-6  # of a message between nodes
    gradient_bytes: int = 2  # of each parameter
    overlap: float = 0.9  # of the backward pass that an exchange can hide behind: the first gradients come late
    spread: float = 0.01  # standard deviation of a worker's computing, as a share of it
    storage: float = math.inf  # bytes/s that a node reads from object storage; infinite: its disk has the shards
    decoding: float = math.inf  # images/s that a node's processors decode
    source: str = ""


H100 = Machine(
    images_per_second=7_000,
    fixed=3.6e-3,
    inside=450e9,
    between=8 * 50e9,
    source="rate and fixed time fitted to MLPerf Training 3.0, NVIDIA's logs of 8 and 64 H100 (mlcommons/"
    "training_results_v3.0); 900 GB/s NVLink both ways and eight adapters of 400 Gbit/s: NVIDIA's DGX H100",
)
P100 = Machine(
    images_per_second=138,
    fixed=0.0,
    inside=20e9,
    between=50e9 / 8,
    latency=50e-6,
    gradient_bytes=4,
    source="rate from 29 hours on 8 P100 (NVIDIA's news of Goyal et al., 2017); network and its latency assumed",
)
MACHINES = {"h100": H100, "p100": P100}


@dataclass(frozen=True)
class Published:
    """A run that was published: its images/s, and where they stand."""

    machine: str
    nodes: int
    gpus: int
    batch: int
    images_per_second: float
    fitted: bool
    source: str


_LOGS = "mlcommons/training_results_v3.0, NVIDIA/results/dgxh100_n{}_ngc23.04_mxnet/resnet/result_0.txt"
PUBLISHED = (
    # images/s: four epochs and their test, from block_start to block_start
    Published("h100", 8, 8, 3_200, 4 * IMAGES / 17.463, True, _LOGS.format(8)),
    Published("h100", 64, 8, 20_480, 4 * IMAGES / 2.474, False, _LOGS.format(64)),
    Published("h100", 96, 8, 32_256, 4 * IMAGES / 1.523, False, _LOGS.format(96)),
    # 90 % of 32 times the rate of 8 GPUs
    Published("p100", 32, 8, 8_192, 0.9 * 256 * 138, False, "Goyal et al., 2017, abstract: about 90 % from 8 to 256"),
)
NOT_USED = (
    "MLPerf 3.0's 3,584 H100 in 0.183 minutes (NVIDIA's page of results): its batch and epochs could not be read",
    "MLPerf 3.0's 8 H100 (56,000 images/s in NVIDIA's log): it gives the rate; its batch was not read",
)


@dataclass(frozen=True)
class Step:
    """A step's time in seconds and what it is made of."""

    compute: float
    exchange: float
    exposed: float
    waiting: float
    data: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return max(self.compute + self.exposed + self.waiting, self.data)

    @property
    def bound_by(self) -> str:
        """The largest part."""
        if self.data >= self.compute + self.exposed + self.waiting:
            return "data"
        parts = {"compute": self.compute, "communication": self.exposed, "stragglers": self.waiting}
        return max(parts, key=lambda name: parts[name])


def ring(nodes: int, size: float, bandwidth: float, latency: float) -> float:
    """Return the seconds of an all-reduce by a ring: each sends 2 (n − 1) / n of its bytes in 2 (n − 1) messages."""
    return 2 * (nodes - 1) * (size / nodes / bandwidth + latency)


def tree(nodes: int, size: float, bandwidth: float, latency: float) -> float:
    """Return the seconds of an all-reduce by a pipelined double tree: all bytes up and down, 2 log2 n messages deep."""
    if nodes == 1:
        return 0.0
    return 2 * size / bandwidth + 2 * math.ceil(math.log2(nodes)) * latency


def all_reduce(machine: Machine, nodes: int, gpus: int) -> float:
    """Return the seconds of summing the gradients: within each node, and between nodes by the faster way."""
    size = float(PARAMETERS * machine.gradient_bytes)
    within = 2 * (gpus - 1) / gpus * size / machine.inside
    ways = (way(nodes, size, machine.between, machine.latency) for way in (ring, tree))
    return within + min(ways)


def step_time(machine: Machine, *, nodes: int, gpus: int, batch: int) -> Step:
    """Return the time of a step of ``batch`` images on ``nodes`` × ``gpus``."""
    workers = nodes * gpus
    compute = machine.fixed + batch / workers / machine.images_per_second
    exchange = all_reduce(machine, nodes, gpus) if workers > 1 else 0.0
    hidden = machine.overlap * BACKWARD * compute
    # the slowest of W equal normals, for large W
    waiting = machine.spread * compute * math.sqrt(2 * math.log(workers))
    of_a_node = batch / nodes
    data = max(of_a_node * IMAGE_BYTES / machine.storage, of_a_node / machine.decoding)
    return Step(compute, exchange, max(0.0, exchange - hidden), waiting, data)


def images_per_second(machine: Machine, *, nodes: int, gpus: int, batch: int) -> float:
    """Return the images/s of the whole."""
    return batch / step_time(machine, nodes=nodes, gpus=gpus, batch=batch).seconds


def efficiency(machine: Machine, *, nodes: int, gpus: int, batch: int) -> float:
    """Return images/s against as many single GPUs with the same images each."""
    workers = nodes * gpus
    alone = images_per_second(machine, nodes=1, gpus=1, batch=batch // workers)
    return images_per_second(machine, nodes=nodes, gpus=gpus, batch=batch) / (workers * alone)


def check() -> None:
    """Print the model beside the published runs."""
    print(f"{'GPUs':>6} {'batch':>7} {'published':>12} {'model':>12} {'model / it':>10}")
    for run in PUBLISHED:
        machine = MACHINES[run.machine]
        model = images_per_second(machine, nodes=run.nodes, gpus=run.gpus, batch=run.batch)
        print(
            f"{run.nodes * run.gpus:6} {run.batch:7,} {run.images_per_second:12,.0f} {model:12,.0f} "
            f"{model / run.images_per_second:10.3f}  {'fitted to it' if run.fitted else 'predicted'}: {run.source}"
        )
    print("Not used: " + "; ".join(NOT_USED))
    for name, machine in MACHINES.items():
        print(f"{name}: {machine.source}")


def table(machine: Machine, settings: argparse.Namespace) -> None:
    """Print what the nodes asked for would give, and fewer for comparison."""
    counts = sorted({2**i for i in range(20) if 2**i < settings.nodes} | {settings.nodes})
    print(
        f"{'nodes':>6} {'GPUs':>6} {'batch':>8} {'images/s':>12} {'efficiency':>10} {'step':>9} "
        f"{'hours to ' + str(settings.epochs) + ' epochs':>19}  bound by"
    )
    for nodes in counts:
        shape = {"nodes": nodes, "gpus": settings.gpus, "batch": settings.batch * nodes // settings.nodes}
        if shape["batch"] < nodes * settings.gpus:
            continue
        step, rate = step_time(machine, **shape), images_per_second(machine, **shape)
        hours = settings.epochs * IMAGES / rate / 3600
        print(
            f"{nodes:6} {nodes * settings.gpus:6} {shape['batch']:8,} {rate:12,.0f} "
            f"{efficiency(machine, **shape):10.1%} "
            f"{1000 * step.seconds:6.1f} ms {hours:19.2f}  {step.bound_by}"
        )
    print(f"constants: {machine.source}; other networks and programs differ")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="the model beside published results")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--batch", type=int, help="images of a step, of all GPUs (default: 50 for each)")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--machine", choices=sorted(MACHINES), default="h100")
    parser.add_argument(
        "--images-per-second", type=float, help="of one of your GPUs: measure with training.py --only a"
    )
    parser.add_argument("--network-gbits", type=float, help="of a node, each way")
    parser.add_argument("--s3-gbits", type=float, help="of a node, when every epoch is read from object storage")
    parser.add_argument("--cores", type=int, help="of a node, for decoding")
    parser.add_argument("--images-per-core", type=float, default=568, help="decoded (docs/RESULTS.md, Loader)")
    settings = parser.parse_args(arguments)
    for name in ("nodes", "gpus", "epochs", "batch", "images_per_second", "network_gbits", "s3_gbits", "cores"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be positive, not {value}")
    if settings.check:
        check()
        return
    workers = settings.nodes * settings.gpus
    settings.batch = settings.batch or 50 * workers
    if settings.batch % workers:
        parser.error(f"--batch {settings.batch} can't be shared by {workers} GPUs; a multiple of {workers} can")
    machine = MACHINES[settings.machine]
    if settings.images_per_second:
        machine = replace(
            machine, images_per_second=settings.images_per_second, source="your GPU's rate; else as known"
        )
    if settings.network_gbits:
        machine = replace(machine, between=settings.network_gbits / 8 * 1e9)
    if settings.s3_gbits:
        machine = replace(machine, storage=settings.s3_gbits / 8 * 1e9)
    if settings.cores:
        machine = replace(machine, decoding=settings.cores * settings.images_per_core)
    table(machine, settings)


if __name__ == "__main__":
    main()
