from __future__ import annotations

import threading

from resnet_pipeline.training.metrics_log import MetricsLog, read_metrics


def test_a_line_torn_by_a_crash_does_not_swallow_the_next_attempt_s_first(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.append("train", step, loss=float(step))
    log.close()
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote the third
    log = MetricsLog(path)
    log.append("resume", 1)
    log.append("train", 2, loss=20.0)
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 20.0)]


def test_lines_of_several_threads_stay_whole(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")

    def work(number: int) -> None:
        for step in range(200):
            log.append("note", step, text=f"{number} " * 20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 800


def test_what_a_full_disk_did_not_take_comes_with_the_next_line(tmp_path):
    class Full:
        """A disk with room for so many bytes."""

        def __init__(self, room: int) -> None:
            self.room, self.content = room, b""

        def write(self, data: bytes) -> int:
            taken = data[: self.room]
            if not taken:
                raise OSError(28, "No space left on device")
            self.room -= len(taken)
            self.content += taken
            return len(taken)

    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.close()
    log._file = disk = Full(100)
    for step in range(3):
        log.append("train", step, loss=0.5)
    disk.room = 10_000
    log.append("train", 3, loss=0.5)
    (tmp_path / "metrics.jsonl").write_bytes(disk.content)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
