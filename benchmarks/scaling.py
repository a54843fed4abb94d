"""What N nodes would give: a model of the time of a training step, checked against published runs.

Run: python benchmarks/scaling.py --nodes 8 --gpus 8 --batch 3200       what that many GPUs would give
     python benchmarks/scaling.py --check      the model beside published results; status 1 if one is 10 % off
     python benchmarks/scaling.py --capacity   what 1.28 to 400 million images ask of each part, and which fails first

A step is computing (a fixed time and the images' own), what of the gradients' exchange the backward pass does not hide,
and waiting for the slowest worker; it is never shorter than reading and decoding its images takes. Gradients are
summed within a node, then between nodes by a ring or a tree, whichever is faster.

Few constants are fitted, on some of the published runs, and the others are predicted. Of ResNet-50 on today's networks
nothing of the exchange shows, whatever the bandwidth; so VGG-16, with five times the gradients, checks that part.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

IMAGES = 1_281_167
PARAMETERS = {  # ResNet-50's and -101's are in the golden file of the models
    "ResNet-50": 25_557_032,
    "ResNet-101": 44_549_160,
    "VGG-16": 138_357_544,
    "Inception V3": 23_834_568,
}
TOLERANCE = 0.1  # how far the model may be off a published result
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
    parameters: int = PARAMETERS["ResNet-50"]
    gradient_bytes: int = 2  # of each parameter
    overlap: float = 0.9  # of the backward pass that an exchange can hide behind: the first gradients come late
    spread: float = 0.01  # standard deviation of a worker's computing, as a share of it
    storage: float = math.inf  # bytes/s that a node reads from object storage; infinite: its disk has the shards
    decoding: float = math.inf  # images/s that a node's processors decode
    source: str = ""


H100 = Machine(
    images_per_second=7_700,
    fixed=4.1e-3,
    inside=450e9,
    between=8 * 50e9,
    source="rate and fixed time fitted to MLPerf Training 3.0, NVIDIA's logs of 8 and of 64 H100 (mlcommons/"
    "training_results_v3.0); 900 GB/s NVLink both ways and eight adapters of 400 Gbit/s: NVIDIA's DGX H100",
)
P100 = Machine(
    images_per_second=138,
    fixed=0.0,
    inside=20e9,
    between=50e9 / 8,
    latency=50e-6,
    gradient_bytes=4,
    spread=0.033,
    source="rate from 29 hours on 8 P100 (NVIDIA's news of Goyal et al., 2017); spread fitted to other Pascal GPUs, "
    "below; network and its latency assumed",
)
_HOROVOD = "Horovod's README of 2017, commit history of horovod/horovod: 4 Pascal GPUs a node, 64 images each"
RDMA_25 = Machine(
    images_per_second=119.4,
    fixed=0.0,
    inside=10e9,
    between=25e9 / 8,
    gradient_bytes=4,
    spread=0.033,
    source=f"{_HOROVOD}, 25 Gbit/s with RDMA: spread fitted to ResNet-101 and Inception V3 on 16 GPUs, the whole line "
    "rate to VGG-16 there; PCIe assumed",
)
TCP_25 = replace(
    RDMA_25,
    between=0.57 * 25e9 / 8,
    latency=50e-6,
    source=f"{_HOROVOD}, 25 Gbit/s with TCP: 57 % of the line rate, fitted to VGG-16 on 16 GPUs",
)
TCP_40 = replace(TCP_25, between=0.57 * 40e9 / 8, source=f"{_HOROVOD}, 40 Gbit/s with TCP: the same 57 %")
MACHINES = {"h100": H100, "p100": P100, "rdma-25": RDMA_25, "tcp-25": TCP_25, "tcp-40": TCP_40}


@dataclass(frozen=True)
class Published:
    """A run that was published: its images/s, and where they stand; ``alone`` are those of one GPU, if published."""

    machine: str
    nodes: int
    gpus: int
    batch: int
    images_per_second: float
    fitted: bool
    source: str
    network: str = "ResNet-50"
    alone: float | None = None

    def modelled(self, machines: Mapping[str, Machine]) -> float:
        """Return the images/s that the model gives."""
        machine = replace(machines[self.machine], parameters=PARAMETERS[self.network])
        if self.alone:
            machine = replace(machine, images_per_second=self.alone)
        return images_per_second(machine, nodes=self.nodes, gpus=self.gpus, batch=self.batch)


def _horovod(
    machine: str, nodes: int, network: str, alone: float, found: float, *, fitted: bool = False, source: str = _HOROVOD
) -> Published:
    return Published(machine, nodes, 4, nodes * 4 * 64, found, fitted, source, network, alone)


_512 = "Horovod's documentation, docs/benchmarks.rst: 90, 90 and 68 % of 512 times one GPU"
_LOGS = "mlcommons/training_results_v3.0, NVIDIA/results/dgxh100_n{}_ngc23.04_mxnet/resnet/result_0.txt"
PUBLISHED = (
    # images/s: four epochs and their test, from block_start to block_start
    Published("h100", 1, 8, 3_200, 56_047, True, "…/dgxh100_ngc23.04_mxnet/…: epochs 20 to 35, 400 images a GPU"),
    Published("h100", 8, 8, 3_200, 4 * IMAGES / 17.463, True, _LOGS.format(8)),
    Published("h100", 64, 8, 20_480, 4 * IMAGES / 2.474, False, _LOGS.format(64)),
    Published("h100", 96, 8, 32_256, 4 * IMAGES / 1.523, False, _LOGS.format(96)),
    # 90 % of 32 times the rate of 8 GPUs
    Published("p100", 32, 8, 8_192, 0.9 * 256 * 138, False, "Goyal et al., 2017, abstract: about 90 % from 8 to 256"),
    _horovod("rdma-25", 4, "ResNet-101", 119.4, 1746.2, fitted=True),
    _horovod("rdma-25", 4, "Inception V3", 134.4, 2022.6, fitted=True),
    _horovod("rdma-25", 4, "VGG-16", 130.9, 1787.4, fitted=True),
    _horovod("rdma-25", 128, "ResNet-101", 119.4, 0.90 * 512 * 119.4, source=_512),
    _horovod("rdma-25", 128, "Inception V3", 134.4, 0.90 * 512 * 134.4, source=_512),
    _horovod("rdma-25", 128, "VGG-16", 130.9, 0.68 * 512 * 130.9, source=_512),
    _horovod("tcp-25", 4, "ResNet-101", 119.4, 1685.1),
    _horovod("tcp-25", 4, "VGG-16", 130.9, 1308.7, fitted=True),
    _horovod("tcp-40", 16, "ResNet-101", 136.0, 7741.6),
    _horovod("tcp-40", 16, "Inception V3", 148.8, 7932.1),
    _horovod("tcp-40", 16, "VGG-16", 149.6, 6084.2),
)
NOT_USED = (
    "MLPerf 3.0's 3,584 H100 in 0.183 minutes (NVIDIA's page of results): its batch and epochs could not be read",
    "Horovod's exchange on the processors instead of the GPUs: another program's way",
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
    size = float(machine.parameters * machine.gradient_bytes)
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


def misses(machines: Mapping[str, Machine]) -> list[Published]:
    """Return the published runs from which the model is off by more than TOLERANCE."""
    return [run for run in PUBLISHED if abs(run.modelled(machines) / run.images_per_second - 1) > TOLERANCE]


def check() -> bool:
    """Print the model beside the published runs; return whether it is near enough to all of them."""
    print(f"{'machine':8} {'network':12} {'GPUs':>5} {'batch':>7} {'published':>11} {'model':>11} {'model / it':>10}")
    missed = misses(MACHINES)
    for run in PUBLISHED:
        model = run.modelled(MACHINES)
        how = "TOO FAR OFF" if run in missed else "fitted to it" if run.fitted else "predicted"
        print(
            f"{run.machine:8} {run.network:12} {run.nodes * run.gpus:5} {run.batch:7,} {run.images_per_second:11,.0f} "
            f"{model:11,.0f} {model / run.images_per_second:10.3f}  {how}: {run.source}"
        )
    print("Not used: " + "; ".join(NOT_USED))
    for name, machine in MACHINES.items():
        print(f"{name}: {machine.source}")
    return not missed


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
    parser.add_argument("--capacity", action="store_true", help="what large datasets ask of each part")
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
        if not check():
            sys.exit(1)
        return
    if settings.capacity:
        from capacity import NODE_GPUS, print_capacity  # here: the tests load this file by its path

        print_capacity(
            IMAGE_BYTES,
            {
                (samples, gpus): samples
                / images_per_second(H100, nodes=gpus // NODE_GPUS, gpus=NODE_GPUS, batch=50 * gpus)
                for samples in (IMAGES, 14_000_000, 400_000_000)
                for gpus in (8, 64, 512)
            },
        )
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
