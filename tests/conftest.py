"""What several tests share: the built-in digits, staged once, and small runs on them."""

from __future__ import annotations

import logging
import os

# Before PyTorch is imported: processes with two threads each on two cores would wait for one another.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime tells Microsoft of every network that it loads
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xdist.remote import Producer

from resnet_pipeline.settings import Settings, variable
from tests.scheduling import OneLaneOfServers

# What takes seconds is imported by the fixtures: the process that shares out the tests runs none of them.
if TYPE_CHECKING:
    from resnet_pipeline.data.dataset import Dataset
    from resnet_pipeline.storage.base import Storage
    from resnet_pipeline.training.run_directory import RunDirectory
    from resnet_pipeline.workspace import Workspace

OWN = [variable(field) for field in Settings.model_fields]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneLaneOfServers:
    """Let the servers' tests run one after another, and the others beside them."""
    return OneLaneOfServers(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the servers' tests first, then the slow ones: what is left at the end is then shared evenly."""
    items.sort(key=lambda item: ("integration" not in item.keywords, "slow" not in item.keywords))
    for item in items:
        # minutes of work, and many beside other tests on a slow machine: the limit is for what hangs
        if "soak" in item.keywords and not any(marker.name == "timeout" for marker in item.own_markers):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what a test has said be text that can be sent to another process: xdist ends at a lone surrogate."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the user's servers, cluster or work folder."""
    saved = dict(os.environ)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", *OWN):
        os.environ.pop(name, None)
    home = tmp_path_factory.mktemp("home")
    os.environ |= {"RESNET_PIPELINE_ROOT": str(home / "work"), "PREFECT_HOME": str(home / "prefect")}
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(autouse=True)
def _restore_environment() -> Iterator[None]:
    """No test sees a variable that another one has set, or that a library has: MLflow's scoring server sets its own."""
    saved = dict(os.environ)
    yield
    now = dict(os.environ)
    for name in now.keys() - saved.keys():
        del os.environ[name]
    os.environ |= {name: value for name, value in saved.items() if now.get(name) != value}


@pytest.fixture(autouse=True)
def _restore_torch() -> Iterator[None]:
    """Each test finds PyTorch's global switches as they are at the start."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the built-in digits, staged."""
    from resnet_pipeline.sources.digits import write_digits
    from resnet_pipeline.staging.stage import stage

    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "source")
    return stage(folder / "source", folder / "datasets" / "digits", name="digits", workers=2)


@pytest.fixture(scope="session")
def sharded_digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the built-in digits in many small shards."""
    from resnet_pipeline.sources.digits import write_digits
    from resnet_pipeline.staging.stage import Options, stage

    folder = tmp_path_factory.mktemp("sharded")
    write_digits(folder / "source")
    options = Options(shard_bytes=300_000)
    return stage(folder / "source", folder / "datasets" / "digits", name="digits", workers=2, options=options)


@pytest.fixture(scope="session")
def photo_set(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return those images, staged; a test that changes it takes a copy."""
    from resnet_pipeline.staging.stage import stage
    from tests.images import photo_files

    folder = tmp_path_factory.mktemp("photos")
    for name, data in photo_files().items():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes(data)
    return stage(folder / "source", folder / "datasets" / "photos", name="photos", workers=1)


@pytest.fixture
def workspace(tmp_path: Path, digits: Dataset) -> Workspace:
    """Return a new workspace that has the digits."""
    from tests.workspaces import with_digits

    return with_digits(tmp_path / "work", digits)


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new MLflow database, which takes seconds to make: for workspaces to start with."""
    from resnet_pipeline.adapters.mlflow.client import make_database

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    make_database(file)
    return file


@pytest.fixture
def digits_in_s3(sharded_digits: Dataset, bucket: str) -> Storage:
    """Return where the digits lie in a bucket."""
    from resnet_pipeline.storage import storage_at

    storage = storage_at(f"s3://{bucket}/datasets/digits")
    for stored in sharded_digits.storage.files():
        storage.write(stored.name, sharded_digits.path / stored.name)
    return storage


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Return host and port of an S3 server for the session."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def bucket(s3_server: tuple[str, int]) -> Iterator[str]:
    """Return the name of a new bucket; the environment says where it is and has the keys."""
    import boto3

    from tests.s3_server import KEYS, settings

    aws = {name: None for name in os.environ if name.startswith("AWS_")}
    with settings(**aws, **KEYS, AWS_ENDPOINT_URL="http://{}:{}".format(*s3_server)):
        name = f"bucket-{uuid.uuid4().hex}"
        boto3.session.Session().client("s3").create_bucket(Bucket=name)
        yield name


@pytest.fixture
def make_run(tmp_path: Path, digits: Dataset) -> Callable[..., RunDirectory]:
    """Return a function that makes a small run on the digits: changed fields, and the folder it stands in."""
    from resnet_pipeline.config_io import parse_assignments, with_overrides
    from resnet_pipeline.recipes import get_recipe
    from resnet_pipeline.training.run_directory import RunDirectory

    def make(*assignments: str, folder: str = "runs") -> RunDirectory:
        small = ["steps=12", "eval_every=6", "checkpoint_every=4", "log_every=2", "bn_images=128", *assignments]
        config = with_overrides(get_recipe("digits/resnet8"), parse_assignments(small))
        return RunDirectory.create(tmp_path / folder, config, digits.facts)

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


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Return the archive of BCCD: blood cells with boxes, in Pascal VOC's layout."""
    return archive("RESNET_PIPELINE_BCCD")


@pytest.fixture(scope="session")
def coco128() -> Path:
    """Return the archive of 128 images of COCO with their instances."""
    return archive("RESNET_PIPELINE_COCO128")


@pytest.fixture(scope="session")
def ilsvrc_val() -> Path:
    """Return the archive of 400 validation images of ILSVRC-2012, in Kaggle's layout, with boxes."""
    return archive("RESNET_PIPELINE_ILSVRC_VAL")
