"""Whether a device decodes images, and which way for a GPU: tried in processes of their own, which a fault may end.

A decoder of regions on the GPU has been seen to crash (NVIDIA/nvImageCodec, issue 55), and does not use the hardware's
JPEG engine, which whole images do.

Run: python -m resnet_pipeline.data.decoding_check cuda:0 regions
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.settings import settings
from resnet_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from resnet_pipeline.data.memory_dataset import EncodedSplit

WAYS = ("regions", "whole", "cpu")
"""How a GPU may get its crops, in the order in which they are tried: regions or whole images on it, or by the CPU."""

_log = logging.getLogger(__name__)
_SECONDS = 120
_SECONDS_TIMED = 1.0
_IMAGES, _HEIGHT, _WIDTH, _CROP = 32, 375, 500, 224
_MOST_DIFFERENCE = 2.0
"""Mean absolute difference from Pillow's pixels, of 255: decoders round differently, another image differs by 20."""


@dataclass(frozen=True)
class Trial:
    """What came of decoding on a device: images per second, or why it can't, in one line."""

    images_per_second: float = 0.0
    problem: str = ""


def way_for(device: str) -> str:
    """Return how crops are decoded for a device: as RESNET_PIPELINE_GPU_DECODING says, else the first way that works.

    The ways are tried once on each machine, for each GPU, driver and DALI, in processes that a crash may end, and the
    outcome is kept in the cache. Not the fastest is taken, since ways may differ in the last bit of a pixel, and a run
    must find the same one when it resumes; `doctor` says how fast each is. UserError if none works.

    >>> way_for("cpu")
    'regions'
    """
    chosen = settings().gpu_decoding
    if chosen != "auto":
        return chosen
    return _kept(device) if device.startswith("cuda") else WAYS[0]


@functools.cache
def _kept(device: str) -> str:
    import torch

    properties = torch.cuda.get_device_properties(device)
    known = f"{properties.name}, {properties.uuid}, driver {_driver()}, DALI {version('nvidia-dali-cuda130')}"
    return kept_way(known, Workspace.of().cache / "decoding", lambda: first_that_works(device))


def kept_way(known: str, folder: Path, find: Callable[[], str]) -> str:
    """Return the way that a file of the folder has for what is ``known`` of a GPU; else what ``find`` returns, kept.

    A file for each GPU: a node's processes find theirs at the same time. Whoever removes it has it tried again.

    Example: ``kept_way("H100, GPU-1, driver 580", workspace.cache / "decoding", lambda: "regions")``
    """
    file = folder / f"{hashlib.sha256(known.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        if (way := json.loads(file.read_text())["way"]) in WAYS:
            return str(way)
    way = find()
    with suppress(OSError):  # the next start tries again
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"known": known, "way": way}))
    return way


def _driver() -> str:
    with suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    return "unknown"


def tried(device: str, way: str) -> Trial:
    """Decode on a device (``cpu``, ``cuda:0``) by one of `WAYS`, in a process of its own.

    Example: ``tried("cpu", "regions").images_per_second``
    """
    command = [sys.executable, "-m", "resnet_pipeline.data.decoding_check", device, way]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Trial(problem=f"did not end within {_SECONDS} s")
    last = (output.strip().splitlines() or ["it said nothing"])[-1]
    if process.returncode:
        return Trial(problem=f"ended with status {process.returncode}: {last}")
    return Trial(images_per_second=float(last))


def first_that_works(device: str, attempt: Callable[[str, str], Trial] = tried) -> str:
    """Return the first of `WAYS` by which a device gets the right pixels; what others met is logged in a line.

    Raises UserError, with what each met, if none works.

    Example: ``first_that_works("cuda:0")``
    """
    problems: list[str] = []
    for way in WAYS:
        trial = attempt(device, way)
        if not trial.problem:
            if problems:
                _log.warning("%s gets its crops by %r, decoding by %s", device, way, "; by ".join(problems))
            return way
        problems.append(f"{way} {trial.problem}")
    raise UserError(
        f"{device} gets no right pixels, whichever way images are decoded: by {'; by '.join(problems)}; "
        "`resnet-pipeline doctor` tries it again"
    )


def decode(device: str, way: str) -> tuple[float, float]:
    """Decode images on a device as testing and as training do; return the mean difference from Pillow, and images/s.

    Of both the larger difference: testing decodes whole images, training regions. Raises UserError if DALI or the
    device can't be used.

    Example: ``difference, images_per_second = decode("cpu", "regions")``
    """
    import numpy as np
    import torch

    from resnet_pipeline.data.crops import Plan, ViewPlan
    from resnet_pipeline.data.dali_decoder import DaliExecutor
    from resnet_pipeline.data.image_files import open_image

    samples = _images()
    place = torch.device(device)
    executor = DaliExecutor(samples, _IMAGES, place, torch.get_num_threads(), 2, None, way)
    index = np.arange(_IMAGES, dtype=np.int64)
    # whole images, as a test sees them
    whole = np.tile(np.array([[_HEIGHT, _WIDTH]]), (_IMAGES, 1))
    views = ViewPlan(index, whole, np.zeros((_IMAGES, 1, 2), np.int64), (_HEIGHT, _WIDTH))
    ((_, seen),) = list(executor.views(iter([views])))
    # a region of each, not resized, half of them mirrored, as a training step sees them
    top, left = (index * 4, index * 8)
    side = np.full(_IMAGES, _CROP)
    flip = index % 2 == 1
    plan = Plan(index, np.stack([top, left, side, side], 1), _CROP, flip, np.zeros((_IMAGES, 3), np.float32))
    ((_, cropped),) = list(executor.crops(iter([plan])))
    # both beside Pillow's
    differences = []
    for number in range(_IMAGES):
        with open_image(samples.encoded(number).tobytes()) as image:
            pixels = np.asarray(image, np.int16)
        region = pixels[top[number] : top[number] + _CROP, left[number] : left[number] + _CROP]
        region = region[:, ::-1] if flip[number] else region
        for ours, theirs in ((seen[number, 0], pixels), (cropped[number], region)):
            differences.append(float(np.abs(ours.cpu().numpy().astype(np.int16) - theirs).mean()))

    # for a second, as fast as it goes
    def plans() -> Iterator[Plan]:
        ends = time.monotonic() + _SECONDS_TIMED
        while time.monotonic() < ends:
            yield plan

    begin, images = time.perf_counter(), 0
    for _, batch in executor.crops(plans()):
        images += len(batch)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return max(differences), images / (time.perf_counter() - begin)


def _images() -> EncodedSplit:
    """Return smooth noise as JPEGs of the size and the bytes that photographs have."""
    import numpy as np
    from PIL import Image

    from resnet_pipeline.data.memory_dataset import EncodedSplit

    random = np.random.default_rng(0)
    encoded = []
    for _ in range(_IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC), np.int16)
        grain = fine + random.integers(-12, 13, (_HEIGHT, _WIDTH, 1))
        content = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
        encoded.append(content.getvalue())
    return EncodedSplit(encoded, [(_HEIGHT, _WIDTH)] * _IMAGES, [f"{number}.jpg" for number in range(_IMAGES)])


def main() -> NoReturn:
    """Decode as the command line says; print images per second, or end with status 1 and why."""
    try:
        difference, pace = decode(*sys.argv[1:3])
    except (UserError, RuntimeError, ValueError) as error:
        sys.exit(" ".join(str(error).split()))
    if difference > _MOST_DIFFERENCE:
        sys.exit(f"pixels differ from Pillow's by {difference:.1f} of 255 on average")
    print(pace, flush=True)  # noqa: T201
    os._exit(0)  # what it was to show, it has shown: no fault at the end of a process counts


if __name__ == "__main__":
    main()
