"""What a step takes of memory and a run of the disk, against what is really taken; what is said if there is no room."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.detection import weight_bytes
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training import footprint
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.footprint import NoRoomError, disk_bytes, explained, step_memory
from resnet_pipeline.training.loop import train

# steps in a process of its own: how much more than before them the kernel says that it had at most. The maximum that
# getrusage tells would be that of the process that it was forked from
STEPS = """
import re, sys, torch
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.footprint import step_memory
from resnet_pipeline.training.optim import build_optimizer
name, micro, keep = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
config = with_overrides(get_recipe(name), {"model.checkpointing": keep})
network = build_model(config.model.name, checkpointing=keep)
network = Classifier(Normalize(torch.zeros(3)), network).to(memory_format=torch.channels_last)
estimate = step_memory(network, config).total(micro)
optimizer = build_optimizer(network, config.optim)
def most():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = most()
size = config.augment.crop
for _ in range(2):
    images = torch.zeros(micro, size, size, 3, dtype=torch.uint8)
    torch.nn.functional.cross_entropy(network(images), torch.zeros(micro, dtype=torch.long)).backward()
    optimizer.step()
print(estimate, most() - before)
"""


def classifier(name: str, checkpointing: int = 0) -> Classifier:
    return Classifier(Normalize(torch.zeros(3)), build_model(name, checkpointing=checkpointing))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("imagenet/resnet18", "8", "0"), ("cifar10/resnet56", "64", "1")])
def test_a_step_s_memory_is_about_what_it_really_takes(arguments):
    done = subprocess.run([sys.executable, "-c", STEPS, *arguments], capture_output=True, text=True, check=True)
    estimate, taken = map(int, done.stdout.split())
    assert taken < estimate < 3 * taken + 500e6, (estimate, taken)


def test_trying_a_step_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    network = classifier("cifar-resnet20").eval()
    before, threads, state = copy.deepcopy(network.state_dict()), torch.get_num_threads(), torch.get_rng_state()
    step_memory(network, get_recipe("cifar10/resnet20"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training and torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())


def test_memory_grows_with_images_and_shrinks_with_checkpointing():
    config = get_recipe("cifar10/resnet56")
    plain, less = (step_memory(classifier("cifar-resnet56", n), config) for n in (0, 1))
    assert plain.total(128) - plain.total(64) == pytest.approx(64 * 1.3 * plain.of_an_image, rel=1e-3)
    assert less.of_an_image < plain.of_an_image / 2 and less.fixed == plain.fixed
    averaged = with_overrides(config, {"optim.ema": 0.9})
    assert step_memory(classifier("cifar-resnet56"), averaged).fixed == pytest.approx(7 / 5 * plain.fixed)


def test_a_step_that_does_not_fit_is_refused_with_what_would(make_run, digits, monkeypatch):
    run = make_run()
    config = run.config()
    network = classifier(config.model.name)
    memory = step_memory(network, config)
    monkeypatch.setattr(footprint, "free_memory", lambda processes: memory.total(config.micro_batch // 2))
    with pytest.raises(NoRoomError) as refused:
        train(run, digits, LocalContext())
    text = str(refused.value)
    assert f"for micro-batches of {config.micro_batch} images" in text and "free for each process" in text
    assert "--set model.checkpointing=1" in text and f"--set micro_batch={config.micro_batch // 2} would fit" in text
    assert not run.metrics_file.exists(), "nothing was begun"


def test_a_lack_of_memory_in_a_step_is_one_line(make_run, digits, monkeypatch):
    from resnet_pipeline.training.loop import Trainer

    def step(self, batches):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Trainer, "one_step", step)
    with pytest.raises(NoRoomError, match=r"^out of memory in a step of digits/resnet8 .*--set model\.checkpointing=1"):
        train(make_run(), digits, LocalContext())
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), make_run().config()) is None
    allocator = RuntimeError(
        "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    )
    assert explained(allocator, make_run().config()) is not None


def test_a_run_s_disk_holds_what_it_keeps(make_run, digits):
    run = make_run("checkpoint_every=1")
    train(run, digits, LocalContext())
    kept = sum(file.stat().st_size for file in run.path.rglob("*.pt")) + run.weights_file.stat().st_size
    assert kept < disk_bytes(run.config(), weights=weight_bytes(run.config(), classes=10)) < 4 * kept


def test_a_disk_without_room_is_said_before_the_start(make_run, monkeypatch):
    run = make_run()
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 2000, 2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NoRoomError, match=r"needs some 3\.2 GB for checkpoints .* has 0 MB free; make room"):
        footprint.check_disk(run.path, 3_200_000_000)
    footprint.check_disk(run.path, 1000)


def test_outside_of_any_container_the_machine_s_memory_counts(monkeypatch):
    monkeypatch.setattr(footprint, "_container_limits", list)
    assert footprint.free_memory(1) > footprint.free_memory(1000) > 0
