"""One small training in each of several libraries, as their documentation writes it, that ends itself by SIGKILL.

Run by interruption.py: python benchmarks/interrupted.py NAME FOLDER DATA [--kill-after STEP]. Started again with the
same folder it resumes as the library's documentation says. After each optimiser step it appends a line to
FOLDER/steps.jsonl: the step, its epoch and the numbers of its images. What differs between the functions below is what
the libraries' own pages write; network, images, augmentation, optimiser and the distance of checkpoints are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from resnet_pipeline.models import build_model
from resnet_pipeline.recipes import get_recipe

IMAGES, BATCH, EPOCHS, EVERY, SIZE = 1280, 64, 4, 8, 32  # EVERY: steps between checkpoints
PER_EPOCH = IMAGES // BATCH
AUGMENT = v2.Compose(
    [v2.RandomCrop(SIZE, padding=4), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
)


class Record:
    """What a training writes down: after each step, and where it resumed."""

    def __init__(self, folder: Path, kill_after: int | None) -> None:
        self.folder, self.kill_after = folder, kill_after
        folder.mkdir(parents=True, exist_ok=True)

    def resumed(self, step: int) -> None:
        self._append({"resumed": step})

    def step(self, step: int, numbers: list[int]) -> None:
        self._append({"step": step, "epoch": (step - 1) // PER_EPOCH, "numbers": numbers})
        if step == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def finished(self, model: nn.Module) -> None:
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        (self.folder / "weights").write_text(digest.hexdigest())

    def _append(self, line: dict[str, object]) -> None:
        with (self.folder / "steps.jsonl").open("a") as file:
            file.write(json.dumps({**line, "time": time.time()}) + "\n")


def files(data: Path) -> list[tuple[Path, int, int]]:
    """Return each training image's file, class and number."""
    found = sorted((data / "images" / "train").glob("*/*.jpg"), key=lambda path: path.stem)
    return [(path, int(path.parent.name), int(path.stem)) for path in found]


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("cifar-resnet8")


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The images with their numbers; the class of a number is in ``labels``."""

    def __init__(self, data: Path) -> None:
        self.files = files(data)
        self.labels = torch.tensor([label for _, label, _ in self.files])
        self.transform: Callable[[Any], torch.Tensor] = AUGMENT

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        path, _, number = self.files[at]
        return self.transform(Image.open(path)), number


def timm_recovery(record: Record, data: Path, *, recovery: bool = True) -> None:
    """Train as timm's train.py with --recovery-interval, and resume from the newest recovery file."""
    from timm.data import create_loader
    from timm.models import resume_checkpoint
    from timm.utils import CheckpointSaver, random_seed

    random_seed(0, 0)
    model = network()
    optimizer = sgd(model)
    dataset = Images(data)
    loader = create_loader(
        dataset, input_size=(3, SIZE, SIZE), batch_size=BATCH, is_training=True, use_prefetcher=False, num_workers=2,
        persistent_workers=False,
    )  # fmt: skip
    dataset.transform = AUGMENT
    folder = record.folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    saver = CheckpointSaver(
        model, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder), max_history=2, decreasing=True
    )
    start = 0
    newest = saver.find_recovery() if recovery else str(folder / "last.pth.tar")
    if newest and Path(newest).exists():
        start = resume_checkpoint(model, newest, optimizer, log_info=False) or 0
        in_epoch = int(Path(newest).name.split("-")[2].split(".")[0]) + 1 if recovery else PER_EPOCH
        record.resumed((start - 1) * PER_EPOCH + in_epoch)
    for epoch in range(start, EPOCHS):
        model.train()
        for index, (x, numbers) in enumerate(loader):
            one_step(model, optimizer, x, dataset.labels[numbers])
            if recovery and (index + 1) % EVERY == 0:
                saver.save_recovery(epoch, batch_idx=index)
            record.step(epoch * PER_EPOCH + index + 1, numbers.tolist())
        saver.save_checkpoint(epoch, metric=float(-epoch))
    record.finished(model)


def timm_epochs(record: Record, data: Path) -> None:
    """Train as timm's train.py does by default, and resume from last.pth.tar."""
    timm_recovery(record, data, recovery=False)


def lightning(record: Record, data: Path) -> None:
    """Train with Lightning on a streamed dataset of LitData's, and resume with ckpt_path="last"."""
    import io

    import lightning
    import litdata
    from lightning.pytorch.callbacks import ModelCheckpoint
    from PIL import Image

    class Streamed(litdata.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            item = super().__getitem__(at)
            return AUGMENT(Image.open(io.BytesIO(item["image"]))), item["label"], item["number"]

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def on_train_start(self) -> None:
            if self.global_step:
                record.resumed(self.global_step)

        def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
            record.step(self.global_step, batch[2].tolist())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.model)

    lightning.seed_everything(0, workers=True, verbose=False)
    module = Module()
    loader = litdata.StreamingDataLoader(Streamed(str(data / "litdata"), shuffle=True), batch_size=BATCH, num_workers=2)
    folder = record.folder / "checkpoints"
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=EVERY, save_last=True)],
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path="last" if (folder / "last.ckpt").exists() else None)
    record.finished(module.model)


def streaming(record: Record, data: Path) -> None:
    """Train on mosaicml-streaming's dataset, whose loader's state is in the checkpoint."""
    import io

    from PIL import Image
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Streamed(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            item = super().__getitem__(at)
            return AUGMENT(Image.open(io.BytesIO(item["image"]))), item["label"], item["number"]

    clean_stale_shared_memory()  # what a killed process has left
    model = network()
    optimizer = sgd(model)
    dataset = Streamed(local=str(data / "mds"), shuffle=True, shuffle_seed=0, batch_size=BATCH)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=2)
    file, step = record.folder / "checkpoint.pt", 0
    if file.exists():
        state = torch.load(file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        step = state["step"]
        record.resumed(step)
    for _ in range(step // PER_EPOCH, EPOCHS):
        for x, y, numbers in loader:
            one_step(model, optimizer, x, y)
            step += 1
            if step % EVERY == 0:
                torch.save(
                    {
                        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                        "loader": loader.state_dict(),
                    },
                    file,
                )  # fmt: skip
            record.step(step, numbers.tolist())
    record.finished(model)


def webdataset(record: Record, data: Path) -> None:
    """Train on WebDataset's shards; its pipelines have no state, so the epoch that was cut off begins anew."""
    import webdataset as wds

    torch.manual_seed(0)
    model = network()
    optimizer = sgd(model)
    shards = sorted(map(str, (data / "webdataset").glob("*.tar")))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .shuffle(500)
        .decode("pil")
        .to_tuple("jpg", "cls", "__key__")
        .map_tuple(AUGMENT, int, int)
        .batched(BATCH)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=2)
    file, step = record.folder / "checkpoint.pt", 0
    if file.exists():
        state = torch.load(file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        record.resumed(step)
    while step < EPOCHS * PER_EPOCH:
        for x, y, numbers in loader:
            one_step(model, optimizer, x, torch.as_tensor(y))
            step += 1
            if step % EVERY == 0:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
            record.step(step, torch.as_tensor(numbers).tolist())
            if step == EPOCHS * PER_EPOCH:
                break
    record.finished(model)


def ray_train(record: Record, data: Path) -> None:
    """Train as Ray Train's guide to checkpoints does: one each epoch, and a lost worker is started again by Ray."""
    import tempfile

    import ray
    from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer, prepare_data_loader

    def work() -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = network()
        optimizer = sgd(model)
        dataset = Images(data)
        loader = prepare_data_loader(torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=2))
        start = 0
        if checkpoint := ray.train.get_checkpoint():
            with checkpoint.as_directory() as folder:
                state = torch.load(Path(folder) / "model.pt")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            start = state["epoch"] + 1
        own = record
        if (record.folder / "steps.jsonl").exists():  # Ray has started this worker again
            own = Record(record.folder, None)
            own.resumed(start * PER_EPOCH)
        for epoch in range(start, EPOCHS):
            for index, (x, numbers) in enumerate(loader):
                one_step(model, optimizer, x, dataset.labels[numbers])
                own.step(epoch * PER_EPOCH + index + 1, numbers.tolist())
            with tempfile.TemporaryDirectory() as folder:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
                torch.save(state, Path(folder) / "model.pt")
                ray.train.report({"epoch": epoch}, checkpoint=Checkpoint.from_directory(folder))
        own.finished(model)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            storage_path=str(record.folder.resolve()), name="ray", failure_config=FailureConfig(max_failures=2)
        ),
    ).fit()
    ray.shutdown()


def ours(record: Record, data: Path) -> None:
    """Train by this project's loop."""
    from contextlib import contextmanager

    from resnet_pipeline.config_io import parse_assignments, with_overrides
    from resnet_pipeline.data.dataset import Dataset
    from resnet_pipeline.training.context import LocalContext
    from resnet_pipeline.training.loop import Trainer
    from resnet_pipeline.training.run_directory import RunDirectory

    changes = (f"steps={EPOCHS * PER_EPOCH}", f"batch={BATCH}", f"checkpoint_every={EVERY}", "eval_every=1000")
    config = with_overrides(get_recipe("digits/resnet8"), parse_assignments([*changes, "bn_images=128"]))
    dataset = Dataset.open(data / "datasets" / "ours")
    run = RunDirectory.create(record.folder / "runs", config, dataset.facts)
    trainer = Trainer(run, dataset, LocalContext())
    if trainer.state.step:
        record.resumed(trainer.state.step)

    @contextmanager
    def recorded(start: int, steps: int) -> Iterator[Iterator[Any]]:
        with trainer.task.batches(start, steps) as batches:
            yield watched(batches, range(start + 1, start + steps + 1))

    def watched(batches: Iterator[Any], steps: range) -> Iterator[Any]:
        keys = dataset.splits["train"].keys
        for step in steps:
            numbers: list[int] = []
            for _ in range(BATCH // config.micro_batch):
                batch = next(batches)
                numbers += [int(Path(keys[at]).stem) for at in batch.index.tolist()]
                if (
                    step == config.steps
                ):  # after it nothing is asked for; what comes then averages batch norm's statistics
                    last[:] = numbers
                yield batch
            # asked for what comes after it: the step is done
            if step < config.steps:
                record.step(step, numbers)

    last: list[int] = []
    trainer.open_batches = recorded
    trainer.run_to_end()
    trainer.close()
    record.step(config.steps, last)
    record.finished(trainer.state.network)


LIBRARIES: dict[str, tuple[str, Callable[[Record, Path], None]]] = {
    "ours": ("ours", ours),
    "streaming": ("mosaicml-streaming, its loader's state saved", streaming),
    "lightning": ('Lightning with LitData, ckpt_path="last"', lightning),
    "ray": ("Ray Train's guide, a checkpoint each epoch", ray_train),
    "timm": ("timm, last.pth.tar of each epoch", timm_epochs),
    "webdataset": ("WebDataset, the epoch begun anew", webdataset),
    "timm-recovery": ("timm, --recovery-interval", timm_recovery),
}
"""What the table calls each, and its training."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=LIBRARIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kill-after", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    LIBRARIES[given.name][1](Record(given.folder, given.kill_after), given.data)
