"""`train --profile`: a step's bottleneck, measured in a few steps after a warm-up, and a trace of a few more.

It is no part of the config: a profiled run is the same run with the same arithmetic. On a CPU the shares are those of
undisturbed steps, taken with clocks; on a GPU those of the traced steps, from the kernels' intervals.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.nn.parallel import DistributedDataParallel

from resnet_pipeline.files import replacing
from resnet_pipeline.training.distributed import all_reduce_sum
from resnet_pipeline.training.metrics_log import ProfileEntry
from resnet_pipeline.training.throughput import WAITING

Interval = tuple[float, float]

WARMUP, MEASURED, TRACED = 5, 20, 5
LEAST_STEPS = 3
_NAMES = {
    "data": "data (waiting for the loader)",
    "compute": "compute",
    "communication": "communication (gradients, waiting for other workers)",
    "host": "the host (Python and kernel launches; the GPU was idle)",
}


def window(steps: int) -> tuple[int, int, int]:
    """Return how many of a run's remaining steps warm up, are measured and are traced.

    >>> window(1000), window(8)
    ((5, 20, 5), (2, 4, 2))
    """
    warmup, measured = min(WARMUP, steps // 4), min(MEASURED, steps // 2)
    return warmup, measured, min(TRACED, steps - warmup - measured)


class Profile:
    """Watches the steps of one process; `after_step` returns the shares once, when all is measured and written.

    Example: ``Profile(run.profile, rank=0, device=device, steps=1000).after_step(model, waited=0.0)``
    """

    def __init__(self, folder: Path, *, rank: int, device: torch.device, steps: int) -> None:
        self.file = folder / f"trace-rank{rank}.json"
        self._device = device
        warmup, self._measured, self._traced = window(steps)
        self._start, self._end = warmup, warmup + self._measured
        self._step = 0
        self._began = self._waited_before = self._exposed = 0.0
        self._shares: dict[str, float] = {}
        self._profiler: Any = None
        if self._start == 0:
            self._began = self._now()

    def after_step(self, model: torch.nn.Module, waited: float) -> ProfileEntry | None:
        """Take in a finished step; ``waited`` is the run's waiting for data in all, in seconds."""
        self._step += 1
        if self._start < self._step <= self._end:
            self._exposed += exposed_communication(model)
        if self._step == self._start:
            if isinstance(model, DistributedDataParallel):
                model._set_ddp_runtime_logging_sample_rate(1)  # type: ignore[no-untyped-call]
            self._began, self._waited_before = self._now(), waited
        if self._step == self._end:
            self._read(waited)
            self._profiler = self._make_profiler()
            self._profiler.start()
        if self._step == self._end + self._traced:
            self._now()
            self._profiler.stop()
            return self._finish()
        return None

    def _read(self, waited: float) -> None:
        seconds = self._now() - self._began
        data, communication = (waited - self._waited_before) / seconds, self._exposed / seconds
        self._shares = {
            "seconds_per_step": seconds / self._measured,
            "data": data,
            "communication": communication,
            "compute": max(0.0, 1 - data - communication),
            "host": 0.0,
        }

    def _make_profiler(self) -> Any:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        return torch.profiler.profile(activities=activities)

    def _finish(self) -> ProfileEntry:
        with replacing(self.file) as temporary:
            self._profiler.export_chrome_trace(str(temporary))
        if self._device.type == "cuda":
            self._shares |= gpu_shares(self._profiler.events())
        self._profiler = None
        names = sorted(self._shares)
        # the mean over ranks
        values = torch.tensor([*(self._shares[n] for n in names), 1.0], dtype=torch.float64, device=self._device)
        *sums, ranks = all_reduce_sum(values).tolist()
        return ProfileEntry(**{name: round(value / ranks, 6) for name, value in zip(names, sums, strict=True)})

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def exposed_communication(model: torch.nn.Module) -> float:
    """Return the seconds that the last gradient exchange took beyond the backward pass, by DDP's own clocks."""
    if not isinstance(model, DistributedDataParallel):
        return 0.0
    times: dict[str, float] = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    beyond = times.get("backward_comm_time", 0.0) - times.get("backward_compute_comm_overlap_time", 0.0)
    return max(0.0, beyond) / 1e9


def gpu_shares(events: Iterable[Any]) -> dict[str, float]:
    """Return the shares of the traced time on a GPU: its kernels, its exchanges beyond them, idle for data, idle."""
    kernels: list[Interval] = []
    exchanges: list[Interval] = []
    waiting: list[Interval] = []
    for event in events:
        interval = (event.time_range.start, event.time_range.end)
        if event.device_type == DeviceType.CUDA:
            (exchanges if event.name.startswith("nccl") else kernels).append(interval)
        elif event.name == WAITING:
            waiting.append(interval)
    return shares(kernels, exchanges, waiting)


def shares(kernels: list[Interval], exchanges: list[Interval], waiting: list[Interval]) -> dict[str, float]:
    """Divide the time from the first interval's start to the last's end; each moment belongs to the first that holds.

    Computing, else exchanging, else idle while the host waits for data, else idle for another reason of the host.

    >>> shares([(0.0, 5.0)], [(4.0, 6.0)], [(6.0, 10.0)])
    {'compute': 0.5, 'communication': 0.1, 'data': 0.4, 'host': 0.0}
    """
    everything = [*kernels, *exchanges, *waiting]
    if not everything:
        return {}
    span = max(end for _, end in everything) - min(start for start, _ in everything)
    compute = covered(kernels)
    busy = covered([*kernels, *exchanges])
    known = covered(everything)
    return {
        "compute": compute / span,
        "communication": (busy - compute) / span,
        "data": (known - busy) / span,
        "host": (span - known) / span,
    }


def covered(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals.

    >>> covered([(0.0, 2.0), (1.0, 3.0)])
    3.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def describe(profile: ProfileEntry) -> str:
    """Return the line that names a step's bottleneck.

    >>> describe(ProfileEntry(data=0.2, compute=0.7, communication=0.1, host=0.0, seconds_per_step=0.05))
    'a step takes 50.0 ms and is bound by compute: data 20.0 %, compute 70.0 %, communication 10.0 %'
    """
    shares: dict[str, float] = {part: getattr(profile, part) for part in _NAMES}
    bound = max(shares, key=lambda part: shares[part])
    parts = ", ".join(f"{part} {100 * share:.1f} %" for part, share in shares.items() if share or part != "host")
    return f"a step takes {1000 * profile.seconds_per_step:,.1f} ms and is bound by {_NAMES[bound]}: {parts}"
