"""The paper's tables and figures as data: which networks each consists of, and the errors in percent that it prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.paper import ENSEMBLES, PUBLISHED, PUBLISHED_ENSEMBLE

Kind = Literal["complexity", "errors", "ensemble", "curves", "responses"]
"""What an exhibit shows: multiply-adds, errors of networks, those of their mean, training curves, layer responses."""
Family = Literal["imagenet", "cifar10"]
Scale = Literal["full", "small"]

SMALL_STEPS: dict[Family, int] = {"imagenet": 1_000, "cifar10": 4}
"""What ``--scale small`` divides a recipe's iterations by: 600 of 600,000, and 16,000 of 64,000."""

SMALL_SHARE: dict[Family, float | None] = {"imagenet": 0.01, "cifar10": None}
"""The part of each class's training images that ``--scale small`` trains on; None for all."""


def network_name(recipe: str, begun_with: str | None) -> str:
    """Return what a recipe trains, and from what, without the family.

    >>> network_name("cifar10/plain32", "plain20")
    'plain32-from-plain20'
    """
    return recipe.partition("/")[2] + (f"-from-{begun_with}" if begun_with else "")


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A network in an exhibit: what the paper calls it and, where it prints them, its errors or multiply-adds.

    ``seeds`` is the number of runs that the paper's figure is of; ``note`` says what else belongs to it.
    ``begun_with`` is the shallower network whose weights, with identity mappings as the other layers, it begins with.
    """

    label: str
    recipe: str
    begun_with: str | None = None
    top1: float | None = None
    top5: float | None = None
    multiply_adds: float | None = None
    seeds: int = 1
    note: str = ""

    @property
    def network(self) -> str:
        """The recipe's name without its family, and what it begins with: ``resnet20``, ``plain32-from-plain20``."""
        return network_name(self.recipe, self.begun_with)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A part of a figure: its title and the networks that it shows."""

    title: str
    networks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A table or figure of the paper.

    ``protocol`` is how its networks are tested, ``small`` the networks that ``--scale small`` leaves of them; of a
    figure with several parts ``panels`` says what each shows. ``printed`` are the errors of an ensemble.
    """

    name: str
    title: str
    kind: Kind
    family: Family
    protocol: str
    rows: tuple[PaperRow, ...]
    small: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()
    printed_top5: float | None = None

    def row(self, network: str) -> PaperRow:
        """Return the first row of a network."""
        return next(row for row in self.rows if row.network == network)

    def networks(self, scale: Scale) -> tuple[str, ...]:
        """Return the networks at a scale, each once, in the order of the rows; none if nothing is trained for it."""
        if self.kind == "complexity":
            return ()
        found = dict.fromkeys(row.network for row in self.rows)
        return tuple(name for name in found if scale == "full" or name in self.small)

    def seeds(self, network: str) -> tuple[int, ...]:
        """Return the seeds of a network's runs, as the paper's figure has them."""
        if self.kind == "ensemble":
            return tuple(m.seed for m in ENSEMBLES["ilsvrc2015"] if m.recipe == f"{self.family}/{network}")
        return tuple(range(max(row.seeds for row in self.rows if row.network == network)))


def _published(
    family: Family, network: str, label: str, *, seeds: int = 1, note: str = "", top5: bool = True
) -> PaperRow:
    """Return the row of a network with the errors of Tables 2, 3 and 6."""
    found = PUBLISHED.get(f"{family}/{network}")
    return PaperRow(
        label=label,
        recipe=f"{family}/{network}",
        top1=found.top1 if found else None,
        top5=found.top5 if found and top5 else None,
        seeds=seeds,
        note=note,
    )


def _drawn(family: Family, network: str, begun_with: str | None = None) -> PaperRow:
    """Return the row of a network of a figure, which prints no errors."""
    label = network if begun_with is None else f"{network}, constructed from {begun_with}"
    return PaperRow(label=label, recipe=f"{family}/{network}", begun_with=begun_with)


_CIFAR_PLAIN = ("plain20", "plain32", "plain44", "plain56")
_CIFAR_RESIDUAL = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")

_CONSTRUCTION = ("plain20", "plain32", "plain32-from-plain20")

_ALL = (
    Exhibit(
        name="section1",
        title="Section 1: a deeper plain network by construction, its added layers identities (CIFAR-10)",
        kind="curves",
        family="cifar10",
        protocol="center",
        # the paper argues with this network and trains none: which depths is our choice
        rows=(_drawn("cifar10", "plain20"), _drawn("cifar10", "plain32"), _drawn("cifar10", "plain32", "plain20")),
        small=_CONSTRUCTION,
        panels=(Panel(title="training error", networks=_CONSTRUCTION),
                Panel(title="test error", networks=_CONSTRUCTION)),
    ),
    Exhibit(
        name="figure1",
        title="Figure 1: deeper plain networks have higher training error (CIFAR-10)",
        kind="curves",
        family="cifar10",
        protocol="center",
        rows=tuple(_drawn("cifar10", network) for network in ("plain20", "plain56")),
        small=("plain20", "plain56"),
        panels=(Panel(title="training error", networks=("plain20", "plain56")),
                Panel(title="test error", networks=("plain20", "plain56"))),
    ),
    Exhibit(
        name="figure4",
        title="Figure 4: plain and residual networks of 18 and 34 layers (ImageNet)",
        kind="curves",
        family="imagenet",
        protocol="center",
        rows=tuple(_drawn("imagenet", network) for network in ("plain18", "plain34", "resnet18", "resnet34")),
        small=("plain18", "plain34", "resnet18", "resnet34"),
        panels=(Panel(title="plain networks", networks=("plain18", "plain34")),
                Panel(title="residual networks", networks=("resnet18", "resnet34"))),
    ),
    Exhibit(
        name="figure6",
        title="Figure 6: plain networks, residual networks, 110 and 1202 layers (CIFAR-10)",
        kind="curves",
        family="cifar10",
        protocol="center",
        rows=tuple(_drawn("cifar10", network) for network in (*_CIFAR_PLAIN, *_CIFAR_RESIDUAL, "resnet1202")),
        small=("plain20", "plain56", "resnet20", "resnet56"),
        panels=(Panel(title="plain networks", networks=_CIFAR_PLAIN),
                Panel(title="residual networks", networks=_CIFAR_RESIDUAL),
                Panel(title="110 and 1202 layers", networks=("resnet110", "resnet1202"))),
    ),
    Exhibit(
        name="figure7",
        title="Figure 7: standard deviations of layer responses (CIFAR-10)",
        kind="responses",
        family="cifar10",
        protocol="center",
        rows=tuple(
            _drawn("cifar10", network) for network in ("plain20", "plain56", "resnet20", "resnet56", "resnet110")
        ),
        small=("plain20", "plain56", "resnet20", "resnet56"),
    ),
    Exhibit(
        name="table1",
        title="Table 1: multiply-adds at 224 pixels (ImageNet)",
        kind="complexity",
        family="imagenet",
        protocol="center",
        rows=tuple(
            PaperRow(label=f"ResNet-{network[6:]}", recipe=f"imagenet/{network}", multiply_adds=printed)
            for network, printed in (
                ("resnet18", 1.8e9), ("resnet34", 3.6e9), ("resnet50", 3.8e9), ("resnet101", 7.6e9),
                ("resnet152", 11.3e9),
            )
        ),
    ),
    Exhibit(
        name="table2",
        title="Table 2: top-1 error, 10-crop (ImageNet validation)",
        kind="errors",
        family="imagenet",
        protocol="10-crop",
        rows=(
            _published("imagenet", "plain18", "plain-18", top5=False),
            _published("imagenet", "plain34", "plain-34", top5=False),
            _published("imagenet", "resnet18", "ResNet-18", top5=False),
            _published("imagenet", "resnet34", "ResNet-34", top5=False),
        ),
        small=("plain18", "plain34", "resnet18", "resnet34"),
    ),
    Exhibit(
        name="table3",
        title="Table 3: errors, 10-crop (ImageNet validation)",
        kind="errors",
        family="imagenet",
        protocol="10-crop",
        rows=(
            _published("imagenet", "plain34", "plain-34"),
            _published("imagenet", "resnet34", "ResNet-34 A"),
            _published("imagenet", "resnet34-b", "ResNet-34 B"),
            _published("imagenet", "resnet34-c", "ResNet-34 C"),
            _published("imagenet", "resnet50", "ResNet-50"),
            _published("imagenet", "resnet101", "ResNet-101"),
            _published("imagenet", "resnet152", "ResNet-152"),
        ),
        small=("resnet34", "resnet50"),
    ),
    Exhibit(
        name="table4",
        title="Table 4: errors of single models, fully convolutional at five scales (ImageNet validation)",
        kind="errors",
        family="imagenet",
        protocol="multi-scale",
        rows=(
            PaperRow(label="ResNet-34 B", recipe="imagenet/resnet34-b", top1=21.84, top5=5.71),
            PaperRow(label="ResNet-34 C", recipe="imagenet/resnet34-c", top1=21.53, top5=5.60),
            PaperRow(label="ResNet-50", recipe="imagenet/resnet50", top1=20.74, top5=5.25),
            PaperRow(label="ResNet-101", recipe="imagenet/resnet101", top1=19.87, top5=4.60),
            PaperRow(label="ResNet-152", recipe="imagenet/resnet152", top1=19.38, top5=4.49),
        ),
        small=("resnet34-b", "resnet50"),
    ),
    Exhibit(
        name="table5",
        title="Table 5: the ensemble of six (the paper: ImageNet test server; ours: validation)",
        kind="ensemble",
        family="imagenet",
        protocol="multi-scale",
        rows=tuple(
            PaperRow(label=f"member {member.recipe.partition('/')[2]}", recipe=recipe)
            for recipe, member in {member.recipe: member for member in ENSEMBLES["ilsvrc2015"]}.items()
        ),
        small=("resnet34-b", "resnet50"),
        printed_top5=PUBLISHED_ENSEMBLE.top5,
    ),
    Exhibit(
        name="table6",
        title="Table 6: test error of single views (CIFAR-10)",
        kind="errors",
        family="cifar10",
        protocol="center",
        rows=(
            _published("cifar10", "resnet20", "ResNet-20"),
            _published("cifar10", "resnet32", "ResNet-32"),
            _published("cifar10", "resnet44", "ResNet-44"),
            _published("cifar10", "resnet56", "ResNet-56"),
            _published("cifar10", "resnet110", "ResNet-110", seeds=5, note="best of five; 6.61 ± 0.16 in all"),
            _published("cifar10", "resnet1202", "ResNet-1202"),
            _published("cifar10", "highway20", "highway, 19 layers", note="ours: 20 layers, 0.39M parameters"),
        ),
        small=("resnet20", "resnet56"),
    ),
)  # fmt: skip

EXHIBITS: dict[str, Exhibit] = {exhibit.name: exhibit for exhibit in _ALL}
"""The paper's tables and figures on classification, by name."""


def exhibits_of(name: str) -> list[Exhibit]:
    """Return the exhibit of this name, or all of them; UserError for a name of none.

    >>> [exhibit.name for exhibit in exhibits_of("table6")]
    ['table6']
    """
    if name == "all":
        return list(EXHIBITS.values())
    if name not in EXHIBITS:
        raise UserError(f"{name!r} is no table or figure here; there are {', '.join(EXHIBITS)}, and all")
    return [EXHIBITS[name]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper on two networks: ``higher`` has the higher error, or the stronger responses.

    ``on`` says which: the training error, the test error under ``protocol``, or the mean layer response; ``start``
    says instead that ``higher``, before its first step, has the test error that ``lower`` ends with.
    """

    text: str
    source: str
    higher: str
    lower: str
    on: Literal["start", "training", "test", "responses"]
    protocol: str = "center"


_DEEPER_PLAIN = "The deeper plain network has the higher {} error"
_DEEPER_RESIDUAL = "The deeper residual network has the lower {} error"

CLAIMS: tuple[Claim, ...] = (
    Claim(text="A deeper plain network by construction is as good as the shallower one", source="section 1",
          higher="cifar10/plain32-from-plain20", lower="cifar10/plain20", on="start"),
    Claim(text="Solvers do not find what the construction reaches: from nothing the training error is higher",
          source="section 1", higher="cifar10/plain32", lower="cifar10/plain32-from-plain20", on="training"),
    Claim(text=_DEEPER_PLAIN.format("training"), source="figures 1 and 6", higher="cifar10/plain56",
          lower="cifar10/plain20", on="training"),
    Claim(text=_DEEPER_PLAIN.format("test"), source="figures 1 and 6", higher="cifar10/plain56",
          lower="cifar10/plain20", on="test"),
    Claim(text=_DEEPER_RESIDUAL.format("training"), source="figure 6", higher="cifar10/resnet20",
          lower="cifar10/resnet56", on="training"),
    Claim(text=_DEEPER_RESIDUAL.format("test"), source="figure 6 and Table 6", higher="cifar10/resnet20",
          lower="cifar10/resnet56", on="test"),
    Claim(text="Of 56 layers the residual network has the lower test error", source="figure 6",
          higher="cifar10/plain56", lower="cifar10/resnet56", on="test"),
    Claim(text="Residual networks have smaller responses than plain ones", source="figure 7",
          higher="cifar10/plain56", lower="cifar10/resnet56", on="responses"),
    Claim(text="The deeper residual network has the smaller responses", source="figure 7",
          higher="cifar10/resnet20", lower="cifar10/resnet56", on="responses"),
    Claim(text=_DEEPER_PLAIN.format("training"), source="figure 4 and Table 2", higher="imagenet/plain34",
          lower="imagenet/plain18", on="training"),
    Claim(text=_DEEPER_PLAIN.format("validation"), source="Table 2", higher="imagenet/plain34",
          lower="imagenet/plain18", on="test", protocol="10-crop"),
    Claim(text=_DEEPER_RESIDUAL.format("training"), source="figure 4", higher="imagenet/resnet18",
          lower="imagenet/resnet34", on="training"),
    Claim(text=_DEEPER_RESIDUAL.format("validation"), source="Table 2", higher="imagenet/resnet18",
          lower="imagenet/resnet34", on="test", protocol="10-crop"),
)  # fmt: skip
"""What the paper's evidence shows of networks of two depths, or of two kinds."""
