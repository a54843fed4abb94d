from __future__ import annotations

import resource
import threading

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.training.metrics_log import MetricsLog, NoteEntry, ResumeEntry, read_metrics
from resnet_pipeline.training.run_directory import RunDirectory
from tests.metrics import training


def test_a_line_torn_by_a_crash_does_not_swallow_the_next_attempt_s_first(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.append(step, training(loss=float(step)))
    log.close()
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote the third
    log = MetricsLog(path)
    log.append(1, ResumeEntry(workers=1))
    log.append(2, training(loss=20.0))
    log.close()
    assert [(line.step, line.entry.figures["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 20.0)]


def test_lines_of_several_threads_stay_whole(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")

    def work(number: int) -> None:
        for step in range(200):
            log.append(step, NoteEntry(text=f"{number} " * 20))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 800


def test_what_a_full_disk_did_not_take_comes_with_the_next_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # no file may grow beyond: the second line is cut
    try:
        for step in range(3):
            log.append(step, NoteEntry(text="no room"))
        assert (tmp_path / "metrics.jsonl").stat().st_size == 100
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.append(3, NoteEntry(text="no room"))
    log.close()
    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_what_a_kill_leaves_is_removed_at_the_next_start(make_run):
    run = make_run()
    names = {path.name for path in run.path.iterdir()}
    for left in (".result.json.ab12", ".weights.safetensors.ab12", ".config.json.ab12", ".mlflow.json.ab12"):
        (run.path / left).write_text("half")
    assert {path.name for path in make_run().path.iterdir()} == names


@pytest.mark.parametrize("content", [b"", b'{"config": {"reci', b"[]", b'{"config": {"steps": 1}, "dataset": []}'])
def test_a_config_that_a_crash_has_torn_is_written_again(make_run, content):
    run = make_run()
    whole = run.config_file.read_bytes()
    run.config_file.write_bytes(content)
    assert make_run().config_file.read_bytes() == whole


def test_a_config_that_was_changed_is_refused_by_the_run_s_name_and_written_again(make_run):
    run = make_run()
    whole = run.config_file.read_bytes()
    for old, new in ((b'"lr": 0.1', b'"lr": 0.3'), (b'"fingerprint": "', b'"fingerprint": "0')):
        assert old in whole
        run.config_file.write_bytes(whole.replace(old, new))
        for read in (run.config, run.dataset, run.identity):
            with pytest.raises(UserError, match=r"config\.json was changed: the hashes of dataset and config are"):
                read()
        assert make_run().config_file.read_bytes() == whole
    renamed = run.path.rename(run.path.with_name("mine"))
    assert RunDirectory.open(renamed).identity() == run.name
