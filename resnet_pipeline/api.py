"""For notebooks and scripts: a staged dataset's images in batches, training, a trained network with its preprocessing.

Example::

    import resnet_pipeline
    model = resnet_pipeline.load_model("digits-resnet20")
    best = model.predict(["three.png"])
    print(model.class_words[best.classes[0, 0]], best.probabilities[0, 0])

Everything else that the command line does is a function in ``resnet_pipeline.jobs``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow

from resnet_pipeline.data import dataset as datasets
from resnet_pipeline.data.image_files import Limits
from resnet_pipeline.data.loaders import view_batches
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.evaluation.predictor import Image, Predictions, Predictor, checked
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.jobs.initial_weights import InitialWeights, begun_with
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.predict import named_members
from resnet_pipeline.jobs.proposals import proposed
from resnet_pipeline.jobs.train import TrainedRun, run_config, train_run
from resnet_pipeline.models import Classifier
from resnet_pipeline.workspace import Workspace

__all__ = ["Batch", "ImageDataset", "Model", "Predictions", "TrainedRun", "load_model", "open_dataset", "train"]

AnImage: TypeAlias = str | Path | bytes | Pillow.Image | npt.NDArray[np.uint8] | torch.Tensor
"""A file's path, an encoded file's bytes, a Pillow image, or pixels uint8 [H, W, 3], RGB."""


def load_model(
    reference: str | Path,
    *,
    dataset: str | None = None,
    root: Path | str | None = None,
    device: torch.device | str | None = None,
) -> Model:
    """Load a network, or a registered ensemble, with its preprocessing.

    ``reference`` is what every command takes as MODEL: a run directory, a registered NAME or NAME@ALIAS, ``models:/…``,
    ``runs:/ID``, ``NETWORK=WEIGHTS-FILE``, ``torchvision:NAME`` or ``timm:NAME``. Weights that were trained elsewhere
    know no names of classes: they take those of the staged ``dataset``, else numbers. ``root`` is the folder where
    everything is kept (default: RESNET_PIPELINE_ROOT, else ./work), ``device`` by default the GPU if there is one.
    Raises UserError if there is no such model, or its classes are not as many as the dataset's.

    Example: ``load_model("torchvision:resnet50", dataset="ilsvrc2012")``
    """
    members = named_members(Workspace.of(root), str(reference), dataset)
    return Model(members, torch.device(device) if device is not None else local_device())


def open_dataset(name: str, *, root: Path | str | None = None) -> ImageDataset:
    """Open a staged dataset by the name that ``stage`` was given; UserError if there is none.

    ``root`` as for ``load_model``. The shards of a bucket are fetched when their images are needed.

    Example: ``open_dataset("digits").classes``
    """
    return ImageDataset(datasets.open_dataset(Workspace.of(root), name))


def train(
    recipe: str,
    dataset: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    workers: int | str | None = None,
    initial_weights: str | Path | None = None,
    deepen: bool = False,
    proposals: str | Path | None = None,
    root: Path | str | None = None,
) -> TrainedRun:
    """Train a recipe on a staged dataset, as ``resnet-pipeline train --no-register`` does, and return the finished run.

    ``recipe`` is one that ``resnet-pipeline recipes`` lists, ``overrides`` are fields to change, by dotted name.
    ``workers`` None trains in this process; a number, or a range such as ``"1-4"``, on Ray. Training begins
    with ``initial_weights``, a reference as for ``load_model``; ``deepen`` adds the layers that their network has not,
    as identity mappings. ``ilsvrc-loc/rcnn-…`` is trained on the boxes of ``proposals``, a localiser's run. ``root`` as
    for ``load_model``. Called again with the same arguments, it resumes what was
    interrupted, and finds what is finished.
    `load_model` takes ``train(…).run.path``. Raises UserError for what is not known or not valid, and if training can't
    go on; StoppedError after Ctrl-C, when the state is saved.

    Example: ``train("digits/resnet8", "digits", {"steps": 60, "optim.lr": 0.05}).result.validation["top1"]``
    """
    launch = Launch(launcher="local") if workers is None else Launch(workers=workers)
    workspace, config = Workspace.of(root), run_config(recipe, overrides)
    reference = None if initial_weights is None else str(initial_weights)
    initial = InitialWeights.of(reference, deepened=deepen)
    config, network = begun_with(workspace, config, dataset, initial)
    config, boxes = proposed(workspace, config, dataset, None if proposals is None else str(proposals))
    trained = train_run(workspace, config, dataset, launch, network, boxes)
    assert trained is not None, "only torchrun starts processes that help another one"
    return trained


class Model:
    """One trained network, or several whose probabilities are averaged, with preprocessing and names of classes.

    ``classes`` are the labels' names in their order, ``class_words`` what they mean in words. ``members`` say more of
    each network: its recipe, its sizes of test images, its weights' SHA-256.
    """

    def __init__(self, members: Sequence[Member], device: torch.device) -> None:
        self.members = tuple(members)
        self._predictor = Predictor(self.members, device)
        self.classes, self.class_words = self._predictor.classes, self._predictor.class_words

    @property
    def classifier(self) -> Classifier:
        """The PyTorch module of one network: logits float [N, classes] for images uint8 [N, H, W, 3].

        Its first module subtracts the mean. It takes the images at the size that they have: ``members[0].views.crop``
        is the side that the network was trained for. Raises UserError for an ensemble.

        Example: ``load_model("digits-resnet20").classifier(batch.images).argmax(1)``
        """
        if len(self.members) > 1:
            raise UserError(f"an ensemble of {len(self.members)} networks is no single module: take those of .members")
        return self.members[0].classifier

    def predict(
        self,
        images: AnImage | Sequence[AnImage] | npt.NDArray[np.uint8],
        *,
        protocol: str = "center",
        top: int = 5,
    ) -> Predictions:
        """Return the ``top`` best classes of N images and their probabilities, as `resnet-pipeline predict` does.

        ``images`` is an array or tensor uint8 [N, H, W, 3] (RGB), or a list of images: paths, encoded bytes, Pillow
        images, arrays uint8 [H, W, 3]; one such image alone is a list of one. They are resized and cropped as the
        evaluation does under the protocol ``center``, ``10-crop`` or ``multi-scale``. Raises UserError, naming the
        image, for one that can't be decoded or has another shape or type, and for an unknown protocol.

        Example: ``load_model("digits-resnet20").predict(["three.png"], protocol="10-crop", top=1).classes``
        """
        if top < 1:
            raise UserError(f"top must be at least 1, not {top}")
        files = [(_named(image, row), _encoded(image, row)) for row, image in enumerate(_listed(images))]
        found = checked([data for _, data in files], Limits.of_settings())
        for (name, _), image in zip(files, found, strict=True):
            if isinstance(image, str):
                raise UserError(f"{name} can't be used: {image}")
        good = [image for image in found if isinstance(image, Image)]
        if not good:
            raise UserError("there are no images to predict")
        return self._predictor.predict(good, protocol=protocol, top=top)


@dataclass(frozen=True)
class Batch:
    """N images uint8 [N, H, W, 3], RGB; labels int64 [N], −1 if not known; sample numbers int64 [N] in their split."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


class ImageDataset:
    """A staged dataset.

    ``classes`` are the labels' names in their order, ``class_words`` what they mean in words. ``splits`` are ``train``,
    ``val`` …: ``len(splits["val"])``, its ``labels`` int64 [N] and ``keys``, the files' names. ``fingerprint`` is the
    SHA-256 of its content: the same for the same images. ``staged`` is what functions of this package take.
    """

    def __init__(self, staged: datasets.Dataset) -> None:
        self.staged = staged
        self.name, self.fingerprint, self.splits = staged.name, staged.fingerprint, staged.splits
        self.classes = tuple(staged.classes)
        self.class_words = staged.facts.words

    def batches(
        self,
        split: str,
        *,
        batch: int = 256,
        crop: int | None = None,
        resize: int | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[Batch]:
        """Yield the images of a split, each once and in its order; the last batch may be smaller.

        They are centre crops of ``crop`` pixels from images whose shorter side was resized to ``resize`` (default:
        ``crop``). Without both, squares of one size (CIFAR-10, the digits) come whole, others as the paper tests: 224
        pixels of 256. Raises UserError for an unknown split, and for sizes that are not possible.

        Example: ``next(open_dataset("digits").batches("val", batch=64)).images``
        """
        if split not in self.splits:
            near = did_you_mean(split, self.splits) or f"; there are: {', '.join(self.splits)}"
            raise UserError(f"dataset {self.name!r} has no split {split!r}{near}")
        crop, resize = self._sizes(split, crop, resize)
        if not 1 <= crop <= resize or batch < 1:
            raise UserError(f"batch={batch}, crop={crop}, resize={resize}: needed are batch >= 1, 1 <= crop <= resize")
        place = torch.device(device) if device is not None else None
        batch = max(1, min(batch, len(self.splits[split])))  # a decoder makes room for a whole one
        return _centre_crops(self.staged, split, batch=batch, crop=crop, resize=resize, device=place)

    def _sizes(self, split: str, crop: int | None, resize: int | None) -> tuple[int, int]:
        if crop is not None:
            return crop, crop if resize is None else resize
        if resize is not None:
            raise UserError(f"resize={resize} needs crop, too")
        samples = self.splits[split]
        sides = np.unique(np.concatenate([samples.height, samples.width]))
        return (int(sides[0]), int(sides[0])) if len(sides) == 1 else (224, 256)


def _centre_crops(
    staged: datasets.Dataset, split: str, *, batch: int, crop: int, resize: int, device: torch.device | None
) -> Iterator[Batch]:
    with view_batches(
        staged, split=split, views="center", resize=resize, crop=crop, batch_size=batch, device=device
    ) as found:
        for views in found:
            yield Batch(views.images[:, 0], views.labels, views.index)


def _listed(images: Any) -> Sequence[Any]:
    if isinstance(images, (str, Path, bytes, Pillow.Image)):
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 3:
        return [images]
    return list(images)


def _named(image: AnImage, row: int) -> str:
    return str(image) if isinstance(image, (str, Path)) else f"image {row}"


def _encoded(image: Any, row: int) -> bytes:
    """Return an image as an encoded file: its own bytes, or its pixels as a PNG, which loses nothing."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"{image} can't be read: {error.strerror}") from None
    if not isinstance(image, Pillow.Image):
        pixels = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UserError(f"image {row} must be uint8 [H, W, 3], RGB, not {pixels.dtype} {list(pixels.shape)}")
        image = Pillow.fromarray(pixels)
    elif not image.width * image.height:
        raise UserError(f"image {row} has no pixels")
    elif image.mode.startswith("I;16"):
        image = Pillow.fromarray(np.asarray(image).astype(np.uint16))
    elif image.mode.startswith(("I", "F")):
        raise UserError(f"image {row} is of mode {image.mode}, which does not say what white is: convert it to 8 bits")
    elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):  # what a PNG can hold
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
