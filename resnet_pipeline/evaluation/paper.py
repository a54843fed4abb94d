"""The paper's errors, with the table that each comes from (arXiv 1512.03385); errors in percent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedError:
    """An error of the paper: top-1, top-5 if it is given, and the table where it stands."""

    top1: float
    top5: float | None
    protocol: str
    source: str


_TABLE_2 = "Table 2: ImageNet validation, 10-crop"
_TABLE_3 = "Table 3: ImageNet validation, 10-crop"
_TABLE_6 = "Table 6: CIFAR-10 test, single view"

PUBLISHED: dict[str, PublishedError] = {
    "imagenet/plain18": PublishedError(27.94, None, "10-crop", _TABLE_2),
    "imagenet/resnet18": PublishedError(27.88, None, "10-crop", _TABLE_2),
    "imagenet/plain34": PublishedError(28.54, 10.02, "10-crop", _TABLE_3),
    "imagenet/resnet34": PublishedError(25.03, 7.76, "10-crop", _TABLE_3),
    "imagenet/resnet34-b": PublishedError(24.52, 7.46, "10-crop", _TABLE_3),
    "imagenet/resnet34-c": PublishedError(24.19, 7.40, "10-crop", _TABLE_3),
    "imagenet/resnet50": PublishedError(22.85, 6.71, "10-crop", _TABLE_3),
    "imagenet/resnet101": PublishedError(21.75, 6.05, "10-crop", _TABLE_3),
    "imagenet/resnet152": PublishedError(21.43, 5.71, "10-crop", _TABLE_3),
    "cifar10/resnet20": PublishedError(8.75, None, "center", _TABLE_6),
    "cifar10/resnet32": PublishedError(7.51, None, "center", _TABLE_6),
    "cifar10/resnet44": PublishedError(7.17, None, "center", _TABLE_6),
    "cifar10/resnet56": PublishedError(6.97, None, "center", _TABLE_6),
    "cifar10/resnet110": PublishedError(6.43, None, "center", _TABLE_6 + " (best of five; 6.61 on average)"),
    "cifar10/resnet1202": PublishedError(7.93, None, "center", _TABLE_6),
    "cifar10/highway20": PublishedError(7.54, None, "center", _TABLE_6 + " (19 layers, 2.3M parameters)"),
}


@dataclass(frozen=True)
class PublishedEnsemble:
    """The top-5 error of the paper's ensemble, and where it stands."""

    top5: float
    source: str


# Table 5: six models of different depth, two of them 152 layers, ILSVRC 2015 test server
PUBLISHED_ENSEMBLE = PublishedEnsemble(3.57, "Table 5: ensemble of six, ImageNet test server")


@dataclass(frozen=True)
class EnsembleMember:
    """A member of an ensemble: the network that a recipe trains with this seed, for all of its steps."""

    recipe: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.recipe} of seed {self.seed}"


ENSEMBLES: dict[str, tuple[EnsembleMember, ...]] = {
    # The paper names neither the six models nor their order, only that two have 152 layers (docs/DEVIATIONS.md).
    "ilsvrc2015": (
        EnsembleMember("imagenet/resnet34-b"),
        EnsembleMember("imagenet/resnet34-c"),
        EnsembleMember("imagenet/resnet50"),
        EnsembleMember("imagenet/resnet101"),
        EnsembleMember("imagenet/resnet152"),
        EnsembleMember("imagenet/resnet152", seed=1),
    )
}
"""Ensembles by name: a command that takes members takes such a name for all of them."""
