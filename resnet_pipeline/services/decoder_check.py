"""A process that decodes an image on one device: what a driver that does not fit would end, ends here.

Run: python -m resnet_pipeline.services.decoder_check cuda:0
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 120
_MOST_DIFFERENCE = 2.0
"""Mean absolute difference from Pillow's pixels, of 255: decoders round differently, another image differs by 20."""


def check_decoders(devices: Sequence[str]) -> dict[str, str]:
    """Decode an image on each device, all at the same time, each in a process of its own.

    Returns why a device can't, by its name (``cpu``, ``cuda:0``); an empty text for one that can.

    Example: ``check_decoders(["cpu"])``
    """
    command = [sys.executable, "-m", "resnet_pipeline.services.decoder_check"]
    started = {
        device: subprocess.Popen([*command, device], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for device in devices
    }
    return {device: _verdict(process) for device, process in started.items()}


def _verdict(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"did not end within {_SECONDS} s"
    if process.returncode == 0:
        return ""
    last = (output.strip().splitlines() or ["it said nothing"])[-1]
    return f"ended with status {process.returncode}: {last}"


def decode(device: str) -> float:
    """Stage an image, decode it on a device as testing and as training do; return its mean difference from Pillow's.

    Of both the larger one: testing decodes whole images, training a region. Raises UserError if DALI or the device
    can't be used.

    Example: ``decode("cpu")``
    """
    import numpy as np
    import torch
    from PIL import Image

    from resnet_pipeline.config import AugmentConfig
    from resnet_pipeline.data.image_files import open_image
    from resnet_pipeline.data.loaders import crops_at, train_batches, view_batches
    from resnet_pipeline.staging.stage import stage

    row, column = np.mgrid[0:96, 0:96]
    content = io.BytesIO()
    Image.fromarray(np.stack([row * 2, column * 2, row + column], axis=2).astype(np.uint8)).save(content, "JPEG")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "images" / "train" / "class"
        place.mkdir(parents=True)
        (place / "image.jpg").write_bytes(content.getvalue())
        dataset = stage(Path(folder) / "images", Path(folder) / "dataset", name="check", workers=1)
        with view_batches(
            dataset,
            split="train",
            views="center",
            resize=96,
            crop=96,
            batch_size=1,
            device=torch.device(device),
            backend="dali",
        ) as batches:
            (batch,) = batches
            found = batch.images.cpu().numpy().reshape(96, 96, 3).astype(np.int16)
        # a crop of another place or size would differ by far more than a decoder
        augment = AugmentConfig(kind="scale-crop", crop=64, shorter_side=(96, 96), color=0)
        with train_batches(
            dataset,
            augment=augment,
            seed=0,
            batch=1,
            micro_batch=1,
            steps=1,
            device=torch.device(device),
            backend="dali",
        ) as crops:
            (crop,) = crops
        plan = crops_at(np.zeros(1, np.int64), dataset, dataset.splits["train"], augment, seed=0)
    with open_image(content.getvalue()) as image:
        pixels = np.asarray(image, np.int16)
    top, left, height, width = plan.window[0].round().astype(int).tolist()
    region = pixels[top : top + height, left : left + width]
    if plan.flip[0]:
        region = region[:, ::-1]
    trained = crop.images.cpu().numpy()[0].astype(np.int16)
    return float(max(np.abs(found - pixels).mean(), np.abs(trained - region).mean()))


def main() -> None:
    """Decode on the device that the command line names; end with status 1, and why, if the pixels are wrong."""
    difference = decode(sys.argv[1])
    if difference > _MOST_DIFFERENCE:
        sys.exit(f"pixels differ from Pillow's by {difference:.1f} of 255 on average")


if __name__ == "__main__":
    main()
