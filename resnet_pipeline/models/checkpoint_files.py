"""Checkpoints as training scripts write them with ``torch.save``: the weights among them, and no object made."""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.models.state_dicts import StateDict

_log = logging.getLogger(__name__)
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".th", ".ckpt", ".tar")  # .tar: model_best.pth.tar


class _Unread:
    """Stands for an object of a checkpoint that is no tensor: nothing of it is made, whatever it is."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What training scripts keep beside the weights: their arguments, paths, NumPy's numbers (a best accuracy), and the
# hyperparameters of Lightning, which are a dictionary.
_BESIDE: list[Any] = [
    *(
        (_Unread, name)
        for name in (
            "argparse.Namespace",
            "types.SimpleNamespace",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.dtype",
        )
    ),
    *((_Unread, f"numpy.dtypes.{kind}DType") for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    *(
        (OrderedDict, f"{module}.AttributeDict")
        for module in (
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
            "pytorch_lightning.utilities.parsing",
        )
    ),
]
_PLAIN = ("state_dict", "model", "model_state_dict", "net", "network")
_AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema")


def read_pickled_weights(path: Path, *, ema: bool) -> StateDict:
    """Return the weights of a checkpoint as `torch.save` writes it, bare or among what training scripts keep.

    ``ema`` takes the averaged weights of one that has both. Raises UserError, in one line, for a file that holds no
    state dict of tensors.

    Example: ``read_pickled_weights(Path("model_best.pth.tar"), ema=False)``
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_BESIDE):
            warnings.simplefilter("ignore")  # on the pickle's protocol
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from anywhere can fail anywhere in the reader
        raise unreadable(path, error) from None
    loaded = _chosen(path, loaded, ema)
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path} holds no state dict of tensors")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path} holds no state dict of tensors: {name!r} is a {type(value).__name__.strip('_')}")
    return dict(loaded)


def _chosen(path: Path, loaded: Any, ema: bool) -> Any:
    """Return the state dict of a checkpoint: the plain weights, or the averaged ones if they are asked for or alone."""
    averaged = None
    while isinstance(loaded, dict):
        plain = next((key for key in _PLAIN if isinstance(loaded.get(key), dict)), None)
        other = next((key for key in _AVERAGED if isinstance(loaded.get(key), dict)), None)
        if other is not None and (plain is None or ema):
            loaded, averaged = loaded[other], other
        elif plain is not None:
            if other is not None and averaged is None:
                _log.info("%s: taken are the weights under %r; it has averaged ones (EMA) too, see --ema", path, plain)
            if more := [key for key in _PLAIN if key != plain and _is_state_dict(loaded.get(key))]:
                _log.info(
                    "%s: taken are the weights under %r; it has others, too, under %s", path, plain, ", ".join(more)
                )
            loaded = loaded[plain]
        else:
            break
    if averaged is not None:
        _log.info("%s: taken are the averaged weights (EMA) under %r", path, averaged)
    elif ema:
        raise UserError(f"{path} holds no averaged weights (EMA) beside its own; leave --ema out")
    return loaded


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, torch.Tensor) for item in value.values())


def unreadable(path: Path, error: Exception) -> UserError:
    """Return what a reader's error says as one line, without PyTorch's colours and its advice to trust the file.

    Example: ``raise unreadable(path, error) from None``
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        reason = f"it holds an object of {found[1]}, and no object is made of a file; save model.state_dict() alone"
    elif "TorchScript" in text:
        reason = "it is a TorchScript program; save model.state_dict() alone"
    elif isinstance(error, pickle.UnpicklingError) or re.search("weights_only|report an enhancement", text):
        # PyTorch's text goes on with how to switch off its care, or asks for a better text
        reason = "it is damaged, or was not written by torch.save"
    else:
        reason = (text.splitlines() or [""])[0].strip() or type(error).__name__
    return UserError(f"{path} is not loaded: {reason[:200]}")
