"""Trained networks as files: a run directory, a registered model's folder, or weights trained elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch

from resnet_pipeline.config import ViewConfig
from resnet_pipeline.data.manifest import read_run_config
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import read_json
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.caffe import read_mean_image
from resnet_pipeline.models.weights import build_for_weights, load_own_weights, stored_preprocessing, weights_sha256

MODEL_FILES = ("weights.safetensors", "config.json")
"""What a folder must hold to be a network of this program; a run directory holds both."""

LOCALISER_FOLDER = "localiser"
"""Where the folder of a registered R-CNN has the `MODEL_FILES` of the localiser whose boxes it moves."""

# torchvision's and the public CIFAR-10 weights were trained on (x / 255 − mean) / std with ImageNet's figures
# (torchvision's documentation of its weights' transforms); here in 0..255 units.
_TORCHVISION_MEAN = (123.675, 116.28, 103.53)
_TORCHVISION_STD = (58.395, 57.12, 57.375)
# The mean of the authors' Caffe release, RGB, 0..255, no std.
_CAFFE_MEAN = (123.68, 116.779, 103.939)


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What is known of a network without its weights: its name, view sizes, and its weights' SHA-256.

    ``classes`` are its dataset's class names in the order of the labels, ``class_words`` what they mean in words (the
    names again, if the dataset has no words); both are empty for weights that were trained elsewhere.
    """

    name: str
    views: ViewConfig
    weights_sha256: str
    network: str
    recipe: str | None = None
    classes: tuple[str, ...] = ()
    class_words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Member(NetworkFacts):
    """A network ready to be tested: what is known of it, and its classifier."""

    classifier: Classifier

    def facts(self) -> NetworkFacts:
        """Return what is known of the network, without the classifier, which takes the memory."""
        return NetworkFacts(**{field.name: getattr(self, field.name) for field in fields(NetworkFacts)})


def load_folder(folder: Path, *, name: str | None = None) -> Member:
    """Load the network of a finished run's directory or of a registered model; UserError if it holds none.

    Example: ``load_folder(run.path).classifier``
    """
    for file in MODEL_FILES:
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: it is no finished run")
    config, dataset = read_run_config(folder / "config.json")
    if config.detection is not None:
        raise UserError(f"{folder} holds a detector ({config.recipe}), and a classifier is needed here")
    if config.localisation is not None or config.regions is not None:
        raise UserError(f"{folder} holds boxes of classes ({config.recipe}): `resnet-pipeline localise` tests them")
    network = build_model(
        config.model.name,
        num_classes=len(dataset.classes),
        shortcut=config.model.shortcut,
        stride=config.model.stride,
        pooling=config.model.pooling or "pytorch",
    )
    weights = folder / "weights.safetensors"
    classifier = Classifier(Normalize(torch.zeros(3)), network)
    digest = load_own_weights(classifier, weights)
    check_result(folder, digest)
    return Member(
        name=name or config.recipe,
        classifier=classifier.eval(),
        views=config.views,
        weights_sha256=digest,
        network=config.model.name,
        recipe=config.recipe,
        classes=dataset.classes,
        class_words=dataset.words,
    )


def load_file(network: str, weights: Path, *, ema: bool = False) -> Member:
    """Load weights that were trained elsewhere into a network by name (``resnet50``, ``cifar-resnet20``).

    ``ema`` takes the averaged weights of a checkpoint that holds them beside the others.

    Their preprocessing is the file's own if it holds one. Else it is torchvision's, or for a ``.caffemodel`` the
    authors': the mean image of a ``.binaryproto`` beside it, or their mean colour. Raises UserError if the file does
    not fit the network.

    Example: ``load_file("cifar-resnet20", Path("resnet20.th")).classifier``
    """
    model = build_for_weights(network, weights, ema=ema)
    if weights.suffix == ".caffemodel":
        beside = sorted(weights.parent.glob("*.binaryproto"))
        normalize = Normalize(read_mean_image(beside[0]) if beside else torch.tensor(_CAFFE_MEAN))
    else:
        theirs = Normalize(torch.tensor(_TORCHVISION_MEAN), torch.tensor(_TORCHVISION_STD))
        normalize = stored_preprocessing(weights) or theirs
    classifier = Classifier(normalize, model).eval()
    cifar = network.startswith("cifar-")
    views = ViewConfig(crop=32, resize=32, scales=(32,)) if cifar else ViewConfig(crop=224, resize=256)
    return Member(
        name=f"{network}={weights.name}{'#ema' if ema else ''}",
        classifier=classifier,
        views=views,
        weights_sha256=weights_sha256(classifier),
        network=network,
    )


def check_result(folder: Path, digest: str) -> None:
    """Raise UserError if the folder is a run's and its result names other weights than those that lie beside it."""
    file = folder / "result.json"
    if not file.is_file():
        return  # a registered model's, whose version knows them
    if digest != read_json(file).get("weights_sha256"):
        raise UserError(
            f"{folder / MODEL_FILES[0]} does not hold the weights that {file.name} names; remove {file.name} and train "
            "the same run again: it is finished from its newest checkpoint"
        )
