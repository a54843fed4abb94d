"""Training steps and whole runs: this project's against what one would use instead.

Run: python benchmarks/training.py [--only a,c] [--small] [--rounds 3]
     --imagenet SAMPLE.tar --cifar10 JPEGS.tar.gz (or RESNET_PIPELINE_IMAGENET_SAMPLE, RESNET_PIPELINE_CIFAR10)

  a  ResNet-50 at 224: a step of ours, of torchvision's reference loop, of timm's model and optimiser, on one batch
  b  the whole pipeline (Ray, loader, tracking, checkpoints) against the bare step of (a)
  c  CIFAR ResNet-20, epochs: ours from JPEGs, torchvision's ImageFolder on the same files, and its CIFAR10, whose
     images are decoded before the clock starts; the latter two with a DataLoader
  d  two workers against one with the same cores
  e  a checkpoint's bytes and the pause that it causes

On a GPU if there is one, else on the CPU. Each contestant runs in a process of its own, so that none finds another's
settings; the rounds are in turns, the table gives medians.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path, PurePath

import torch
from torch import nn

Numbers = dict[str, float]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = int(os.environ.get("BENCHMARK_BATCH") or (32 if DEVICE.type == "cpu" else 256))  # main sets it for children
CLASSES = 1000


# --- what the children do --------------------------------------------------------------------------------------------


def timed_steps(step: Callable[[], object], warmup: int, steps: int, batch: int) -> Numbers:
    """Run a step some times and return images/s, and processor seconds for each image."""
    for _ in range(warmup):
        step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - wall
    return {"images_per_second": steps * batch / seconds, "cpu_seconds": (time.process_time() - cpu) / (steps * batch)}


def our_step(
    precision: str,
    recipe: str = "imagenet/resnet50",
    *,
    side: int = 224,
    classes: int = CLASSES,
    batch_size: int = BATCH,
    stride: str = "v1.5",
) -> Callable[[], object]:
    """Return a step of this project on one batch, as the training loop does it."""
    from resnet_pipeline.config import OptimConfig
    from resnet_pipeline.config_io import with_overrides
    from resnet_pipeline.data.loaders import Batch
    from resnet_pipeline.device import prepare_device
    from resnet_pipeline.models import Classifier, Normalize, build_model
    from resnet_pipeline.recipes import get_recipe
    from resnet_pipeline.training.context import LocalContext
    from resnet_pipeline.training.ema import WeightAverage
    from resnet_pipeline.training.optim import build_optimizer
    from resnet_pipeline.training.step import FiniteGuard, RunningSums, compile_network, train_step
    from resnet_pipeline.training.tasks import ClassificationTask

    fast = precision == "bf16"
    prepare_device(DEVICE, precision)
    config = with_overrides(get_recipe(recipe), {"optim.label_smoothing": 0.1 if fast else 0.0})
    network = build_model(config.model.name, num_classes=classes, stride=stride)
    model = Classifier(Normalize(torch.full((3,), 110.0)), network)
    model = model.to(DEVICE).to(memory_format=torch.channels_last)
    compiled = fast and compile_network(model, DEVICE)
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, decay_norm=not fast, ema=0.999 if fast else 0.0))
    average = WeightAverage(model, 0.999 if fast else 0.0)
    task = ClassificationTask(config, None, LocalContext(device=DEVICE))  # without a dataset: there is one batch
    guard, sums = FiniteGuard(optimizer, DEVICE), RunningSums(task.counts, DEVICE)
    images = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(0, classes, (batch_size,), device=DEVICE)
    batch = Batch(images, labels, torch.arange(batch_size), torch.zeros(batch_size, 3, device=DEVICE))
    number = iter(range(10**9))

    def step() -> None:
        at = next(number)
        train_step(model, task, optimizer, guard, sums, [batch], step=at, precision=precision, keep_gradients=compiled)
        average.update(at)

    return step


def freed_memory_stays() -> None:
    """Give malloc the settings that this project's training gives it: a step of theirs is then no slower for it."""
    from resnet_pipeline.device import keep_freed_memory

    if DEVICE.type == "cpu":
        keep_freed_memory()


def reference_step(*, channels_last: bool, bf16: bool, timm: bool = False, batch: int = 0) -> Callable[[], object]:
    """Return a step as torchvision's reference script has it (or with timm's model and optimiser, as its script)."""
    freed_memory_stays()
    if timm:
        from timm import create_model
        from timm.optim import create_optimizer_v2

        model = create_model("resnet50").to(DEVICE)
    else:
        import torchvision

        model = torchvision.models.resnet50(weights=None).to(DEVICE)
    batch = batch or BATCH
    images = torch.randn(batch, 3, 224, 224, device=DEVICE)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,), device=DEVICE)
    if timm:
        optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    model.train()

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16) if bf16 else nullcontext():
            output = model(images)
            loss = criterion(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if timm:
            loss.item()
            return
        # torchvision's script logs loss and top-1/5 accuracy of every batch
        _, top = output.topk(5, 1)
        hits = top.eq(labels[:, None])
        loss.item(), hits[:, :1].sum().item(), hits.sum().item()

    return step


STEPS: dict[str, Callable[[], Callable[[], object]]] = {
    "ours, as the paper (float32)": lambda: our_step("float32"),
    "ours, fast (bf16, EMA)": lambda: our_step("bf16"),
    "torchvision's loop, its defaults": lambda: reference_step(channels_last=False, bf16=False),
    "torchvision's loop, channels_last": lambda: reference_step(channels_last=True, bf16=False),
    "torchvision's loop, channels_last, bf16": lambda: reference_step(channels_last=True, bf16=True),
    "timm, channels_last": lambda: reference_step(channels_last=True, bf16=False, timm=True),
    "timm, channels_last, bf16": lambda: reference_step(channels_last=True, bf16=True, timm=True),
}


def child_step(name: str, steps: str) -> Numbers:
    return timed_steps(STEPS[name](), 1 if DEVICE.type == "cpu" else 10, int(steps), BATCH)


def child_cifar_reference(kind: str, folder: str, steps: str) -> Numbers:
    """Train ResNet-20 in float32 by the paper's recipe with a DataLoader of two processes, as fast as that goes.

    The network is in channels_last, and malloc keeps what is freed, as in this project.
    """
    import numpy as np
    from torchvision import transforms
    from torchvision.datasets import CIFAR10, ImageFolder

    from resnet_pipeline.models import build_model

    normal = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose([*crop, transforms.ToTensor(), normal])
    images: ImageFolder | CIFAR10 = ImageFolder(Path(folder) / "train", transform)
    if kind == "decoded":
        # what CIFAR10's constructor ends with, from these files instead of the archive of pickled arrays
        decoded = CIFAR10.__new__(CIFAR10)
        decoded.data = np.stack([np.asarray(images.loader(path)) for path, _ in images.samples])
        decoded.targets, decoded.transform, decoded.target_transform = images.targets, transform, None
        images = decoded
    loader = torch.utils.data.DataLoader(
        images, batch_size=128, shuffle=True, num_workers=2, pin_memory=DEVICE.type == "cuda", drop_last=True
    )
    freed_memory_stays()
    model = build_model("cifar-resnet20").to(DEVICE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion, done, start = nn.CrossEntropyLoss(), 0, time.perf_counter()
    total = int(steps)
    while done < total:
        for x, y in loader:
            x = x.to(DEVICE, non_blocking=True, memory_format=torch.channels_last)
            y = y.to(DEVICE, non_blocking=True)
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done % 50 == 0:
                loss.item()
            if done == total:
                break
    return {"images_per_second": done * 128 / (time.perf_counter() - start)}


def child_ours(
    dataset: str, recipe: str, changes: str, address: str = "", rank: str = "0", world: str = "1"
) -> Numbers:
    """Train a recipe in plain processes with the project's loop; images/s from before the loader starts."""
    import torch.distributed as dist

    from resnet_pipeline.config_io import parse_assignments, with_overrides
    from resnet_pipeline.data.dataset import Dataset
    from resnet_pipeline.recipes import get_recipe
    from resnet_pipeline.training.context import LocalContext
    from resnet_pipeline.training.loop import Trainer
    from resnet_pipeline.training.run_directory import RunDirectory

    workers, number = int(world), int(rank)
    if DEVICE.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if workers > 1:
        dist.init_process_group(
            "nccl" if DEVICE.type == "cuda" else "gloo", init_method=address, rank=number, world_size=workers
        )
    staged = Dataset.open(Path(dataset))
    config = with_overrides(get_recipe(recipe), parse_assignments(json.loads(changes)))
    with tempfile.TemporaryDirectory() as temporary:
        run = RunDirectory.create(Path(temporary), config, staged.facts)
        context = LocalContext(rank=number, world_size=workers, device=DEVICE)
        pauses: list[float] = []
        steps: list[float] = []
        ended: list[float] = []
        reached: dict[int, float] = {}

        class Timed(Trainer):
            def save(self) -> None:
                start = time.perf_counter()
                super().save()
                pauses.append(time.perf_counter() - start)

            def one_step(self, batches: Iterator[object]) -> None:
                start = time.perf_counter()
                super().one_step(batches)
                if self.state.step in (config.steps // 2, config.steps) and DEVICE.type == "cuda":
                    torch.cuda.synchronize()
                steps.append(time.perf_counter() - start)
                reached[self.state.step] = time.perf_counter()

            def finish(self) -> None:
                ended.append(time.perf_counter())  # epochs only: no final test

        trainer = Timed(run, staged, context)
        start = time.perf_counter()
        trainer.run_to_end()
        trainer.close()
        size = max((p.stat().st_size for p in run.checkpoints.glob("*.pt")), default=0)
    return {
        "images_per_second": config.steps * config.batch / (ended[0] - start),
        "checkpoint_bytes": size,
        "pause": statistics.median(pauses),
        "longest_pause": max(pauses),
        "step": statistics.median(steps),
        # without the loader's start, compilation and the first steps
        "second_half": (config.steps - config.steps // 2)
        * config.batch
        / (reached[config.steps] - reached[config.steps // 2]),
    }


CHILDREN = {"step": child_step, "cifar-reference": child_cifar_reference, "ours": child_ours}


# --- the parent ------------------------------------------------------------------------------------------------------


def start(kind: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", kind, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Numbers:
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args}\n{err[-3000:]}")
    return json.loads(out.splitlines()[-1])


def in_turns(contestants: dict[str, Callable[[], Numbers]], rounds: int) -> dict[str, Numbers]:
    """Run all contestants in turns, some rounds; return each one's medians."""
    found: dict[str, list[Numbers]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            found[name].append(run())
            print(f"    {found[name][-1]['images_per_second']:10.1f} images/s  {name}", flush=True)
    return {
        name: {key: statistics.median(n[key] for n in numbers) for key in numbers[0]} for name, numbers in found.items()
    }


def compare(title: str, medians: dict[str, Numbers], first: str) -> None:
    print(f"\n{title}")
    for name, numbers in medians.items():
        ratio = medians[first]["images_per_second"] / numbers["images_per_second"]
        print(f"  {numbers['images_per_second']:10.1f} images/s   {first} / it = {ratio:5.2f}   {name}")


def aim(text: str, value: float, least: float) -> None:
    print(f"  aim: {text} >= {least:g}: {value:.3f}  {'reached' if value >= least else 'NOT REACHED'}")


def part_a(settings: argparse.Namespace) -> None:
    steps = "1" if settings.small else "5" if DEVICE.type == "cpu" else "50"
    runs = {name: lambda name=name: result(start("step", name, steps)) for name in STEPS}
    medians = in_turns(runs, settings.rounds)
    compare(f"(a) ResNet-50 at 224, {BATCH} images a step, {DEVICE.type}", medians, "ours, fast (bf16, EMA)")
    rate = {name: numbers["images_per_second"] for name, numbers in medians.items()}
    others = {name: r for name, r in rate.items() if not name.startswith("ours")}
    single = max(r for name, r in others.items() if "bf16" not in name)
    aim("ours as the paper / best other float32", rate["ours, as the paper (float32)"] / single, 1.0)
    aim("ours fast / best other", rate["ours, fast (bf16, EMA)"] / max(others.values()), 1.0)
    aim(
        "ours fast / torchvision's defaults",
        rate["ours, fast (bf16, EMA)"] / rate["torchvision's loop, its defaults"],
        1.5,
    )


def part_b(settings: argparse.Namespace) -> None:
    from resnet_pipeline.config_io import with_overrides
    from resnet_pipeline.jobs.launch import Launch
    from resnet_pipeline.jobs.train import train_run
    from resnet_pipeline.recipes import get_recipe
    from resnet_pipeline.training.metrics_log import TrainEntry, read_metrics
    from resnet_pipeline.workspace import Workspace

    every, windows = (1, 3) if settings.small else (5, 6)
    if DEVICE.type == "cuda":
        every, windows = 50, 10
    workspace = Workspace(settings.folder / "work")
    stage_imagenet(settings, workspace.datasets / "sample")
    seeds = iter(range(10**6))
    if settings.threads:  # of computation; the other cores are left to Ray, the loader and the checkpoints
        import ray

        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        ray.init("local", num_cpus=settings.threads, include_dashboard=False, log_to_driver=False)

    def whole() -> Numbers:
        changes = {"batch": BATCH, "micro_batch": BATCH, "steps": every * windows, "log_every": every}
        # one checkpoint in what is measured: some sixty times as often as the recipe has them
        changes |= {"checkpoint_every": every * windows // 2, "eval_every": 100_000, "bn_images": BATCH}
        changes |= {"model.stride": "v1.5", "seed": next(seeds)}
        config = with_overrides(get_recipe("imagenet/resnet50"), changes)
        run = train_run(workspace, config, "sample", Launch(workers=1)).run
        times = [line.time for line in read_metrics(run.metrics_file) if isinstance(line.entry, TrainEntry)]
        # from the first log point (workers and loader are warm) to the last: checkpoints and tracking included
        return {"images_per_second": every * (windows - 1) * BATCH / (times[-1] - times[0])}

    steps = str(every * windows)
    bare = "bare step on one synthetic batch"
    contestants = {
        "whole pipeline": whole,
        bare: lambda: result(start("step", "ours, as the paper (float32)", steps)),
    }
    medians = in_turns(contestants, settings.rounds)
    compare("(b) the whole pipeline against a bare step, ResNet-50, float32", medians, "whole pipeline")
    ratio = medians["whole pipeline"]["images_per_second"] / medians[bare]["images_per_second"]
    aim("whole / bare", ratio, 0.97)


def part_c(settings: argparse.Namespace) -> None:
    dataset, folder = stage_cifar10(settings)
    steps = settings.steps or (8 if settings.small else 390 * settings.epochs)
    fixed = ["bn_images=128", "eval_every=1000000", "checkpoint_every=1000000"]

    def ours(recipe: str, *more: str) -> Callable[[], Numbers]:
        return lambda: result(start("ours", str(dataset), recipe, json.dumps([*fixed, *more])))

    reference = "torchvision CIFAR10 (decoded before), DataLoader of 2 processes"
    contestants = {
        "ours, as the paper": ours("cifar10/resnet20", f"steps={steps}"),
        "ours, fast": ours("cifar10-fast/resnet20", f"steps={max(4, steps // 4)}"),
        reference: lambda: result(start("cifar-reference", "decoded", str(folder), str(steps))),
        "torchvision ImageFolder (the same JPEGs), DataLoader of 2 processes": lambda: result(
            start("cifar-reference", "files", str(folder), str(steps))
        ),
    }
    medians = in_turns(contestants, settings.rounds)
    compare(f"(c) CIFAR ResNet-20 from JPEGs, {steps * 128:,} images", medians, "ours, as the paper")
    other = medians[reference]["images_per_second"]
    aim("ours as the paper / torchvision's CIFAR10", medians["ours, as the paper"]["images_per_second"] / other, 2.5)
    aim("ours fast / torchvision's CIFAR10", medians["ours, fast"]["images_per_second"] / other, 2.5)


def part_d(settings: argparse.Namespace) -> None:
    if DEVICE.type == "cuda" and torch.cuda.device_count() < 2:
        print("\n(d) needs two GPUs: left out")
        return
    dataset, _ = stage_cifar10(settings)
    steps = 4 if settings.small else 100
    changes = json.dumps(
        [f"steps={steps}", "bn_images=128", "eval_every=1000000", "checkpoint_every=1000000", "log_every=10"]
    )

    def with_workers(world: int) -> Callable[[], Numbers]:
        def run() -> Numbers:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
            common = ("ours", str(dataset), "cifar10/resnet20", changes, address)
            processes = [start(*common, str(rank), str(world)) for rank in range(world)]
            results = [result(process) for process in processes]
            return results[0]

        return run

    contestants = {"2 workers, half the cores each": with_workers(2), "1 worker, all cores": with_workers(1)}
    medians = in_turns(contestants, settings.rounds)
    compare("(d) two workers against one on the same cores, CIFAR ResNet-20", medians, "2 workers, half the cores each")


def part_e(settings: argparse.Namespace) -> None:
    dataset = stage_imagenet(settings, settings.folder / "work" / "datasets" / "sample")
    changes = [f"batch={BATCH}", f"micro_batch={BATCH}", "log_every=1", "eval_every=1000000", "checkpoint_every=2"]
    steps = 4 if settings.small else 10
    numbers = result(start("ours", str(dataset), "imagenet/resnet50", json.dumps([*changes, f"steps={steps}"])))
    print("\n(e) a checkpoint of ResNet-50 every two steps, the last two kept")
    print(f"  {numbers['checkpoint_bytes'] / 2**20:.1f} MiB a checkpoint; as much again in memory while it is written")
    pause, longest, step = numbers["pause"], numbers["longest_pause"], numbers["step"]
    print(f"  pause: median {pause:.3f} s, longest {longest:.3f} s; a step {step:.3f} s")
    aim("step / longest pause", step / longest, 1.0)


def stage_imagenet(settings: argparse.Namespace, target: Path) -> Path:
    """Stage the sample: files of each class for training, a few of them again for validation."""
    from resnet_pipeline.staging.stage import stage

    if (target / "manifest.json").exists():
        return target
    if not settings.imagenet:
        raise SystemExit("name a tar of JPEGs with --imagenet, or set RESNET_PIPELINE_IMAGENET_SAMPLE")
    folder = settings.folder / "imagenet"
    with tarfile.open(settings.imagenet) as tar:
        for number, member in enumerate(m for m in tar if m.isfile()):
            name = PurePath(member.name).name
            data = tar.extractfile(member).read()
            for split in ("train", "val")[: 2 if number < 32 else 1]:
                path = folder / split / name.split("_")[0] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    stage(folder, target, name=target.name, workers=2)
    return target


def stage_cifar10(settings: argparse.Namespace) -> tuple[Path, Path]:
    """Stage the JPEG archive, and unpack it for ImageFolder; return the dataset's folder and the images'."""
    from resnet_pipeline.staging.stage import stage

    if not settings.cifar10:
        raise SystemExit("name the archive of JPEGs with --cifar10, or set RESNET_PIPELINE_CIFAR10")
    folder, target = settings.folder / "cifar10", settings.folder / "work" / "datasets" / "cifar10"
    if not target.exists():
        with tarfile.open(settings.cifar10) as tar:
            members = [m for n, m in enumerate(tar) if not settings.small or n % 30 == 0 or m.isdir()]
            tar.extractall(folder, members, filter="data")
        roots = [p.parent for p in folder.rglob("train") if p.is_dir()]
        stage(roots[0], target, name="cifar10", workers=2)
    return target, next(p.parent for p in folder.rglob("train") if p.is_dir())


PARTS = {"a": part_a, "b": part_b, "c": part_c, "d": part_d, "e": part_e}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="a,b,c,d,e", help="parts, by letter: a,c")
    parser.add_argument("--small", action="store_true", help="see that it works: a few steps of 4 images, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="epochs of (c)")
    parser.add_argument(
        "--steps", type=int, help="steps of (c), instead of epochs; with --small on a 30th of the images"
    )
    parser.add_argument("--threads", type=int, help="threads of computation in (b); default: one for each core")
    parser.add_argument("--imagenet", default=os.environ.get("RESNET_PIPELINE_IMAGENET_SAMPLE"))
    parser.add_argument("--cifar10", default=os.environ.get("RESNET_PIPELINE_CIFAR10"))
    settings = parser.parse_args()
    unknown = set(settings.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if settings.small:
        global BATCH
        settings.rounds, BATCH = 1, 4
    os.environ["BENCHMARK_BATCH"] = str(BATCH)
    print(f"{DEVICE.type}, {os.cpu_count()} cores, torch {torch.__version__}, {settings.rounds} rounds in turns")
    with tempfile.TemporaryDirectory() as temporary:
        settings.folder = Path(temporary)
        for letter in settings.only.split(","):
            PARTS[letter](settings)


if __name__ == "__main__":
    main()
