"""All that a GPU is to show, in one table and ten minutes: its tests, decoding, steps, a pipeline, an evaluation.

Run: make gpu, or: python benchmarks/gpu.py [--small] [--minutes 10] [--output build/gpu.md]
     --imagenet SAMPLE.tar --cifar10 JPEGS.tar.gz (or RESNET_PIPELINE_IMAGENET_SAMPLE, RESNET_PIPELINE_CIFAR10)

Each row is measured in processes of its own. A row that fails says why, and the others follow; the table is written
again after each, so that what was measured is kept, whenever this ends. Without a GPU `--small` runs every row on the
CPU, with a few images: that they run, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import training  # beside this file

from resnet_pipeline.data.decoding_check import WAYS, tried

NAME = "cuda:0" if torch.cuda.is_available() else "cpu"
TEST_IMAGES = 50_000
PAPER_STEP, FAST_STEP = "ours, as the paper (float32)", "ours, fast (bf16, EMA)"


@dataclass
class Row:
    """A line of the table: what was measured, its value with its unit, the least or the most that is aimed at."""

    what: str
    value: str
    aim: str = ""


@dataclass
class Table:
    """Rows, and where they are written."""

    file: Path
    head: str
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Take a row in, print it, and write the table."""
        self.rows.append(row)
        print(f"{row.what}: {row.value}{f' (aim: {row.aim})' if row.aim else ''}", flush=True)
        lines = [f"| {one.what} | {one.value} | {one.aim} |" for one in self.rows]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n".join([self.head, "", "| what | measured | aim |", "|---|---|---|", *lines, ""]))


class NoTimeError(Exception):
    """The minutes are over."""


@dataclass
class Bench:
    """What rows are made of: the settings, the time left, and figures that later rows compare with."""

    settings: Namespace
    ends: float
    found: dict[str, float] = field(default_factory=dict)

    def child(self, *command: str) -> str:
        """Run a command to its end and return its last line; RuntimeError with what it ended with, NoTimeError."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise NoTimeError
        try:
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            raise NoTimeError from None
        lines = (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip().splitlines() or [""]
        if done.returncode:
            raise RuntimeError(f"status {done.returncode}: {lines[-1][:160]}")
        return lines[-1]

    def training(self, *arguments: str) -> dict[str, float]:
        """Return the figures of one of `training`'s contestants."""
        return json.loads(self.child(training.__file__, "--child", *arguments))

    def sample(self) -> str:
        """Return the folder of the staged sample of ImageNet."""
        return str(training.stage_imagenet(self.settings, self.settings.folder / "sample"))


def pace_of(images_per_second: float) -> str:
    return f"{images_per_second:,.{0 if images_per_second >= 100 else 1}f} images/s"


# --- the rows --------------------------------------------------------------------------------------------------------


def tests(bench: Bench) -> Iterator[Row]:
    yield Row("tests/gpu", bench.child("-m", "pytest", "-q", "-n", "0", "tests/gpu").strip("= "), "all pass")


def ways(bench: Bench) -> Iterator[Row]:
    for way in WAYS:
        trial = tried(NAME, way)
        yield Row(f"decoding by {way}, 32 images of 500×375", trial.problem or pace_of(trial.images_per_second))


def loader(bench: Bench) -> Iterator[Row]:
    for way in WAYS:
        os.environ["RESNET_PIPELINE_GPU_DECODING"] = way
        try:
            pace = float(bench.child(__file__, "--child", "load", bench.sample(), str(bench.settings.images)))
        finally:
            del os.environ["RESNET_PIPELINE_GPU_DECODING"]
        yield Row(f"loader, the paper's crops of the sample by {way}", pace_of(pace), "14,000 at 16 cores")


def steps(bench: Bench) -> Iterator[Row]:
    for name in (PAPER_STEP, FAST_STEP, "timm, channels_last, bf16"):
        pace = bench.training("step", name, str(bench.settings.steps))["images_per_second"]
        bench.found[name] = pace
        yield Row(f"ResNet-50, a bare step: {name}", pace_of(pace))


def pipeline(bench: Bench) -> Iterator[Row]:
    batch = training.BATCH
    changes = [f"batch={batch}", f"micro_batch={batch}", f"steps={bench.settings.steps}", "log_every=50"]
    changes += ["checkpoint_every=1000000", "eval_every=1000000", f"bn_images={batch}", "model.stride=v1.5"]
    from_jpegs = bench.training("ours", bench.sample(), "imagenet-fast/resnet50", json.dumps(changes))["second_half"]
    yield Row("ResNet-50 bf16 from JPEGs", pace_of(from_jpegs), "more than 2,791, goal 3,500 (an H100)")
    if FAST_STEP in bench.found:
        yield Row("from JPEGs / bare step", f"{from_jpegs / bench.found[FAST_STEP]:.3f}", "at least 0.98")


def evaluation(bench: Bench) -> Iterator[Row]:
    pace = float(bench.child(__file__, "--child", "evaluate", bench.sample(), str(bench.settings.images)))
    yield Row("ResNet-50, centre crop, 50,000 images", f"{TEST_IMAGES / pace:,.1f} s", "at most 10 s")


def cifar(bench: Bench) -> Iterator[Row]:
    dataset, _ = training.stage_cifar10(bench.settings)
    changes = [f"steps={bench.settings.steps * 4}", "bn_images=512", "eval_every=1000000", "checkpoint_every=1000000"]
    if bench.settings.small:
        changes += ["batch=32", "micro_batch=32"]
    pace = bench.training("ours", str(dataset), "cifar10-fast/resnet20", json.dumps(changes))["second_half"]
    yield Row("CIFAR ResNet-20 with CUDA graphs", pace_of(pace), "at least 60,000")


ROWS: tuple[Callable[[Bench], Iterator[Row]], ...] = (tests, ways, loader, steps, pipeline, evaluation, cifar)


# --- what the children do --------------------------------------------------------------------------------------------


def child_load(dataset: str, images: str) -> float:
    """Return the images/s of a loader's batches of a whole epoch and more, with the paper's augmentation."""
    from resnet_pipeline.data.dataset import Dataset
    from resnet_pipeline.data.loaders import train_batches
    from resnet_pipeline.recipes import get_recipe

    batch = training.BATCH
    augment, steps = get_recipe("imagenet/resnet50").augment, int(images) // batch + 1
    with train_batches(
        Dataset.open(Path(dataset)), augment=augment, seed=0, batch=batch, micro_batch=batch, steps=steps + 2,
        device=torch.device(NAME),
    ) as batches:  # fmt: skip
        next(batches), next(batches)
        start, done = time.perf_counter(), 0
        for one in batches:
            done += len(one.images)
        if NAME != "cpu":
            torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def child_evaluate(dataset: str, images: str) -> float:
    """Return the images/s of centre crop's tests of ResNet-50 after a first one, which warms up."""
    from resnet_pipeline.data.dataset import Dataset
    from resnet_pipeline.evaluation.protocols import protocol_of
    from resnet_pipeline.evaluation.scoring import evaluate
    from resnet_pipeline.models import Classifier, Normalize, build_model
    from resnet_pipeline.recipes import get_recipe

    staged = Dataset.open(Path(dataset))
    protocol = protocol_of("center", get_recipe("imagenet/resnet50").views)
    model = Classifier(Normalize(torch.full((3,), 110.0)), build_model("resnet50"))
    split = "val" if int(images) < len(staged.splits["train"]) else "train"

    def test() -> int:
        found = evaluate({"a": model}, staged, protocol, split=split, device=torch.device(NAME))["a"]
        return len(found.probabilities)

    test()
    start, done = time.perf_counter(), 0
    while done < int(images):
        done += test()
    return done / (time.perf_counter() - start)


CHILDREN: dict[str, Callable[[str, str], float]] = {"load": child_load, "evaluate": child_evaluate}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(CHILDREN[sys.argv[2]](sys.argv[3], sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="see that each row runs, with a few images")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--output", type=Path, default=Path("build/gpu.md"))
    parser.add_argument("--imagenet", default=os.environ.get("RESNET_PIPELINE_IMAGENET_SAMPLE"))
    parser.add_argument("--cifar10", default=os.environ.get("RESNET_PIPELINE_CIFAR10"))
    settings = parser.parse_args()
    if NAME == "cpu" and not settings.small:
        parser.error("no GPU here; --small runs every row on the CPU with a few images")
    if settings.small:
        training.BATCH = 4
    settings.images, settings.steps = (64, 4) if settings.small else (20_000, 200)
    os.environ["BENCHMARK_BATCH"] = str(training.BATCH)
    device = torch.cuda.get_device_name(0) if NAME != "cpu" else f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    head = f"{device}, {os.cpu_count()} cores, torch {torch.__version__}{', small: no measurement' * settings.small}"
    table = Table(settings.output, head)
    bench = Bench(settings, time.monotonic() + 60 * settings.minutes)
    with tempfile.TemporaryDirectory() as temporary:
        settings.folder = Path(temporary)
        for rows in ROWS:
            try:
                for row in rows(bench):
                    table.add(row)
            except NoTimeError:
                table.add(Row(rows.__name__, f"not measured: {settings.minutes:g} minutes were over"))
            except (Exception, SystemExit) as error:
                table.add(Row(rows.__name__, f"FAILED: {' '.join(str(error).split())[-200:]}"))
    print(f"\n{settings.output}")
    if any(row.value.startswith("FAILED") for row in table.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
