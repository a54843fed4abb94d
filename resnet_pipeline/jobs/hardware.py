"""What a run would take on hardware that is not here: hours from published rates of ResNet-50, for planning alone.

Nothing of this was measured with this program. The rates are one GPU's and eight GPUs' images/s in training ResNet-50
v1.5 at 224 pixels by NVIDIA's PyTorch program (DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5,
"Training performance results", container 21.03). Another network is taken to need as much more time as it has
multiply-adds; small images and small batches use a GPU less well. What is lost between nodes `benchmarks/scaling.py`
models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resnet_pipeline.config import Precision, RunConfig
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.jobs.recipes import RecipeRow, kept_costs
from resnet_pipeline.progress import cost, hours, price_an_hour, priced
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.footprint import disk_bytes, gigabytes
from resnet_pipeline.workspace import Workspace

_OF_A_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Images/s of ResNet-50 on one GPU, and on a node's eight."""

    one: float
    eight: float

    def of(self, gpus: int) -> float:
        """Return the images/s of so many GPUs: of whole nodes, as if nothing was lost between them."""
        if gpus >= _OF_A_NODE:
            return self.eight * gpus / _OF_A_NODE
        # what each GPU beyond the first loses, the same for each
        loss = (1 - self.eight / (_OF_A_NODE * self.one)) / (_OF_A_NODE - 1)
        return gpus * self.one * (1 - (gpus - 1) * loss)


_V100_FLOAT32 = Rates(one=367, eight=2855)
_FLOAT32_PEAK = {"v100": 15.7, "a100": 19.5, "h100": 66.9}  # TFLOP/s, NVIDIA's data sheets (SXM), no tensor cores


def _float32(gpu: str) -> Rates:
    """Return float32's rates: V100's as published, the others' by their peaks, since nothing is published."""
    part = _FLOAT32_PEAK[gpu] / _FLOAT32_PEAK["v100"]
    return Rates(one=part * _V100_FLOAT32.one, eight=part * _V100_FLOAT32.eight)


_RATES: Mapping[str, Mapping[Precision, Rates]] = {
    "v100": {"float32": _float32("v100"), "bf16": Rates(one=1200, eight=8322)},
    "a100": {"float32": _float32("a100"), "tf32": Rates(one=938, eight=7248), "bf16": Rates(one=2470, eight=16621)},
    # bf16: MLPerf Training 3.0's program, of MXNet (mlcommons/training_results_v3.0, dgxh100_ngc23.04_mxnet: 56,047
    # images/s on eight); PyTorch's are slower, so this is a bound
    "h100": {"float32": _float32("h100"), "bf16": Rates(one=7006, eight=56_047)},
}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """So many GPUs of a kind."""

    gpus: int
    kind: str

    def __str__(self) -> str:
        return f"{self.gpus}x{self.kind}"


def parse_hardware(text: str) -> Hardware:
    """Read NUMBERxKIND; UserError if it is not that, or the kind is not known.

    >>> parse_hardware("8xH100")
    Hardware(gpus=8, kind='h100')
    """
    found = re.fullmatch(r"([1-9]\d{0,5})\s*[x×]\s*(\w+)", text.strip().lower())
    if not found or found[2] not in _RATES:
        near = did_you_mean(found[2], _RATES) if found else ""
        raise UserError(f"--hardware must be a number and one of {', '.join(_RATES)}, as 8xh100, not {text!r}{near}")
    return Hardware(gpus=int(found[1]), kind=found[2])


def training_seconds(config: RunConfig, hardware: Hardware) -> float:
    """Return about how many seconds a recipe's training takes, without validations; UserError if GPUs can't share it.

    >>> round(training_seconds(get_recipe("imagenet/resnet152"), parse_hardware("8xa100")) / 3600)
    33
    """
    config.check_workers(hardware.gpus)
    rates = _RATES[hardware.kind]
    wanted: Precision = "bf16" if config.precision == "auto" else config.precision
    rate = rates.get(wanted, rates["float32"]).of(hardware.gpus)
    ours, known = kept_costs()[config.recipe]["multiply_adds"], kept_costs()["imagenet-fast/resnet50"]["multiply_adds"]
    return config.steps * config.batch / (rate * known / ours)


def hours_of(rows: Sequence[RecipeRow], hardware: Hardware) -> list[float]:
    """Return the hours of each recipe's training, as `training_seconds` has them.

    Example: ``hours_of(recipe_rows(64), parse_hardware("64xh100"))``
    """
    return [training_seconds(get_recipe(row.recipe), hardware) / 3600 for row in rows]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training would take on hardware that is not here; ``price`` is an hour's, ``cost`` the whole's."""

    recipe: str
    steps: int
    batch: int
    epochs: float
    hardware: str
    hours: float
    disk_bytes: int
    price: float | None
    cost: float | None

    def describe(self) -> str:
        """Return it as a sentence."""
        return (
            f"{self.recipe}: {self.steps:,} steps of {self.batch:,} images ({self.epochs:,.0f} epochs) on "
            f"{self.hardware}: about {hours(3600 * self.hours)}{cost(3600 * self.hours, self.price)}; "
            f"{gigabytes(self.disk_bytes)} on the disk. From published rates of ResNet-50, not measured here: it may "
            "be twice as long"
        )


def plan_of(workspace: Workspace, config: RunConfig, dataset: str, hardware: str, price: float | None) -> Plan:
    """Return what a recipe's training on a staged dataset would take on hardware named as ``8xh100``.

    Raises UserError as `parse_hardware`, and if the GPUs can't share the recipe's batch.

    Example: ``plan_of(Workspace.of(), get_recipe("imagenet/resnet152"), "ilsvrc2012", "8xa100", 24.0).hours``
    """
    named, opened = parse_hardware(hardware), open_dataset(workspace, dataset)
    with priced(price):
        an_hour = price_an_hour()
    hours_in_all = training_seconds(config, named) / 3600
    return Plan(
        recipe=config.recipe,
        steps=config.steps,
        batch=config.batch,
        epochs=config.steps * config.batch / len(opened.trained_on(config.train_share).splits["train"]),
        hardware=str(named),
        hours=hours_in_all,
        disk_bytes=disk_bytes(config, classes=len(opened.classes)),
        price=an_hour,
        cost=None if an_hour is None else an_hour * hours_in_all,
    )
