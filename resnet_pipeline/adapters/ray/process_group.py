"""PyTorch's process group on Ray Train's workers, as Ray's TorchConfig makes it, by a controller without PyTorch.

Whoever unpickles a TorchConfig imports PyTorch. Ray Train's controller does, before it starts the workers, and never
uses it: three seconds of a core in the way of each start.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

_SECONDS_FOR_LEAVING = 30.0  # Ray's TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """Workers in a process group of PyTorch's ``backend``, whose operations may take so many ``seconds``.

    Example: ``DataParallelTrainer(loop, backend_config=ProcessGroup(backend="gloo", seconds=600))``
    """

    backend: str
    seconds: float

    @property
    def backend_cls(self) -> type[Backend]:
        """What joins the workers."""
        return _Joining

    @property
    def train_func_context(self) -> Any:
        """What a worker enters around its training: the GPU that is its own. Asked for by the driver."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager


class _Joining(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # with GPUs, NCCL's processes of a node see each other's

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        joined = [
            worker_group.execute_single_async(
                rank, _join, backend_config.backend, rank, len(worker_group), address, port, backend_config.seconds
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        left = worker_group.execute_async(_leave, len(worker_group) > 1)
        ray.wait(left, num_returns=len(left), timeout=_SECONDS_FOR_LEAVING)


def _join(backend: str, rank: int, world_size: int, address: str, port: int, seconds: float) -> None:
    """In a worker: set what torchrun would, and join the group."""
    from ray.train.torch import config

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, world_size, "env://", round(seconds))


def _leave(destroy: bool) -> None:
    """In a worker: leave the group, and free what its GPU holds."""
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=destroy)
