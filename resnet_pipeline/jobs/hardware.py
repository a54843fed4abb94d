"""What a run would take on hardware that is not here: hours from published rates of ResNet-50, for planning alone.

Nothing of this was measured with this program. The rates are one GPU's and eight GPUs' images/s in training ResNet-50
v1.5 at 224 pixels by NVIDIA's PyTorch program (DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5,
"Training performance results", container 21.03). Another network is taken to need as much more time as it has
multiply-adds; small images and small batches use a GPU less well. What is lost between nodes `benchmarks/scaling.py`
models. Tests are taken to need a third of that, since a training step is three times the arithmetic of a forward pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from resnet_pipeline.config import Precision, RunConfig
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection import weight_bytes
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.evaluation.protocols import TestSpec, protocol_of
from resnet_pipeline.evaluation.scoring import check_models, plan_chunks
from resnet_pipeline.jobs.evaluate import tested_samples
from resnet_pipeline.jobs.recipes import RecipeRow, kept_costs
from resnet_pipeline.jobs.references import expanded, load, parse
from resnet_pipeline.models.complexity import complexity
from resnet_pipeline.progress import cost, hours, price_an_hour, priced
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.footprint import disk_bytes, gigabytes
from resnet_pipeline.workspace import Workspace

_OF_A_NODE = 8
_PASSES_OF_A_STEP = 3  # forward, and backward the derivatives by the inputs and by the weights: each as much arithmetic


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
    """Return about how many seconds a classifier's training takes, without validations.

    Raises UserError if the GPUs can't share it, and for a detector, of which no such rates are published.

    >>> round(training_seconds(get_recipe("imagenet/resnet152"), parse_hardware("8xa100")) / 3600)
    33
    """
    if config.detection is not None:
        raise UserError(
            f"{config.recipe} trains a detector, and the published rates are a classifier's: what it takes is not known"
        )
    config.check_workers(hardware.gpus)
    wanted: Precision = "bf16" if config.precision == "auto" else config.precision
    work = config.steps * config.batch * kept_costs()[config.recipe]["multiply_adds"]
    return work / _trained_a_second(hardware, wanted)


def _trained_a_second(hardware: Hardware, precision: Precision) -> float:
    """Return a training's images a second times a forward pass's multiply-adds; float32's if nothing is known."""
    rates = _RATES[hardware.kind]
    known = kept_costs()["imagenet-fast/resnet50"]["multiply_adds"]
    return rates.get(precision, rates["float32"]).of(hardware.gpus) * known


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
        disk_bytes=disk_bytes(config, weights=weight_bytes(config, classes=len(opened.classes))),
        price=an_hour,
        cost=None if an_hour is None else an_hour * hours_in_all,
    )


@dataclass(frozen=True, kw_only=True)
class TestPlan:
    """What a network's test would take on hardware that is not here; ``views`` are those of one image on average.

    A view is as large as the network's crop. ``price`` is an hour's, ``cost`` the whole's.
    """

    __test__: ClassVar[bool] = False  # no test of pytest's

    model: str
    network: str
    split: str
    protocol: str
    images: int
    views: float
    hardware: str
    hours: float
    price: float | None
    cost: float | None

    def describe(self) -> str:
        """Return it as a sentence."""
        seconds, views = 3600 * self.hours, "1 view" if self.views == 1 else f"{self.views:,.4g} views"
        return (
            f"{self.model}: {self.images:,} images of {self.split}, {views} of each ({self.protocol}), on "
            f"{self.hardware}: about {hours(seconds)}{cost(seconds, self.price)}. From published rates of training "
            "ResNet-50 in float32, of which a forward pass is taken to be a third; decoding is not counted. Not "
            "measured here: it may be twice as long"
        )


def plans_of_test(
    workspace: Workspace, references: Sequence[str], test: TestSpec, hardware: str, price: float | None
) -> list[TestPlan]:
    """Return what each network's test would take on hardware named as ``8xh100``, if no scores of it were kept.

    A forward pass is a third of a training step's arithmetic; tests are in float32. Networks are loaded, to see how
    large they are, and nothing is run. Raises UserError as `parse_hardware` and `evaluate_models`.

    Example: ``plans_of_test(Workspace.of(), ["torchvision:resnet50"], test, "8xa100", None)[0].hours``
    """
    named, (dataset, split, indices) = parse_hardware(hardware), tested_samples(workspace, test)
    with priced(price):
        an_hour = price_an_hour()
    found = []
    for text in dict.fromkeys(expanded(workspace, references, allow_partial=test.allow_partial)):
        member = load(workspace, parse(workspace, text))
        check_models({text: member.classifier}, dataset)
        protocol = protocol_of(test.protocol, member.views, scales=test.scales, average=test.average)
        views = plan_chunks(dataset, split, protocol, indices).pixels / protocol.crop**2
        of_a_view = complexity(member.classifier.network.to("meta"), protocol.crop).multiply_adds
        rate = _PASSES_OF_A_STEP * _trained_a_second(named, "float32")
        hours_in_all = views * of_a_view / rate / 3600
        found.append(
            TestPlan(
                model=text,
                network=member.network,
                split=split,
                protocol=protocol.id,
                images=len(indices),
                views=views / len(indices),
                hardware=str(named),
                hours=hours_in_all,
                price=an_hour,
                cost=None if an_hour is None else an_hour * hours_in_all,
            )
        )
    return found
