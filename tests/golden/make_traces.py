"""Golden loss traces: the losses of a run's first steps, to the last bit, as a processor of one kind computes them.

    python tests/golden/make_traces.py --reason "why the arithmetic was meant to change"

trains each config of TRACES on this machine, and again as on an AVX2 machine if this one has AVX-512, and writes
``trace_NAME.json`` with the reason in it. Which instructions the libraries use decides the order in which they add, so
each kind of processor has a trace of its own. A few steps in float64 are kept too: there all kinds nearly agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

GOLDEN = Path(__file__).parent
SAMPLE = "RESNET_PIPELINE_IMAGENET_SAMPLE"
COMMAND = 'python tests/golden/make_traces.py --reason "..."'
FLOAT64 = "float64"
FLOAT64_STEPS = 6
AS_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""Settings of PyTorch, oneDNN and MKL with which a machine with AVX-512 computes as one with AVX2 alone."""


@dataclass(frozen=True)
class Traced:
    """A recipe, what is changed of it, and the variable that names the images (None: the built-in digits)."""

    recipe: str
    changes: tuple[str, ...]
    images: str | None = None


TRACES = {
    "digits_resnet8": Traced(
        "digits/resnet8",
        ("steps=100", "bn_images=256", "schedule.warmup=3", "augment.flip=true", "optim.weight_decay=0.0001"),
    ),
    "imagenet_resnet50": Traced(
        "imagenet/resnet50",
        (
            "steps=100", "batch=4", "micro_batch=2", "bn_images=16", "optim.lr=0.0003", "optim.decay_norm=true",
            "augment.crop=72", "augment.shorter_side=[80,160]", "views.crop=72", "views.resize=80", "views.scales=[80]",
        ),
        SAMPLE,
    ),
}  # fmt: skip


def trace(name: str, folder: Path, precision: str = "float32") -> dict[str, Any]:
    """Train a config of TRACES in this process, on one thread; return its trace and the kind of this machine.

    In float64 it is stopped after FLOAT64_STEPS.
    """
    import torch

    from resnet_pipeline.config_io import parse_assignments, with_overrides
    from resnet_pipeline.data.dataset import Dataset
    from resnet_pipeline.recipes import get_recipe
    from resnet_pipeline.sources.digits import write_digits
    from resnet_pipeline.staging.stage import stage
    from resnet_pipeline.training.context import LocalContext
    from resnet_pipeline.training.loop import train
    from resnet_pipeline.training.metrics_log import TrainEntry, entries_of, read_metrics
    from resnet_pipeline.training.run_directory import RunDirectory

    traced = TRACES[name]
    if traced.images is None:
        write_digits(folder / "source")
    else:
        write_photographs(Path(os.environ[traced.images]), folder / "source")
    dataset: Dataset = stage(folder / "source", folder / "dataset", name=name, workers=1)
    every = ["log_every=1", "eval_every=1000", "checkpoint_every=1000"]
    changes = parse_assignments([*traced.changes, *every, f"precision={precision}"])
    config = with_overrides(get_recipe(traced.recipe), changes)
    run = RunDirectory.create(folder, config, dataset.facts)
    torch.set_num_threads(1)
    steps = itertools.count(1)
    train(run, dataset, LocalContext(stop=lambda: precision == FLOAT64 and next(steps) == FLOAT64_STEPS))
    return {
        **this_machine(),
        "dataset": dataset.fingerprint,
        "losses": [entry.figures["loss"] for _, entry in entries_of(read_metrics(run.metrics_file), TrainEntry)],
        "weights_sha256": result.weights_sha256 if (result := run.result()) else None,
    }


def this_machine() -> dict[str, str]:
    """Return what decides the last bits: the instructions that PyTorch uses, its version, the processor's maker."""
    import torch

    makers = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("vendor_id")]
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
        "maker": makers[0].partition(":")[2].strip() if makers else "unknown",
    }


def write_photographs(archive: Path, folder: Path) -> None:
    """Write an image folder of 40 ImageNet files in ten classes: 30 for training, 10 held out."""
    with tarfile.open(archive) as tar:
        files = sorted((m for m in tar if m.isfile() and m.name.endswith(".JPEG")), key=lambda m: m.name)[::25]
        for place, member in enumerate(files):
            content = tar.extractfile(member)
            assert content is not None
            split = "val" if place % 4 == 0 else "train"
            path = folder / split / f"class{place // 4}" / PurePath(member.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


def golden_file(name: str) -> Path:
    """Return the file of a config's traces."""
    return GOLDEN / f"trace_{name}.json"


def in_a_process(name: str, settings: dict[str, str], precision: str = "float32") -> dict[str, Any]:
    """Return the trace that a process of its own with these settings computes."""
    with tempfile.TemporaryDirectory() as folder:
        root = str(GOLDEN.parents[1])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        code = "import json, sys; from pathlib import Path; from tests.golden.make_traces import trace; "
        code += "print(json.dumps(trace(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))"
        done = subprocess.run(
            [sys.executable, "-c", code, name, folder, precision],
            env={**os.environ, **settings, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def reason_of(parser: argparse.ArgumentParser) -> str:
    """Read the command line, which has ``--reason`` alone; return why the numbers change."""
    parser.add_argument("--reason", required=True, help="why the numbers change; it is kept beside them")
    reason: str = parser.parse_args().reason.strip()
    if not reason:
        parser.error("--reason must say why the numbers change")
    return reason


def main() -> None:
    """Write the traces of this machine's kinds in place of all that were there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reason = reason_of(parser)
    missing = {t.images for t in TRACES.values() if t.images and not os.environ.get(t.images)}
    if missing:
        parser.error(f"{', '.join(sorted(missing))} must name the archive of images")
    for name, traced in TRACES.items():
        found = [in_a_process(name, {})]
        if found[0]["capability"] == "AVX512":
            found.append(in_a_process(name, AS_AVX2))
        content = {
            "command": COMMAND,
            "reason": reason,
            "recipe": traced.recipe,
            "changes": traced.changes,
            "traces": {t.pop("capability"): t for t in found} | {FLOAT64: in_a_process(name, {}, FLOAT64)},
        }
        golden_file(name).write_text(json.dumps(content, indent=1) + "\n")
        print(f"{golden_file(name)}: {', '.join(content['traces'])}")


if __name__ == "__main__":
    main()
