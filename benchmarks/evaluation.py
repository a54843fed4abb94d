"""Testing networks: this project's protocols against what one would use instead.

Run: python benchmarks/evaluation.py IMAGENET-SAMPLE.tar [--images 96] [--rounds 3] [--only ten-crop …]
(a tar of JPEGs; RESNET_PIPELINE_IMAGENET_SAMPLE if none is named). In each part the contestants run in turns on the
same images with two threads; the table gives medians and their ratios to the first with 95 % intervals, and the last
line of a part says whether its aim was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePath

from ratios import ratio

THREADS = 2
SAMPLES, CLASSES, MEMBERS = 50_000, 1000, 6


def in_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run each once to warm up, then ``rounds`` times in turns; print and return the median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        print(f"{medians[name]:9.2f} s, {ratio(values, first)} of the first's   {name}", flush=True)
    return medians


def verdict(what: str, value: float, aim: float, *, at_least: bool) -> None:
    reached = value >= aim if at_least else value <= aim
    bound = "at least" if at_least else "at most"
    print(f"  {what}: {value:.2f} (aim: {bound} {aim:g}) {'reached' if reached else 'NOT REACHED'}\n", flush=True)


def ten_crop(dataset, files: list[Path], rounds: int) -> None:
    """10-crop of ResNet-18, against torchvision's TenCrop as its documentation shows it, in channels_last.

    Both run in this process, with malloc's settings of this project's training.
    """
    import torch
    import torchvision
    from PIL import Image
    from torchvision.transforms import v2

    from resnet_pipeline.config import ViewConfig
    from resnet_pipeline.device import keep_freed_memory
    from resnet_pipeline.evaluation.protocols import protocol_of
    from resnet_pipeline.evaluation.scoring import evaluate
    from resnet_pipeline.models import Classifier, Normalize, build_model, fold_batch_norm

    keep_freed_memory()
    protocol = protocol_of("10-crop", ViewConfig(crop=224, resize=256))
    theirs = torchvision.models.resnet18(weights=None).eval().to(memory_format=torch.channels_last)
    ours = Classifier(
        Normalize(torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])),
        build_model("resnet18", shortcut="B"),
    )
    ours.network.load_state_dict(theirs.state_dict())
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    normalize = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    crops = v2.Compose([v2.Resize(256), v2.TenCrop(224)])

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(files[index]) as image:
                return torch.stack([normalize(to_tensor(crop)) for crop in crops(image.convert("RGB"))])

    def with_torchvision(batch: int) -> torch.Tensor:
        loader = torch.utils.data.DataLoader(Files(), batch, num_workers=THREADS)
        found = []
        with torch.inference_mode():
            for images in loader:
                views = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
                scores = torch.softmax(theirs(views), 1)
                found.append(scores.view(len(images), 10, -1).mean(1))
        return torch.cat(found)

    def with_ours() -> torch.Tensor:
        return torch.from_numpy(evaluate({"a": ours}, dataset, protocol, split="train")["a"].probabilities)

    folded, ready = fold_batch_norm(ours), torch.randint(0, 256, (40, 224, 224, 3), dtype=torch.uint8)

    def network_alone() -> None:
        with torch.inference_mode():
            for _ in range(len(files) // 4):
                torch.softmax(folded(ready), 1)

    difference = (with_ours() - with_torchvision(4)).abs().max().item()
    print(f"10-crop of ResNet-18, {len(files)} images; the scores differ by at most {difference:.1e}")
    medians = in_turns(
        {"ours": with_ours} | {
            f"torchvision's TenCrop, DataLoader, {10 * n} crops a pass": lambda n=n: with_torchvision(n)
            for n in (1, 4, 16)
        } | {"the bound: our network alone on crops in memory, 40 a pass": network_alone},
        rounds,
    )  # fmt: skip
    ours_s, *others, alone = medians.values()
    print(f"  the best of torchvision's / the bound: {min(others) / alone:.2f}")
    verdict("times torchvision's best one", min(others) / ours_s, 1.5, at_least=True)


def together(dataset, images: int, rounds: int) -> None:
    """Three networks in one evaluation, against one after the other."""
    import torch

    from resnet_pipeline.config import ViewConfig
    from resnet_pipeline.evaluation.protocols import protocol_of
    from resnet_pipeline.evaluation.scoring import evaluate
    from resnet_pipeline.models import Classifier, Normalize, build_model

    for name, views, aim in (
        ("cifar-resnet20", ViewConfig(crop=32, resize=36, scales=(32,)), 0.75),
        ("resnet18", ViewConfig(crop=224, resize=256), None),
    ):
        models = {
            str(seed): Classifier(
                Normalize(torch.full((3,), 120.0)), build_model(name, num_classes=len(dataset.classes))
            )
            for seed in range(3)
        }
        protocol = protocol_of("center", views)
        print(f"Three of {name}, centre crop of {views.crop}, {images} images")
        medians = in_turns(
            {
                "together": lambda models=models, protocol=protocol: evaluate(models, dataset, protocol, split="train"),
                "apart": lambda models=models, protocol=protocol: [
                    evaluate({name: model}, dataset, protocol, split="train") for name, model in models.items()
                ],
            },
            rounds,
        )
        ratio = medians["together"] / medians["apart"]
        if aim:
            verdict("together / apart, where decoding counts", ratio, aim, at_least=False)
        else:
            print(f"  together / apart, where the network counts: {ratio:.2f}\n")


def multi_scale(dataset, images: int, rounds: int) -> None:
    """Compare the fully convolutional pass at five scales with a crop for each of its positions."""
    import numpy as np
    import torch

    from resnet_pipeline.config import ViewConfig
    from resnet_pipeline.data.whole_images import whole_batches
    from resnet_pipeline.evaluation.protocols import protocol_of
    from resnet_pipeline.evaluation.scoring import evaluate
    from resnet_pipeline.models import Classifier, Normalize, build_model, fold_batch_norm

    views = ViewConfig(crop=224, resize=256)
    protocol = protocol_of("multi-scale", views)
    model = Classifier(Normalize(torch.full((3,), 120.0)), build_model("resnet18", num_classes=len(dataset.classes)))
    crops = [0]

    def dense() -> None:
        net = fold_batch_norm(model)
        crops[0] = 0
        sides = protocol.sides
        chosen = np.arange(images)
        with torch.inference_mode(), whole_batches(
            dataset, split="train", sides=sides, indices=chosen, batch_pixels=1
        ) as batches:  # fmt: skip
            for batch in batches:
                for image in (batch.images[0], batch.images[0].flip(1)):
                    windows = image.unfold(0, 224, 32).unfold(1, 224, 32).flatten(0, 1).permute(0, 2, 3, 1)
                    crops[0] += len(windows)
                    for part in windows.split(5):
                        torch.softmax(net(part.contiguous()), 1)

    print(f"Multi-scale of ResNet-18, {images} images, shorter sides {protocol.sides}")
    one = {"a": model}
    medians = in_turns(
        {
            "fully convolutional, one decode": lambda: evaluate(one, dataset, protocol, split="train", images=images),
            "fully convolutional, a decode per scale": lambda: [
                evaluate(one, dataset, protocol_of("multi-scale", views, scales=[s]), split="train", images=images)
                for s in protocol.sides
            ],
            "a crop of 224 for each position": dense,
        },
        rounds,
    )
    print(f"  {crops[0]:,} crops")
    ours, per_scale, cropped = medians.values()
    print(f"  dense cropping / ours: {cropped / ours:.1f};  a decode per scale / ours: {per_scale / ours:.2f}\n")


def ensemble_files(folder: Path) -> None:
    """Six score files of ILSVRC's size, averaged in a process of its own."""
    import numpy as np

    from resnet_pipeline.evaluation.scores import Scores, write_scores

    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SAMPLES)
    for number in range(MEMBERS):
        values = rng.random((SAMPLES, CLASSES), dtype=np.float32) ** 8
        values[np.arange(SAMPLES), labels] += rng.random(SAMPLES, dtype=np.float32)
        values /= values.sum(1, keepdims=True)
        scores = Scores(
            model=str(number), weights_sha256=str(number), dataset_fingerprint="d", split="val", protocol="multi-scale",
            seconds=1.0, keys=[f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(SAMPLES)], labels=labels,
            probabilities=values,
        )  # fmt: skip
        write_scores(scores, folder / f"{number}.parquet")
    print(f"Ensemble of {MEMBERS} score files, {SAMPLES:,} × {CLASSES:,}")
    run = subprocess.run([sys.executable, __file__, "--average", str(folder)], stdout=subprocess.PIPE, check=True)
    found = json.loads(run.stdout)
    print(f"  top-1 error {found['top1']:.2f} %, with imports {found['with_imports']:.2f} s")
    verdict("seconds", found["seconds"], 5, at_least=False)
    verdict("GiB at the peak", found["gib"], 2, at_least=False)


def average_files(folder: Path) -> None:
    start = time.perf_counter()
    from resnet_pipeline.evaluation.ensemble import average, errors_of
    from resnet_pipeline.evaluation.scores import read_scores

    ready = time.perf_counter()
    errors = errors_of(average(read_scores(path) for path in sorted(folder.glob("*.parquet"))))
    end = time.perf_counter()
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**vars(errors), "seconds": end - ready, "with_imports": end - start, "gib": gib}))


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("RESNET_PIPELINE_IMAGENET_SAMPLE"))
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parts = ("ten-crop", "together", "multi-scale", "ensemble")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--average", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.average:
        average_files(arguments.average)
        return
    with tempfile.TemporaryDirectory() as temporary:
        if "ensemble" in arguments.only:
            ensemble_files(Path(temporary))
        if set(arguments.only) == {"ensemble"}:
            return
        if not arguments.archive:
            parser.error("name a tar of JPEGs, or set RESNET_PIPELINE_IMAGENET_SAMPLE")
        import torch

        from resnet_pipeline.staging.stage import stage

        torch.set_num_threads(THREADS)
        folder = Path(temporary) / "images"
        with tarfile.open(arguments.archive) as tar:
            names = [member for member in tar if member.isfile()]
            for member in names[:: max(1, len(names) // arguments.images)][: arguments.images]:
                name = PurePath(member.name).name
                path = folder / "train" / name.split("_")[0] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
        files = sorted(folder.glob("train/*/*"))
        dataset = stage(folder, Path(temporary) / "dataset", name="sample")
        print(f"\n{len(files)} images, {THREADS} threads, {arguments.rounds} rounds in turns\n")
        if "ten-crop" in arguments.only:
            # torchvision's network has 1,000 classes; so has the dataset, most of them without images
            ten_crop(_of_1000_classes(dataset), files, arguments.rounds)
        if "together" in arguments.only:
            together(dataset, len(files), arguments.rounds)
        if "multi-scale" in arguments.only:
            multi_scale(dataset, min(2, len(files)), arguments.rounds)


def _of_1000_classes(dataset):
    import copy

    wider = copy.copy(dataset)
    wider.classes = [*dataset.classes, *(f"none{i}" for i in range(1000 - len(dataset.classes)))]
    return wider


if __name__ == "__main__":
    main()
