"""What Ray Train's controller reads before it starts workers."""

import pickle
import subprocess
import sys

from resnet_pipeline.adapters.ray.orders import Standing
from resnet_pipeline.adapters.ray.process_group import ProcessGroup
from resnet_pipeline.training.signals import FileSignals


def test_the_controller_reads_what_workers_are_to_do_without_pytorch(tmp_path):
    standing = Standing(orders=FileSignals(tmp_path), root=tmp_path, threads=1, timeout=60.0)
    file = tmp_path / "given"
    file.write_bytes(pickle.dumps([standing, ProcessGroup(backend="gloo", seconds=60.0)]))
    reader = (
        "import pickle, sys\n"
        "standing, group = pickle.load(open(sys.argv[1], 'rb'))\n"
        "group.backend_cls()\n"
        "print(standing.threads, group.backend, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", reader, file], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["1", "gloo", "False"]
