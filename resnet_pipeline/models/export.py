"""Networks for other programs: torchvision's names, ONNX, ``torch.export``; each carries its preprocessing.

The last two take images uint8 [N, size, size, 3], RGB, for any N, and return logits float32 [N, classes]. A file gets
its name only after it was read again and computed what the network does.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.models.normalize import Classifier
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.models.state_dicts import torchvision_state_dict
from resnet_pipeline.models.weights import write_safetensors

METADATA_FILE = "metadata.json"
"""Where a ``.pt2`` file keeps the metadata (``extra_files`` of ``torch.export.load``)."""
_TOLERANCE = 1e-4  # of the largest logit; another program may add in another order


def export_torchvision(classifier: Classifier, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network's state dict in torchvision's (and timm's) names as safetensors, option A as projections.

    The preprocessing has no place in such a state dict: it is the metadata's ``normalize``, as JSON, for images RGB in
    0..255 units, ``mean`` a color [3] or a mean image [H, W, 3]. Raises UserError for a network that torchvision does
    not have, and for another suffix than ``.safetensors``.

    Example: ``export_torchvision(member.classifier, Path("resnet50.safetensors"), {})``
    """
    _check_suffix(path, ".safetensors")
    if not isinstance(classifier.network, ResNet):
        raise TypeError(f"no torchvision form of {type(classifier.network).__name__}")
    normalize = {name: tensor.tolist() for name, tensor in classifier.normalize.state_dict().items()}
    state = torchvision_state_dict(classifier.network)
    write_safetensors(state, path, {"normalize": json.dumps(normalize), **metadata})


def export_onnx(classifier: Classifier, path: Path, *, size: int, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file with input ``images``, output ``logits`` and the metadata, checked in ONNX Runtime.

    Raises UserError if onnx, onnxscript or onnxruntime is missing, if the file's outputs are not the network's, and for
    another suffix than ``.onnx``.

    Example: ``export_onnx(member.classifier, Path("resnet50.onnx"), size=224, metadata={})``
    """
    _check_suffix(path, ".onnx")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{path} needs {', '.join(missing)}: pip install 'resnet-pipeline[export]'")
    # since 1.29 it tells Microsoft the file's name and the graph's hashes, and keeps an id of this machine in ~/.cache
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    model = _for_export(classifier)
    with _quiet("torch.onnx", "onnxscript"):
        program = torch.onnx.export(
            model,
            (_images(2, size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.model.metadata_props.update(metadata)
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        images = _images(3, size)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        _check_equal(path, model, images, torch.from_numpy(logits))


def export_program(classifier: Classifier, path: Path, *, size: int, metadata: Mapping[str, str]) -> None:
    """Write a ``.pt2`` file for ``torch.export.load``, checked by loading it; the metadata is in METADATA_FILE.

    Raises UserError if its outputs are not the network's, and for another suffix than ``.pt2``.

    Example: ``export_program(member.classifier, Path("resnet50.pt2"), size=224, metadata={})``
    """
    _check_suffix(path, ".pt2")
    model = _for_export(classifier)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (_images(2, size),), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    images = _images(3, size)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
        with temporary.open("rb") as file:
            loaded = torch.export.load(io.BytesIO(file.read()))
        _check_equal(path, model, images, loaded.module()(images))


def _for_export(classifier: Classifier) -> Classifier:
    """Return a copy on the CPU that computes no gradients, ready for evaluation."""
    return copy.deepcopy(classifier).cpu().eval().requires_grad_(False)


def _images(number: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8, generator=generator)


def _check_equal(path: Path, model: nn.Module, images: torch.Tensor, logits: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = model(images)
    difference = (logits - expected).abs().max().item()
    if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):  # NaN fails too
        raise UserError(f"{path} is not written: its logits differ from the network's by up to {difference:.3g}")


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise UserError(f"{path}: this export's files end in {suffix}")


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Inside, these loggers tell errors only: the exporter reports its steps and the package's version checks."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
