"""A report's data as a demo makes it, for the tests of the page."""

from __future__ import annotations

import math

from resnet_pipeline.report.content import Curve, Ensemble, Member, ReportData
from resnet_pipeline.report.model_card import MeasuredErrors


def measured(top1: float, top5: float) -> MeasuredErrors:
    """Return errors on all of the digits, with intervals of no account."""
    return MeasuredErrors(
        protocol="center-16-of-18", split="val", images=364, of=364,
        top1=top1, top1_interval=(top1 / 2, top1 + 1.04), top5=top5, top5_interval=(top5 / 2, top5 + 1.04),
    )  # fmt: skip


def sample_report(*, name: str | None = None, members: int = 3) -> ReportData:
    """Return data of up to three networks; ``name`` replaces the first one's and the dataset's."""
    steps = list(range(10, 601, 10))
    networks = [
        Member(
            name=name if name and i == 0 else f"digits/resnet{depth}",
            run=f"digits-resnet{depth}-af86212b-s0-8291abb{i}",
            depth=depth,
            parameters=(75_290, 172_506, 269_722)[i],
            multiply_adds=(3_140_000, 6_680_000, 10_220_000)[i],
            errors={"center": measured(1.37, 0.27), "10-crop": measured((1.65, 1.10, 0.82)[i], 0.0)},
            images_per_second=3633.0 - 700 * i,
            seconds=11.0 + 4 * i,
            test_images_per_second=1814.0 - 500 * i,
            train_loss=Curve(steps=steps, values=[2.3 * math.exp(-s / (90 + 40 * i)) + 0.05 for s in steps]),
            train_error=Curve(steps=steps, values=[90 * math.exp(-s / (80 + 40 * i)) + 2 for s in steps]),
            val_error=Curve(steps=steps[9::10], values=[85 * math.exp(-s / (90 + 40 * i)) + 1 for s in steps[9::10]]),
            used="0.01 worker-hours in 1 start, validations included, 0.24 at 24.00 an hour",
            registered=f"digits-resnet{depth} version 1 @candidate",
            mlflow_run="48d893931785457797f7c37fa23a6c93",
            paper_error=8.75 if i == 2 else None,
            paper_source="Table 6: CIFAR-10 test, single view" if i == 2 else None,
        )
        for i, depth in list(enumerate((8, 14, 20)))[:members]
    ]
    ensemble = Ensemble(
        members=[m.name for m in networks],
        errors={"center": measured(1.10, 0.0), "10-crop": measured(0.82, 0.0)},
        samples=364,
        test_images_per_second=296.0,
    )
    return ReportData(
        title=f"Residual networks on {name or 'digits'}",
        dataset_name=name or "digits",
        dataset_fingerprint="af86212b36c9" * 5,
        classes=10,
        samples={"train": 1433, "val": 364},
        refused=0,
        members=networks,
        ensemble=ensemble if members > 1 else None,
        environment={"python": "3.11.7", "torch": "2.14.1", "hardware": "x86_64, 2 CPU cores"},
        created="2026-11-24 03:00 UTC",
        commands=[("Stage the images", "resnet-pipeline stage --source builtin:digits --name digits")],
    )
