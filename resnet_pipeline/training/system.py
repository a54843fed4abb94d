"""What the machine does while it trains: memory, processor, disk, network, GPU."""

from __future__ import annotations

import time

import psutil
import torch
from pynvml import NVMLError  # type: ignore[import-untyped]

_MEGABYTE = 1e6


class SystemMetrics:
    """Figures of this machine under MLflow's names for them, so that they stand in its tab of system metrics.

    Percent, megabytes (1e6), and megabytes a second since the last reading.

    Example: ``SystemMetrics(device).read()["cpu_utilization_percentage"]``
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._time = time.monotonic()
        self._counters = _counters()
        psutil.cpu_percent()  # the first call only starts the measurement

    def due(self, interval: float = 10.0) -> bool:
        """Return whether ``interval`` seconds have passed since the last reading."""
        return time.monotonic() - self._time >= interval

    def read(self) -> dict[str, float]:
        """Return the figures since the last reading."""
        now, counters = time.monotonic(), _counters()
        seconds = max(now - self._time, 1e-9)
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": memory.percent,
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
            **{
                f"{name}_megabytes_per_second": max(0, value - self._counters.get(name, value)) / _MEGABYTE / seconds
                for name, value in counters.items()
            },
            **self._gpu(),
        }
        self._time, self._counters = now, counters
        return {name: round(value, 3) for name, value in values.items()}

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(self._device)
        values = {
            "gpu_memory_usage_megabytes": (total - free) / _MEGABYTE,
            "gpu_memory_usage_percentage": 100 * (total - free) / total,
            "gpu_memory_peak_megabytes": torch.cuda.max_memory_allocated(self._device) / _MEGABYTE,
        }
        return values | gpu_utilization(self._device)


def gpu_utilization(device: torch.device) -> dict[str, float]:
    """Return the percentage of time that a GPU computes; nothing if NVIDIA's library is missing or has no answer.

    For a part of a GPU (MIG) it has none.
    """
    try:
        return {"gpu_utilization_percentage": float(torch.cuda.utilization(device))}
    except (NVMLError, RuntimeError):
        return {}


def _counters() -> dict[str, int]:
    """Return bytes since boot; a machine may lack a counter (a container without /proc/diskstats)."""
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    return {
        **({"disk_read": disk.read_bytes, "disk_write": disk.write_bytes} if disk else {}),
        **({"network_receive": network.bytes_recv, "network_transmit": network.bytes_sent} if network else {}),
    }
