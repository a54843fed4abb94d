"""The training loop in plain processes that form a group, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.training.run_directory import RunDirectory

WORKER = """
import sys
from pathlib import Path
import torch
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.training.context import torchrun_context
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
torch.set_num_threads(1)
with torchrun_context() as context:
    train(RunDirectory.open(Path(sys.argv[1])), Dataset.open(Path(sys.argv[2])), context)
"""


def launch(
    run: RunDirectory, dataset: Dataset, world: int, *, script: str = WORKER, arguments: Sequence[str] = ()
) -> list[subprocess.Popen[bytes]]:
    """Start ``world`` processes that train the run together; with ``arguments`` their stderr is piped."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(run.path), str(dataset.path), *arguments],
            stderr=subprocess.PIPE if arguments else None,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]
