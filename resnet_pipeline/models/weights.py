"""Weights in and out of files. Loading never unpickles objects: safetensors, Caffe's format, or ``weights_only``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.models.blocks import Bottleneck
from resnet_pipeline.models.caffe import read_caffe_weights
from resnet_pipeline.models.normalize import Classifier, Normalize
from resnet_pipeline.models.registry import architecture_of, build_model
from resnet_pipeline.models.resnet import Architecture, ResNet
from resnet_pipeline.models.state_dicts import StateDict, check_fit, plain_names

_PYTORCH = (".pth", ".pt", ".th")
_SUFFIXES = (".safetensors", *_PYTORCH, ".caffemodel")
_ARCHITECTURE = "architecture"  # the key of the metadata
_DIGEST = "tensors_sha256"  # another: the SHA-256 of the file's tensors, which whoever reads them compares
_MEAN, _STD = "normalize.mean", "normalize.std"  # a Classifier's preprocessing


def weights_sha256(model: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the tensors' bytes (contiguous, little-endian), in the order of their names."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model's parameters and buffers as safetensors with string metadata, atomically.

    For this program's networks the metadata's ``architecture`` says what the tensors' shapes don't: shortcut, stride,
    pooling.
    """
    network = model.network if isinstance(model, Classifier) else model
    described = {_ARCHITECTURE: _describe(network.architecture)} if isinstance(network, ResNet) else {}
    write_safetensors(model.state_dict(), path, {**described, **metadata})


def write_safetensors(state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors with string metadata, atomically; their hash is added to it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={**metadata, _DIGEST: weights_sha256(tensors)})


def check_weights(path: Path, sha256: str) -> None:
    """Raise UserError unless a safetensors file can be read and its tensors have this SHA-256, as they were noted."""
    found = weights_sha256(_read_safetensors(path)[0])
    if found != sha256:
        raise UserError(
            f"{path} holds other weights than were written there (SHA-256 {found[:12]}… instead of {sha256[:12]}…); "
            "bring it back as it was"
        )


def read_metadata(path: Path) -> dict[str, str]:
    """Return a safetensors file's metadata; UserError if the file is unreadable."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise _unreadable(path, error) from None


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Load a ``.safetensors``, ``.pth``, ``.pt``, ``.th`` or ``.caffemodel`` file into a network or a Classifier.

    Names are torchvision's and timm's, or the public CIFAR-10 ResNets' (``linear`` for the classifier), with or without
    a ``module.`` prefix, alone or under ``state_dict`` or ``model``. In a ``.caffemodel`` they are those of the
    authors' release, whose networks have ``stride="v1"`` and ``pooling="caffe"``. A Classifier's file fills a bare
    network too, with a warning: the network was trained on images less a mean, and that is left out.

    Raises UserError if the file is unreadable, holds anything but tensors, or was saved from a network that computes
    something else with the same tensors. If its tensors are not the network's, the first ones are named.

    Example: ``load_weights(build_model("cifar-resnet20"), "resnet20.th")``
    """
    path = Path(path)
    state, saved = _read(path)
    if not isinstance(model, Classifier) and _MEAN in state:
        warnings.warn(
            f"{path} holds a network with its preprocessing, and the mean that it subtracts is left out: "
            "resnet_pipeline.load_model(reference) returns both",
            stacklevel=2,
        )
    _load(model, path, state, saved)


def build_for_weights(name: str, path: Path | str, *, num_classes: int | None = None) -> ResNet:
    """Build the network ``name`` with the options that a file's weights were trained with, and load them.

    A file of this program says them itself. The authors' ``.caffemodel`` has stride v1 and Caffe's pooling; others are
    taken for torchvision's or timm's, whose stride is v1.5. With projections in the file it is option B, without them
    option A. ``num_classes`` defaults to the file's. A preprocessing in the file is what `stored_preprocessing`
    returns. Raises UserError as `load_weights` and `build_model` do.
    """
    path = Path(path)
    state, saved = _read(path)
    options: dict[str, Any] = {key: saved[key] for key in ("shortcut", "stride", "pooling") if key in saved}
    if not saved:
        caffe = path.suffix == ".caffemodel"
        options = {"stride": "v1" if caffe else "v1.5", "pooling": "caffe" if caffe else "pytorch"}
    if "shortcut" not in options and any(".downsample." in key for key in state):
        options["shortcut"] = "B"
    if architecture_of(name).shortcut == "none":
        options.pop("shortcut", None)
    classifier = state.get("fc.weight", state.get("network.fc.weight"))
    if num_classes is None and classifier is not None:
        num_classes = len(classifier)
    network = build_model(name, num_classes=num_classes, **options)
    _load(network, path, state, saved)
    return network


def stored_preprocessing(path: Path | str) -> Normalize | None:
    """Return the preprocessing that a file of this program holds beside its network; None if it has none."""
    state, _ = _read(Path(path))
    return Normalize(state[_MEAN], state.get(_STD)) if _MEAN in state else None


def _load(model: nn.Module, path: Path, state: StateDict, saved: Mapping[str, Any]) -> None:
    network = model.network if isinstance(model, Classifier) else model
    of_classifier = any(name.startswith("network.") for name in state)
    target = model if of_classifier else network
    if of_classifier and not isinstance(model, Classifier):
        state = {n.removeprefix("network."): t for n, t in state.items() if not n.startswith("normalize.")}
    wanted = target.state_dict()
    # BatchNorm counts its batches since PyTorch 0.4.1; older files and Caffe's lack the counts, nothing depends on them
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
    check_fit(path, state, wanted)
    if isinstance(network, ResNet):
        _check_architecture(path, saved, network.architecture)
    target.load_state_dict(state)


def _check_architecture(path: Path, saved: Mapping[str, Any], architecture: Architecture) -> None:
    """Raise UserError if equal tensors would compute something else."""
    options = ["shortcut", "pooling"] + (["stride"] if architecture.block is Bottleneck else [])
    for option in options:
        own = getattr(architecture, option)
        if saved.get(option, own) != own:
            raise UserError(
                f"{path} holds the weights of a network with {option} {saved[option]}, this one has {own}: "
                f"build it with {option}={saved[option]!r}"
            )
    if path.suffix == ".caffemodel" and architecture.stride != "v1":
        raise UserError(f"{path}: the authors' networks have stride v1, this one has v1.5: build it with stride='v1'")


def _read(path: Path) -> tuple[StateDict, Mapping[str, Any]]:
    """Return a file's tensors under torchvision's names, and its metadata's architecture, empty if it has none."""
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    if path.suffix not in _SUFFIXES:
        raise UserError(f"{path}: weights files end in {', '.join(_SUFFIXES)}")
    if path.suffix == ".caffemodel":
        return read_caffe_weights(path), {}
    if path.suffix in _PYTORCH:
        return plain_names(_read_pickle(path)), {}
    state, metadata = _read_safetensors(path)
    return plain_names(state), _saved_architecture(path, metadata)


def _read_safetensors(path: Path) -> tuple[StateDict, Mapping[str, str]]:
    """Return a file's tensors and metadata; UserError where it is unreadable, or they are not as they were written."""
    try:
        state = load_file(path)
    except Exception as error:
        raise _unreadable(path, error) from None
    metadata = read_metadata(path)
    # earlier versions noted it in a run's weights alone; in an export that key is the hash of what was exported
    expected = metadata.get(_DIGEST) or (metadata.get("weights_sha256") if "run" in metadata else None)
    if expected and weights_sha256(state) != expected:
        raise UserError(
            f"{path} is damaged: its tensors do not match their SHA-256 in its metadata; bring it back as it was"
        )
    return state, metadata


def _read_pickle(path: Path) -> StateDict:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from anywhere can fail anywhere in the reader
        raise _unreadable(path, error) from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path} holds no state dict of tensors")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path} holds no state dict of tensors: {name!r} is a {type(value).__name__}")
    return dict(loaded)


def _saved_architecture(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    text = metadata.get(_ARCHITECTURE)
    try:
        saved = json.loads(text) if text else {}
    except json.JSONDecodeError:
        saved = None
    if not isinstance(saved, dict):
        raise UserError(f"{path}: its metadata's {_ARCHITECTURE} is no JSON object")
    return saved


def _describe(architecture: Architecture) -> str:
    return json.dumps({**dataclasses.asdict(architecture), "block": architecture.block.__name__})


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
    return UserError(f"{path} is not loaded: {reason[:200]}")
