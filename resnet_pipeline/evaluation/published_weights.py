"""Published weights by name: ``torchvision:resnet50``, ``timm:resnet50.a1_in1k``, with the preprocessing they need.

The weights are torchvision's and timm's own files: from their local caches, else downloaded by them, or a given file
(``torchvision:resnet50=FILE``). The networks are this program's, with stride v1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from resnet_pipeline.config import PAPER_SCALES, ViewConfig
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.models import Classifier, Normalize, build_model, model_names
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.models.weights import build_for_weights, weights_sha256

REFERENCE_SOURCES = ("torchvision:", "timm:")


@dataclass(frozen=True, kw_only=True)
class _Published:
    """Weights of a library: the network's name, how to get it, the preprocessing in 0..1 units, the view sizes."""

    network: str
    load: Callable[[], ResNet]
    mean: Sequence[float]
    std: Sequence[float]
    crop: int
    resize: int


def load_reference(reference: str) -> Member:
    """Load ``torchvision:NAME[.WEIGHTS][=FILE]`` or ``timm:NAME[.TAG][=FILE]``.

    Images are resized bilinearly, whatever the library does. Raises UserError for a name that the library does not
    know, for a network that is none of the paper's, if the library is missing, and if the weights are neither in its
    cache nor can be downloaded.

    Example: ``load_reference("torchvision:resnet50").views``
    """
    name, given, file = reference.partition("=")
    source, _, name = name.partition(":")
    published = (_torchvision if source == "torchvision" else _timm)(name)
    path = Path(file).expanduser()
    network = build_for_weights(published.network, path) if given else _loaded(reference, published)
    normalize = Normalize(255 * torch.tensor(published.mean), 255 * torch.tensor(published.std))
    classifier = Classifier(normalize, network).eval()
    scales = tuple(sorted({published.crop, *(side for side in PAPER_SCALES if side >= published.crop)}))
    return Member(
        name=reference,
        classifier=classifier,
        views=ViewConfig(crop=published.crop, resize=published.resize, scales=scales),
        weights_sha256=weights_sha256(classifier),
        network=published.network,
    )


def _torchvision(name: str) -> _Published:
    from torchvision import models

    network, _, version = name.partition(".")
    _check_network(f"torchvision:{name}", network)
    known = models.get_model_weights(network).__members__
    if version and version not in known:
        raise UserError(
            f"torchvision has no weights {version!r} of {network}{did_you_mean(version, known)}; "
            f"it has {', '.join(known)}"
        )
    # V1 is the plain recipe, the nearest to the paper's; V2 adds what was found since
    weights = known[version or "IMAGENET1K_V1"]
    preset = weights.transforms()

    def load() -> ResNet:
        path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(weights.url).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = path.stem.rpartition("-")[2]  # the start of the file's SHA-256, as torch.hub names it
            torch.hub.download_url_to_file(weights.url, str(path), digest, progress=False)
        return build_for_weights(network, path)

    return _Published(
        network=network,
        load=load,
        mean=preset.mean,
        std=preset.std,
        crop=preset.crop_size[0],
        resize=preset.resize_size[0],
    )


def _timm(name: str) -> _Published:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name} needs timm: pip install timm") from None
    network, _, tag = name.partition(".")
    _check_network(f"timm:{name}", network)
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{network}.*")]
    if tag and tag not in tags:
        raise UserError(f"timm has no weights {tag!r} of {network}{did_you_mean(tag, tags)}; it has {', '.join(tags)}")
    config: Any = timm.get_pretrained_cfg(name)

    def load() -> ResNet:
        built = build_model(network, stride="v1.5", shortcut="B")
        built.load_state_dict(timm.create_model(name, pretrained=True).state_dict())
        return built

    crop = int(config.input_size[1])
    return _Published(
        network=network,
        load=load,
        mean=config.mean,
        std=config.std,
        crop=crop,
        resize=int(crop / config.crop_pct),
    )


def _check_network(reference: str, network: str) -> None:
    own = [name for name in model_names() if name.startswith("resnet")]
    if network not in own:
        raise UserError(f"{reference}: {network!r} is none of the paper's networks; they are {', '.join(own)}")


def _loaded(reference: str, published: _Published) -> ResNet:
    try:
        return published.load()
    except UserError:
        raise
    except Exception as error:  # the libraries' downloaders raise whatever their HTTP client does
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{reference} is not in the local cache and can't be downloaded ({reason}); "
            f"download the file elsewhere and name it: {reference}=FILE"
        ) from None
