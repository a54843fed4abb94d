"""Weights in and out of files. Loading never unpickles objects: safetensors, Caffe's format, or ``weights_only``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import warnings
import zipfile
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
from resnet_pipeline.models.checkpoint_files import CHECKPOINT_SUFFIXES, read_pickled_weights, unreadable
from resnet_pipeline.models.normalize import Classifier, Normalize
from resnet_pipeline.models.registry import architecture_of, build_model
from resnet_pipeline.models.resnet import Architecture, ResNet
from resnet_pipeline.models.state_dicts import StateDict, check_fit, plain_names

_SUFFIXES = (".safetensors", *CHECKPOINT_SUFFIXES, ".caffemodel")
_log = logging.getLogger(__name__)
_LARGEST_HEADER = 100_000_000  # bytes, of a safetensors file
_ARCHITECTURE = "architecture"  # the key of the metadata
_DIGEST = "tensors_sha256"  # another: the SHA-256 of the file's tensors, which whoever reads them compares
_MEAN, _STD = "normalize.mean", "normalize.std"  # a Classifier's preprocessing


def weights_sha256(model: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the tensors' bytes (contiguous, little-endian), in the order of their names.

    >>> weights_sha256({"weight": torch.zeros(2)})[:12]
    'af5570f5a181'
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model's parameters and buffers as safetensors with string metadata, atomically.

    For this program's networks the metadata's ``architecture`` says what the tensors' shapes don't: shortcut, stride,
    pooling.

    Example: ``save_weights(model, Path("mine.safetensors"), {"recipe": "mine"})``
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
    """Raise UserError unless a safetensors file can be read and its tensors have this SHA-256, as they were noted.

    Example: ``check_weights(run.weights_file, run.result().weights_sha256)``
    """
    state, _, digest = _read_safetensors(path)
    _check_digest(path, digest or weights_sha256(state), sha256)


def check_noted_weights(path: Path, sha256: str) -> None:
    """Raise UserError unless a safetensors file says of its tensors that they have this SHA-256.

    Whoever loads the file compares the tensors with what it says; the tensors of one that says nothing are read here.
    """
    noted = _noted_digest(read_metadata(path))
    if noted is None:
        check_weights(path, sha256)
    else:
        _check_digest(path, noted, sha256)


def _check_digest(path: Path, found: str, sha256: str) -> None:
    if found != sha256:
        raise UserError(
            f"{path} holds other weights than were written there (SHA-256 {found[:12]}… instead of {sha256[:12]}…); "
            "bring it back as it was"
        )


def read_metadata(path: Path) -> dict[str, str]:
    """Return a safetensors file's metadata; UserError if the file is unreadable.

    Example: ``read_metadata(run.weights_file)["weights_sha256"]``
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise unreadable(path, error) from None


def load_weights(model: nn.Module, path: Path | str, *, ema: bool = False) -> None:
    """Load a ``.safetensors``, ``.caffemodel`` or PyTorch file (``.pth``, ``.ckpt``, …) into a network or a Classifier.

    Names are torchvision's and timm's, or the public CIFAR-10 ResNets' (``linear`` for the classifier), with or without
    what wrappers put before them (`state_dicts.plain_names`). They stand alone or in a training script's checkpoint,
    under ``state_dict``, ``model``, ``model_state_dict`` or ``net``. In a ``.caffemodel`` they are those of the
    authors' release, whose networks have ``stride="v1"`` and ``pooling="caffe"``. Of a checkpoint that holds averaged
    weights (EMA) too, the plain ones are taken, which is logged, and with ``ema`` the averaged ones. A Classifier's
    file fills a bare network too, with a warning: the network was trained on images less a mean, and that is left out.

    Raises UserError if the file is unreadable, holds anything but tensors, or was saved from a network that computes
    something else with the same tensors. If its tensors are not the network's, the first ones are named.

    Example: ``load_weights(build_model("cifar-resnet20"), "resnet20.th")``
    """
    path = Path(path)
    state, saved = _read(path, ema=ema)
    if _MEAN in state and _MEAN not in model.state_dict():
        warnings.warn(
            f"{path} holds a network with its preprocessing, and the mean that it subtracts is left out: "
            "resnet_pipeline.load_model(reference) returns both",
            stacklevel=2,
        )
    _load(model, path, state, saved)


def load_own_weights(model: nn.Module, path: Path) -> str:
    """Load a file that `save_weights` wrote of such a classifier, or detector; return the SHA-256 of its tensors.

    That is the hash of what was written, also if the model's tensors have another precision. Errors as
    `load_weights` has them.
    """
    state, saved, digest = _read_hashed(path)
    digest = digest or weights_sha256(state)
    _load(model, path, state, saved)
    return digest


def build_for_weights(name: str, path: Path | str, *, num_classes: int | None = None, ema: bool = False) -> ResNet:
    """Build the network ``name`` with the options that a file's weights were trained with, and load them.

    A file of this program says them itself. The authors' ``.caffemodel`` has stride v1 and Caffe's pooling; others are
    taken for torchvision's or timm's, whose stride is v1.5. With projections in the file it is option B, without them
    option A. ``num_classes`` defaults to the file's. A preprocessing in the file is what `stored_preprocessing`
    returns. Raises UserError as `load_weights` and `build_model` do.

    Example: ``build_for_weights("cifar-resnet20", "resnet20.th").fc.out_features``
    """
    path = Path(path)
    state, saved = _read(path, ema=ema)
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
    """Return the preprocessing that a file of this program holds beside its network; None if it has none.

    Example: ``stored_preprocessing(run.weights_file)``
    """
    state, _ = _read(Path(path))
    return Normalize(state[_MEAN], state.get(_STD)) if _MEAN in state else None


def _load(model: nn.Module, path: Path, state: StateDict, saved: Mapping[str, Any]) -> None:
    network = model.network if isinstance(model, Classifier) else model
    of_classifier = any(name.startswith("network.") for name in state)
    target = model if of_classifier else network
    if of_classifier and not isinstance(model, Classifier):
        state = {n.removeprefix("network."): t for n, t in state.items() if not n.startswith("normalize.")}
    wanted = target.state_dict()
    if _MEAN in wanted:  # the preprocessing is what the file says
        wanted = {name: t for name, t in wanted.items() if name not in (_MEAN, _STD)} | {
            name: state[name] for name in (_MEAN, _STD) if name in state
        }
    # BatchNorm counts its batches since PyTorch 0.4.1; older files and Caffe's lack the counts, nothing depends on them
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
    check_fit(path, state, wanted)
    if isinstance(network, ResNet):
        _check_architecture(path, saved, network.architecture)
    try:
        target.load_state_dict(state)
    except ValueError as error:
        raise UserError(f"{path}: its preprocessing is none: {error}") from None


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


def _read(path: Path, *, ema: bool = False) -> tuple[StateDict, Mapping[str, Any]]:
    """Return a file's tensors under torchvision's names, and its metadata's architecture, empty if it has none."""
    state, saved, _ = _read_hashed(path, ema=ema)
    return state, saved


def _read_hashed(path: Path, *, ema: bool = False) -> tuple[StateDict, Mapping[str, Any], str | None]:
    """Return what `_read` does, and the SHA-256 that the tensors were found to have, if the file says one."""
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    if not path.name.endswith(_SUFFIXES):
        raise UserError(f"{path}: weights files end in {', '.join(_SUFFIXES)}")
    if other := _what_else(path):
        raise UserError(f"{path} {other}")
    metadata: Mapping[str, str] = {}
    digest: str | None = None
    if path.suffix in CHECKPOINT_SUFFIXES:
        state = read_pickled_weights(path, ema=ema)
    elif ema:
        raise UserError(f"{path} holds no averaged weights (EMA) beside its own; leave --ema out")
    elif path.suffix == ".caffemodel":
        try:
            state = read_caffe_weights(path)
        except RuntimeError as error:  # blobs of shapes that don't go together
            raise unreadable(path, error) from None
    else:
        state, metadata, digest = _read_safetensors(path)
    try:
        state = plain_names(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise UserError(
                f"{path}: {name} is no dense tensor with values; save model.state_dict() of a plain network"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise UserError(f"{path}: {name} holds a negative variance: these weights are damaged")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: {name} holds NaN or infinity: these weights are of a training that failed")
    return state, _saved_architecture(path, metadata), digest


def _what_else(path: Path) -> str | None:
    """Return what a file is that holds no weights, or not all of them; None if nothing is known against it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    if size == 0:
        return "is empty: download or copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights that it stands for: fetch them with `git lfs pull`"
    if re.match(rb"\s*<(?:!doctype|html|\?xml|head)", head, re.IGNORECASE):
        return "is a web page, not weights: download the file itself"
    if head.startswith(b"PK\3\4") and not zipfile.is_zipfile(path):
        return "is cut: the end of the archive is missing; download or copy it again"
    if path.suffix == ".safetensors" and size < (needed := _size_of_safetensors(path)):
        return f"is cut: it has {size:,} of its {needed:,} bytes; download or copy it again"
    return None


def _size_of_safetensors(path: Path) -> int:
    """Return the bytes that a safetensors file must have at least, as far as its header says them."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        if header > _LARGEST_HEADER:
            return 0
        text = file.read(header)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(text).items() if name != "__metadata__"]
        end: int = max(ends, default=0)
        return 8 + header + end
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 8 + header


def _read_safetensors(path: Path) -> tuple[StateDict, Mapping[str, str], str | None]:
    """Return a file's tensors, metadata and the tensors' SHA-256 if the metadata has it.

    UserError if the file is unreadable, or the tensors have another hash.
    """
    try:
        state = load_file(path)
    except Exception as error:
        raise unreadable(path, error) from None
    metadata = read_metadata(path)
    expected = _noted_digest(metadata)
    if expected and weights_sha256(state) != expected:
        raise UserError(
            f"{path} is damaged: its tensors do not match their SHA-256 in its metadata; bring it back as it was"
        )
    return state, metadata, expected


def _noted_digest(metadata: Mapping[str, str]) -> str | None:
    # earlier versions noted it in a run's weights alone; in an export that key is the hash of what was exported
    return metadata.get(_DIGEST) or (metadata.get("weights_sha256") if "run" in metadata else None)


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
