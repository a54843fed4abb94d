"""Plans carried out by NVIDIA DALI: one graph for CPU and GPU decoding.

The encoded bytes are views onto the memory-mapped shards, handed over without a copy. Training decodes only each
crop's window of the image (``decoders.image_slice``). Batches are fed ahead: while one is computed on, the next
``prefetch`` are being decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray

from resnet_pipeline.data.audit import audit
from resnet_pipeline.data.augment import Plan, ViewPlan, WholePlan
from resnet_pipeline.data.dataset import Split
from resnet_pipeline.data.torch_loader import broken_sample
from resnet_pipeline.errors import UserError

P = TypeVar("P", Plan, ViewPlan, WholePlan)
T = TypeVar("T")


class DaliExecutor:
    """A DALI pipeline per kind of plan, on the CPU or on a CUDA device (decoding ``mixed``)."""

    def __init__(
        self,
        samples: Split,
        most: int,
        device: torch.device,
        threads: int,
        prefetch: int,
        fill: npt.NDArray[np.float32] | None,
    ) -> None:
        self._samples, self._most, self._device = samples, most, device
        self._threads, self._prefetch = threads, max(1, prefetch)
        self._fill = None if fill is None else [float(v) for v in np.rint(fill)]
        self._pipeline: Pipeline | None = None

    def crops(self, plans: Iterator[Plan]) -> Iterator[tuple[Plan, torch.Tensor]]:
        """Yield each plan with its images uint8 [N, size, size, 3]."""
        first = next(plans, None)
        if first is not None:
            yield from self._run(
                _chain(first, plans),
                _crop_arrays,
                lambda source: [self._crop_graph(source, first.size)],
                lambda outputs, plan: self._copy(outputs[0], [len(plan.index), plan.size, plan.size, 3]),
            )

    def views(self, plans: Iterator[ViewPlan]) -> Iterator[tuple[ViewPlan, torch.Tensor]]:
        """Yield each plan with its images uint8 [N, V, height, width, 3]."""
        first = next(plans, None)
        if first is not None:
            count = first.corners.shape[1]
            yield from self._run(
                _chain(first, plans),
                _view_arrays,
                lambda source: [self._view_graph(source, count)],
                lambda outputs, plan: self._copy(outputs[0], [len(plan.index), count, *plan.crop, 3]),
            )

    def whole(self, plans: Iterator[WholePlan]) -> Iterator[tuple[WholePlan, list[list[torch.Tensor]]]]:
        """Yield each plan with its images uint8 [h, w, 3]: a list per size, of one image per sample."""
        first = next(plans, None)
        if first is not None:
            count = first.resized.shape[1]
            yield from self._run(
                _chain(first, plans),
                lambda plan: [np.ascontiguousarray(plan.resized[:, i], dtype=np.float32) for i in range(count)],
                lambda source: self._whole_graph(source, count),
                lambda outputs, plan: [
                    [self._copy_one(output[i], plan.resized[i, j]) for i in range(len(plan.index))]
                    for j, output in enumerate(outputs)
                ],
            )

    def close(self) -> None:
        """Release the pipeline and its threads."""
        self._pipeline = None

    def _crop_graph(self, source: Iterator[list[Any]], size: int) -> Any:
        encoded, start, shape, flip = fn.external_source(
            source=source, num_outputs=4, dtype=[types.UINT8, types.INT32, types.INT32, types.INT32], no_copy=True
        )
        if self._fill is None:
            images = fn.decoders.image_slice(encoded, start=start, shape=shape, axes=[0, 1], **self._decoding)
        else:
            images = fn.slice(
                fn.decoders.image(encoded, **self._decoding),
                start=start,
                shape=shape,
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=self._fill,
            )
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=flip)

    def _view_graph(self, source: Iterator[list[Any]], count: int) -> Any:
        encoded, resized, shape, *corners = fn.external_source(
            source=source,
            num_outputs=3 + count,
            dtype=[types.UINT8, types.FLOAT, *[types.INT32] * (1 + count)],
            no_copy=True,
        )
        images = fn.decoders.image(encoded, **self._decoding)
        images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.stack(*(fn.slice(images, start=c, shape=shape, axes=[0, 1]) for c in corners), axis=0)

    def _whole_graph(self, source: Iterator[list[Any]], count: int) -> list[Any]:
        encoded, *sizes = fn.external_source(
            source=source, num_outputs=1 + count, dtype=[types.UINT8, *[types.FLOAT] * count], no_copy=True
        )
        images = fn.decoders.image(encoded, **self._decoding)
        return [fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True) for size in sizes]

    @property
    def _decoding(self) -> dict[str, Any]:
        device = "mixed" if self._device.type == "cuda" else "cpu"
        return {"device": device, "output_type": types.RGB, "adjust_orientation": False}

    def _run(
        self,
        plans: Iterator[P],
        arrays_of: Callable[[P], list[Any]],
        graph: Callable[[Iterator[list[Any]]], list[Any]],
        take: Callable[[Any, P], T],
    ) -> Iterator[tuple[P, T]]:
        # DALI takes the arrays without a copy, so they live here until their batch is out
        ahead: deque[tuple[P, list[Any]]] = deque()

        def source() -> Iterator[list[Any]]:
            planned: P
            for planned in plans:
                arrays = [[self._samples.encoded(int(i)) for i in planned.index], *arrays_of(planned)]
                ahead.append((planned, arrays))
                yield arrays

        pipeline = self._pipeline = Pipeline(
            batch_size=self._most,
            num_threads=self._threads,
            device_id=self._device.index or 0 if self._device.type == "cuda" else None,
            prefetch_queue_depth=self._prefetch,
        )
        with pipeline:
            pipeline.set_outputs(*graph(source()))
        pipeline.build()
        while True:
            try:
                images = take(pipeline.run(), ahead[0][0])
            except StopIteration:
                return
            except RuntimeError as error:
                raise self._blame(ahead[0][0], error) from None
            yield ahead[0][0], images
            ahead.popleft()

    def _copy(self, output: Any, shape: list[int]) -> torch.Tensor:
        images = torch.empty(shape, dtype=torch.uint8, device=self._device)
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        feed_ndarray(output.as_tensor(), images, cuda_stream=stream)
        return images

    def _copy_one(self, output: Any, size: npt.NDArray[np.int64]) -> torch.Tensor:
        image = torch.empty([int(size[0]), int(size[1]), 3], dtype=torch.uint8, device=self._device)
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        feed_ndarray(output, image, cuda_stream=stream)
        return image

    def _blame(self, plan: Plan | ViewPlan | WholePlan, error: RuntimeError) -> UserError:
        """Find the sample of a failed batch that can't be decoded; DALI names none."""
        for index in plan.index:
            result, _ = audit(self._samples.encoded(int(index)).tobytes())
            if result.refused:
                return broken_sample(self._samples, int(index), result.note)
        first, last = (self._samples.keys[int(i)] for i in (plan.index[0], plan.index[-1]))
        lines = [line for line in str(error).splitlines() if line.strip()]
        return UserError(f"DALI could not decode a batch from {first} to {last}: {' '.join(lines[:2])}")


def _crop_arrays(plan: Plan) -> list[Any]:
    window = plan.window.astype(np.int32)
    return [np.ascontiguousarray(window[:, :2]), np.ascontiguousarray(window[:, 2:]), plan.flip.astype(np.int32)]


def _view_arrays(plan: ViewPlan) -> list[Any]:
    shape = np.tile(np.array(plan.crop, dtype=np.int32), (len(plan.index), 1))
    corners = [np.ascontiguousarray(c) for c in plan.corners.astype(np.int32).transpose(1, 0, 2)]
    return [plan.resized.astype(np.float32), shape, *corners]


def _chain(first: P, rest: Iterator[P]) -> Iterator[P]:
    yield first
    yield from rest
