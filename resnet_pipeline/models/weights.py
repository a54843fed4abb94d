"""Weights in and out of files. Loading never unpickles objects: safetensors, or PyTorch's ``weights_only``."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.models.normalize import Classifier
from resnet_pipeline.workspace import replacing

_PYTORCH = (".pth", ".pt", ".th")


def weights_sha256(model: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the tensors' bytes (contiguous, little-endian), in the order of their names."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model's parameters and buffers as safetensors with string metadata, atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata=dict(metadata))


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Load a ``.safetensors``, ``.pth``, ``.pt`` or ``.th`` file into a network or a Classifier.

    Names are torchvision's or the public CIFAR-10 ResNets' (``linear`` for the classifier), with or without a
    ``module.`` prefix, alone or under ``state_dict``. Raises UserError where the file is unreadable, holds anything
    but tensors, or its tensors are not the network's: the first ones are named.
    """
    path = Path(path)
    state = _plain_names(_read(path))
    target: nn.Module = model
    if isinstance(model, Classifier) and not any(name.startswith("network.") for name in state):
        target = model.network
    wanted = target.state_dict()
    # BatchNorm counts its batches since PyTorch 0.4.1; older files lack the counts, and nothing depends on them
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
    _check(path, state, wanted)
    target.load_state_dict(state)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if path.suffix in _PYTORCH:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise UserError(f"{path}: weights files end in .safetensors, {', '.join(_PYTORCH)}")
    except (SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not loaded: {reason[:200]}") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise UserError(f"{path} holds no state dict of tensors")
    return dict(state)


def _plain_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    plain = {}
    for name, tensor in state.items():
        short = name.removeprefix("module.")
        plain[f"fc.{short.removeprefix('linear.')}" if short.startswith("linear.") else short] = tensor
    return plain


def _check(path: Path, state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is not the network's" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path} does not fit the network: {'; '.join(problems[:3])}{more}")
