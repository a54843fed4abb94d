"""Ray: what Prometheus sees of a training: gauges of its pace, which Ray's agent of the worker's node exports."""

from __future__ import annotations

from resnet_pipeline.training.metrics_log import Pace

GAUGES = {
    "resnet_pipeline_step": "The step that a run has reached; it falls when a run resumes.",
    "resnet_pipeline_step_seconds": "The median of the steps since the last log point.",
    "resnet_pipeline_images_per_second": "Training images of all workers.",
    "resnet_pipeline_data_wait": "The share of the time that was spent waiting for data, from 0 to 1.",
}
"""Names and meanings; Ray exports each as ray_NAME, with the label ``run``."""


class Gauges:
    """A run's gauges, of one process; without Ray's agent (plain ``ray[train]``) nobody asks for them.

    Example: ``Gauges("digits-resnet8-digits-0-1a2b").show(50, throughput.read())``
    """

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {name: Gauge(name, description=text, tag_keys=("run",)) for name, text in GAUGES.items()}
        self._tags = {"run": run}

    def show(self, step: int, pace: Pace) -> None:
        """Set all of them, at a log point."""
        values = (step, pace.step_p50, pace.images_per_second, pace.data_wait)
        for gauge, value in zip(self._gauges.values(), values, strict=True):
            gauge.set(value, self._tags)
