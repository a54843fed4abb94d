"""What several tests share: the built-in digits, staged once, and small runs on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from resnet_pipeline.config import RunConfig, with_overrides
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.digits import write_digits
from resnet_pipeline.data.shards import stage
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.run_directory import RunDirectory


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the user's servers, cluster or work folder."""
    saved = dict(os.environ)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    home = tmp_path_factory.mktemp("home")
    os.environ |= {"RESNET_PIPELINE_ROOT": str(home / "work"), "PREFECT_HOME": str(home / "prefect")}
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(autouse=True)
def _restore_torch() -> Iterator[None]:
    """Each test finds PyTorch's global switches as they are at the start."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the built-in digits, staged."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "source")
    return stage(folder / "source", folder / "datasets" / "digits", name="digits", workers=2)


@pytest.fixture
def make_run(tmp_path: Path, digits: Dataset) -> Callable[..., RunDirectory]:
    """Return a function that makes a small run on the digits: changed fields, and the folder it stands in."""

    def make(*assignments: str, folder: str = "runs") -> RunDirectory:
        small = ["steps=12", "eval_every=6", "checkpoint_every=4", "log_every=2", "bn_images=128", *assignments]
        config: RunConfig = with_overrides(get_recipe("digits/resnet8"), small)
        about = {"name": digits.name, "fingerprint": digits.fingerprint, "classes": digits.classes}
        return RunDirectory.create(tmp_path / folder, config, about)

    return make


def archive(variable: str) -> Path:
    """Return the archive of real images that an environment variable names, or skip, saying so."""
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} is not set: no real images to test with")
    return Path(path)


@pytest.fixture(scope="session")
def imagenet_sample() -> Path:
    """Return the archive of 1,000 ImageNet files."""
    return archive("RESNET_PIPELINE_IMAGENET_SAMPLE")


@pytest.fixture(scope="session")
def cifar10_archive() -> Path:
    """Return the archive of CIFAR-10 as JPEGs."""
    return archive("RESNET_PIPELINE_CIFAR10")
