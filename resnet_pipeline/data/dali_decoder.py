"""Plans carried out by NVIDIA DALI: one graph for CPU and GPU decoding.

The encoded bytes are views onto the memory-mapped shards, handed over without a copy. Training decodes only each
crop's window of the image (``decoders.image_slice``). On the CPU the graph ends there, except for small crops, and
PyTorch's kernel resizes (``resize``). All of it runs in a thread, so that planning and feeding do not wait for the
reader. While one batch is computed on, the next ``prefetch`` are decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray

from resnet_pipeline.data.crops import Plan, ViewPlan, WholePlan
from resnet_pipeline.data.dataset import Split
from resnet_pipeline.data.image_audit import audit
from resnet_pipeline.data.image_files import ANY_SIZE
from resnet_pipeline.data.resize import Resizer
from resnet_pipeline.errors import UserError
from resnet_pipeline.parallel import Ahead

P = TypeVar("P", Plan, ViewPlan, WholePlan)
T = TypeVar("T")

_SMALL = 64
"""Crops of up to this side are resized by DALI on the CPU too: calls from Python would cost more than the kernel."""


_RGB = {"output_type": types.RGB, "adjust_orientation": False}


class DaliExecutor:
    """A DALI pipeline per kind of plan, on the CPU or on a CUDA device (decoding ``mixed``).

    ``way`` is how a CUDA device gets its crops, one of `decoding_check.WAYS`.
    """

    def __init__(
        self,
        samples: Split,
        most: int,
        device: torch.device,
        threads: int,
        prefetch: int,
        fill: npt.NDArray[np.float32] | None,
        way: str,
    ) -> None:
        self._samples, self._most, self._device = samples, most, device
        self._threads, self._prefetch = threads, prefetch
        self._way = way
        self._fill = None if fill is None else [float(v) for v in np.rint(fill)]

    def crops(self, plans: Iterator[Plan]) -> Iterator[tuple[Plan, torch.Tensor]]:
        """Yield each plan with its images uint8 [N, size, size, 3]."""
        first = next(plans, None)
        if first is None:
            return
        plans = _chain(first, plans)
        if self._decodes_only(first.size):
            with closing(Resizer(self._threads)) as resizer:
                yield from self._run_ahead(plans, _window_arrays, self._window_graph, resizer.crops)
        else:
            yield from self._run(plans, _crop_arrays, partial(self._crop_graph, size=first.size), self._copy)

    def views(self, plans: Iterator[ViewPlan]) -> Iterator[tuple[ViewPlan, torch.Tensor]]:
        """Yield each plan with its images uint8 [N, V, height, width, 3]."""
        first = next(plans, None)
        if first is None:
            return
        plans = _chain(first, plans)
        if self._decodes_only(min(first.crop)):
            with closing(Resizer(self._threads)) as resizer:
                yield from self._run_ahead(plans, lambda _: [], self._image_graph, resizer.views)
        else:
            graph = partial(self._view_graph, count=first.corners.shape[1])
            yield from self._run(plans, _view_arrays, graph, self._copy)

    def whole_images(self, plans: Iterator[WholePlan]) -> Iterator[tuple[WholePlan, list[list[torch.Tensor]]]]:
        """Yield each plan with its images uint8 [h, w, 3]: a list per size, of one image per sample."""
        first = next(plans, None)
        if first is None:
            return
        plans = _chain(first, plans)
        if self._decodes_only(int(first.resized.min())):
            with closing(Resizer(self._threads)) as resizer:
                yield from self._run_ahead(plans, lambda _: [], self._image_graph, resizer.whole_images)
        else:
            graph = partial(self._whole_graph, count=first.resized.shape[1])
            yield from self._run(plans, _whole_arrays, graph, self._copy_each)

    def _decodes_only(self, side: int) -> bool:
        return self._device.type == "cpu" and side > _SMALL

    def _image_graph(self, source: Iterator[list[Any]]) -> list[Any]:
        (encoded,) = fn.external_source(source=source, num_outputs=1, dtype=[types.UINT8], no_copy=True)
        return [fn.decoders.image(encoded, **self._decoding)]

    def _window_graph(self, source: Iterator[list[Any]]) -> list[Any]:
        encoded, start, shape = fn.external_source(
            source=source, num_outputs=3, dtype=[types.UINT8, types.INT32, types.INT32], no_copy=True
        )
        return [self._windows(encoded, start, shape)]

    def _crop_graph(self, source: Iterator[list[Any]], size: int) -> list[Any]:
        encoded, start, shape, flip = fn.external_source(
            source=source, num_outputs=4, dtype=[types.UINT8, types.INT32, types.INT32, types.INT32], no_copy=True
        )
        images = fn.resize(
            self._windows(encoded, start, shape), size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True
        )
        return [fn.flip(images, horizontal=flip)]

    def _windows(self, encoded: Any, start: Any, shape: Any) -> Any:
        window = {"start": start, "shape": shape, "axes": [0, 1]}
        if self._fill is not None:
            images = fn.decoders.image(encoded, **self._decoding)
            return fn.slice(images, out_of_bounds_policy="pad", fill_values=self._fill, **window)
        if self._way == "whole":
            return fn.slice(fn.decoders.image(encoded, **self._decoding), **window)
        if self._way == "cpu" and self._device.type == "cuda":
            return fn.decoders.image_slice(encoded, **window, device="cpu", **_RGB).gpu()
        return fn.decoders.image_slice(encoded, **window, **self._decoding)

    def _view_graph(self, source: Iterator[list[Any]], count: int) -> list[Any]:
        encoded, resized, shape, *corners = fn.external_source(
            source=source,
            num_outputs=3 + count,
            dtype=[types.UINT8, types.FLOAT, *[types.INT32] * (1 + count)],
            no_copy=True,
        )
        images = fn.decoders.image(encoded, **self._decoding)
        images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True)
        return [fn.stack(*(fn.slice(images, start=c, shape=shape, axes=[0, 1]) for c in corners), axis=0)]

    def _whole_graph(self, source: Iterator[list[Any]], count: int) -> list[Any]:
        encoded, *sizes = fn.external_source(
            source=source, num_outputs=1 + count, dtype=[types.UINT8, *[types.FLOAT] * count], no_copy=True
        )
        images = fn.decoders.image(encoded, **self._decoding)
        return [fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True) for size in sizes]

    @property
    def _decoding(self) -> dict[str, Any]:
        # on a GPU chroma is interpolated as libjpeg-turbo does it on the CPU; nvJPEG by default repeats it
        on_gpu = self._device.type == "cuda"
        on: dict[str, Any] = {"device": "mixed", "jpeg_fancy_upsampling": True} if on_gpu else {"device": "cpu"}
        return {**on, **_RGB}

    def _run_ahead(
        self,
        plans: Iterator[P],
        arrays_of: Callable[[P], list[Any]],
        graph: Callable[[Iterator[list[Any]]], list[Any]],
        finish: Callable[..., T],
    ) -> Iterator[tuple[P, T]]:
        with closing(Ahead(self._run(plans, arrays_of, graph, finish), self._prefetch)) as batches:
            yield from batches

    def _run(
        self,
        plans: Iterator[P],
        arrays_of: Callable[[P], list[Any]],
        graph: Callable[[Iterator[list[Any]]], list[Any]],
        finish: Callable[..., T],
    ) -> Iterator[tuple[P, T]]:
        # DALI takes the arrays without a copy, so they live here until their batch is out
        ahead: deque[tuple[P, list[Any]]] = deque()

        def source() -> Iterator[list[Any]]:
            planned: P
            for planned in plans:
                arrays = [self._samples.encoded_each(planned.index), *arrays_of(planned)]
                ahead.append((planned, arrays))
                yield arrays

        pipeline = Pipeline(
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
                outputs = pipeline.run()
            except StopIteration:
                return
            except RuntimeError as error:
                raise self._blame(ahead[0][0], error) from None
            plan, _ = ahead[0]
            yield plan, finish(plan, *outputs)
            ahead.popleft()

    def _copy(self, _: Plan | ViewPlan, output: Any) -> torch.Tensor:
        return self._torch(output.as_tensor())

    def _copy_each(self, plan: WholePlan, *outputs: Any) -> list[list[torch.Tensor]]:
        return [[self._torch(output[i]) for i in range(len(plan.index))] for output in outputs]

    def _torch(self, output: Any) -> torch.Tensor:
        images = torch.empty(output.shape(), dtype=torch.uint8, device=self._device)
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        feed_ndarray(output, images, cuda_stream=stream)
        return images

    def _blame(self, plan: Plan | ViewPlan | WholePlan, error: RuntimeError) -> UserError:
        """Find the sample of a failed batch that can't be decoded; DALI names none."""
        for index in plan.index:
            result, _ = audit(self._samples.encoded(int(index)).tobytes(), limits=ANY_SIZE)
            if result.refused:
                return self._samples.broken(int(index), result.note)
        first, last = (self._samples.key_of(int(i)) for i in (plan.index[0], plan.index[-1]))
        lines = [line for line in str(error).splitlines() if line.strip()]
        return UserError(f"DALI could not decode a batch from {first} to {last}: {' '.join(lines[:2])}")


def _window_arrays(plan: Plan) -> list[Any]:
    window = plan.window.astype(np.int32)
    return [np.ascontiguousarray(window[:, :2]), np.ascontiguousarray(window[:, 2:])]


def _crop_arrays(plan: Plan) -> list[Any]:
    return [*_window_arrays(plan), plan.flip.astype(np.int32)]


def _view_arrays(plan: ViewPlan) -> list[Any]:
    shape = np.tile(np.array(plan.crop, dtype=np.int32), (len(plan.index), 1))
    corners = [np.ascontiguousarray(c) for c in plan.corners.astype(np.int32).transpose(1, 0, 2)]
    return [plan.resized.astype(np.float32), shape, *corners]


def _whole_arrays(plan: WholePlan) -> list[Any]:
    return [np.ascontiguousarray(sizes, dtype=np.float32) for sizes in plan.resized.transpose(1, 0, 2)]


def _chain(first: P, rest: Iterator[P]) -> Iterator[P]:
    yield first
    yield from rest
