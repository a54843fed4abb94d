"""What a training begins with if not with random weights: another network's, deepened if that is asked for.

The network is made once, before anything is started, and kept in the run's directory, from which the workers take it;
their checkpoints hold everything from then on. The SHA-256 of the weights is a field of the config.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.jobs.references import load, parse
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.blocks import Bottleneck
from resnet_pipeline.models.identity_extension import deepen
from resnet_pipeline.models.registry import architecture_of, depth_of
from resnet_pipeline.models.resnet import Architecture, ResNet
from resnet_pipeline.models.weights import read_metadata, save_weights
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.tasks import build_classifier
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_REFERENCE, _DEEPENED = "reference", "deepened"  # keys of the file's metadata

Head = Literal["kept", "fresh"]


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Whose weights a training begins with: what names a network (``jobs.references``), and whether it is deepened.

    ``deepened``: a shallower network gets the missing layers as identity mappings (the paper, section 1).
    """

    reference: str
    deepened: bool = False

    @classmethod
    def of(cls, reference: str | None, *, deepened: bool) -> InitialWeights | None:
        """Return what the parameters of a command or flow say; None for random weights.

        >>> InitialWeights.of(None, deepened=False) is None
        True
        """
        if reference is None:
            if deepened:
                raise UserError("--deepen says what is done with --initial-weights: name these too")
            return None
        return cls(reference=reference, deepened=deepened)

    @classmethod
    def read(cls, run: RunDirectory) -> InitialWeights | None:
        """Return what a run of this machine began with; None if it was random weights, or is not known any more."""
        if not run.initial_weights_file.is_file():
            return None
        metadata = read_metadata(run.initial_weights_file)
        return cls(reference=metadata[_REFERENCE], deepened=metadata[_DEEPENED] == "True")

    def describe(self) -> str:
        """Return the reference, and what was done with it."""
        return f"{self.reference}, deepened" if self.deepened else self.reference

    def options(self) -> list[str]:
        """Return what `resnet-pipeline train` is told of it."""
        return ["--initial-weights", self.reference, *(["--deepen"] if self.deepened else [])]


@dataclass(frozen=True)
class InitialNetwork:
    """The network that a training begins with, whose weights it has, and a line on what was done with them."""

    origin: InitialWeights
    classifier: Classifier
    account: str

    def keep(self, run: RunDirectory) -> None:
        """Write the network into the run's directory, for its workers."""
        _log.info("%s: %s", run.config().recipe, self.account)
        metadata = {_REFERENCE: self.origin.reference, _DEEPENED: str(self.origin.deepened)}
        save_weights(self.classifier, run.initial_weights_file, metadata)


def begun_with(
    workspace: Workspace, config: RunConfig, dataset_name: str, origin: InitialWeights | None
) -> tuple[RunConfig, InitialNetwork | None]:
    """Return the config with the weights' SHA-256, and the network that its training begins with.

    All tensors are the reference's, its preprocessing too. Its classifier is kept if it has the
    dataset's classes, or knows no names and has as many, unless ``model.initial_head`` says otherwise. Without an
    ``origin`` the config is returned as it is. Raises UserError if the reference is no such network.

    Example: ``begun_with(Workspace.of(), config, "cifar10", InitialWeights(reference="cifar10-plain20"))``
    """
    if origin is None:
        if config.model.initial_head is not None and config.model.initial_weights is None:
            raise UserError("model.initial_head says what is done with --initial-weights: name these too")
        task = "detection" if config.detection else "localisation" if config.localisation else "regions"
        if config.head is not None and config.head.norm == "frozen" and config.model.initial_weights is None:
            _log.warning(
                "%s: random weights with batch norm frozen seldom learn: name a classifier with --initial-weights, or "
                "--set %s.norm=batch",
                config.recipe,
                task,
            )
        return config, None
    if config.model.initial_weights is not None:
        raise UserError("the initial weights are given twice, as --initial-weights and as a field; leave one out")
    dataset = open_dataset(workspace, dataset_name)
    member = load(workspace, parse(workspace, origin.reference))
    source = _network_of(member, origin.reference)
    fitting, change = _fitted(source, config, member, origin)
    found, why = _head(member, source, dataset, detector=config.head is not None)
    head = config.model.initial_head or found
    if (head, found) == ("kept", "fresh"):
        raise UserError(f"model.initial_head=kept, but {origin.reference} can't keep its classifier: {why}")
    model = replace(config.model, initial_weights=member.weights_sha256, initial_head=head)
    config = replace(config, model=model)
    classifier = build_classifier(model, dataset, seed=config.seed)
    state = fitting.state_dict()
    if head == "fresh":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    classifier.network.load_state_dict(state, strict=False)
    classifier.normalize = member.classifier.normalize
    kept = f"its classifier is replaced by a random one: {why}" if head == "fresh" else "its classifier is kept"
    account = f"begins with the weights of {origin.reference} ({member.weights_sha256[:12]}…){change}; {kept}"
    return config, InitialNetwork(origin, classifier, account)


def _network_of(member: Member, reference: str) -> ResNet:
    network = member.classifier.network
    if not isinstance(network, ResNet):
        raise UserError(f"{reference} is no network of this program, so no training can begin with it")
    return network


def _head(member: Member, source: ResNet, dataset: Dataset, *, detector: bool) -> tuple[Head, str]:
    """Return whether a classifier is kept, and if not, why."""
    if detector:
        return "fresh", "a detector has other last layers"
    theirs, ours = source.fc.out_features, len(dataset.classes)
    if theirs != ours:
        return "fresh", f"it has {theirs:,} classes, {dataset.name} {ours:,}"
    if member.classes and member.classes != tuple(dataset.classes):
        return "fresh", f"its {theirs:,} classes are others than {dataset.name}'s"
    return "kept", f"{dataset.name} is to have its own"


def _fitted(source: ResNet, config: RunConfig, member: Member, origin: InitialWeights) -> tuple[ResNet, str]:
    """Return the reference's network, deepened if it was asked for, and what was done; UserError unless it fits."""
    model = config.model
    theirs = source.architecture
    ours = architecture_of(model.name, shortcut=model.shortcut, stride=model.stride, pooling=model.pooling or "pytorch")
    what = f"{origin.reference} is a {member.network}, and {config.recipe} trains a {model.name}"
    if _family(theirs) != _family(ours):
        raise UserError(f"{what}: that is another kind of network, whose training can't begin with its weights")
    options = ("shortcut", "pooling", *(["stride"] if ours.block is Bottleneck else []))
    different = [f"--set model.{name}={getattr(theirs, name)}" for name in options if _differ(theirs, ours, name)]
    if different:
        raise UserError(f"{what} with other options: add {' '.join(different)}")
    shallow, deep = [count for count, _ in theirs.stages], [count for count, _ in ours.stages]
    if any(more > fewer for more, fewer in zip(shallow, deep, strict=True)):
        raise UserError(f"{what}: it has fewer layers than these weights")
    if origin.deepened == (shallow == deep):
        least = "leave --deepen out: it has as many layers"
        raise UserError(
            f"{what}: {least if origin.deepened else '--deepen adds its other layers as identity mappings'}"
        )
    if not origin.deepened:
        return source, ""
    return deepen(source, deep), f", deepened from {depth_of(member.network)} to {depth_of(model.name)} layers"


def _family(architecture: Architecture) -> tuple[object, ...]:
    widths = [width for _, width in architecture.stages]
    return architecture.stem, architecture.block, widths, architecture.shortcut == "none"


def _differ(one: Architecture, other: Architecture, option: str) -> bool:
    return bool(getattr(one, option) != getattr(other, option))
