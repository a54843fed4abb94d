"""Which way a device decodes: real processes that decode, on the CPU and on a GPU that is not there."""

from __future__ import annotations

import pytest

from resnet_pipeline.data.decoding_check import WAYS, Trial, decode, first_that_works, kept_way, tried, way_for
from resnet_pipeline.errors import UserError


def test_pixels_are_those_of_pillow():
    difference, images_per_second = decode("cpu", "regions")
    assert difference < 1 and images_per_second > 0


def test_a_way_that_gives_other_pixels_is_told_from_one_that_does_not(monkeypatch):
    from resnet_pipeline.data import decoding_check

    monkeypatch.setattr(decoding_check, "_images", lambda made=decoding_check._images: _swapped(made()))
    difference, _ = decode("cpu", "regions")
    assert difference > 20


def _swapped(samples):
    """Return samples of which Pillow gets the next image's bytes where the decoder gets the right ones."""
    encoded = [samples.encoded(number) for number in range(len(samples.keys))]
    samples.encoded = lambda number: encoded[number - 1]
    return samples


@pytest.mark.slow
def test_a_device_that_is_not_there_is_found_by_its_process():
    trial = tried("cuda:99", "regions")
    assert trial.images_per_second == 0
    assert trial.problem.startswith("ended with status 1: ") and "\n" not in trial.problem


@pytest.mark.slow
def test_the_next_way_is_taken_if_the_first_one_s_process_fails(caplog):
    attempts = []

    def attempt(device, way):
        attempts.append((device, way))
        return tried("cuda:99" if way == "regions" else "cpu", way)

    assert first_that_works("cuda:0", attempt) == "whole"
    assert attempts == [("cuda:0", "regions"), ("cuda:0", "whole")]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("cuda:0 gets its crops by 'whole', decoding by regions ended with status 1: ")


def test_without_a_way_the_error_says_what_each_met():
    with pytest.raises(UserError) as raised:
        first_that_works("cuda:0", lambda device, way: Trial(problem=f"ended with status {-WAYS.index(way) - 4}: "))
    assert "by regions ended with status -4: ; by whole ended with status -5: ; by cpu ended with" in str(raised.value)


def test_each_gpu_s_way_is_found_once_and_kept(tmp_path):
    def never() -> str:
        raise AssertionError("it is known")

    # two processes that each knew nothing when they began
    assert kept_way("one", tmp_path, lambda: kept_way("two", tmp_path, lambda: "cpu") and "whole") == "whole"
    assert [kept_way(name, tmp_path, never) for name in ("one", "two")] == ["whole", "cpu"]
    # one that is damaged is found again
    for file in tmp_path.iterdir():
        file.write_text("{")
    assert kept_way("one", tmp_path, lambda: "regions") == "regions" == kept_way("one", tmp_path, never)


def test_the_setting_is_the_way(monkeypatch):
    assert way_for("cpu") == "regions"
    monkeypatch.setenv("RESNET_PIPELINE_GPU_DECODING", "whole")
    assert way_for("cuda:0") == "whole"
