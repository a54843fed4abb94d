"""Figures on tested networks: the reliability diagram, and the paper's figure 7."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.calibration import Calibration
from resnet_pipeline.files import replacing
from resnet_pipeline.report.figures import COLORS

FIGURE_SUFFIXES = (".svg", ".png", ".pdf")


def reliability_figure(calibrations: Mapping[str, Calibration]) -> Figure:
    """Return accuracy against confidence, one line per network, over the share of images in each bin.

    Example: ``save_figure(reliability_figure(analysis.calibrations), Path("reliability.svg"))``
    """
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#80868b", linewidth=0.9, linestyle="--", label="perfectly calibrated")
    for number, (name, found) in enumerate(calibrations.items()):
        color = COLORS[number % len(COLORS)]
        full = found.images > 0
        label = f"{name}: ECE {found.error:.2f} %"
        upper.plot(found.confidence[full], found.accuracy[full], color=color, marker="o", markersize=4, label=label)
        share = 100 * found.images / max(int(found.images.sum()), 1)
        lower.stairs(share, found.edges, color=color)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="confidence", ylabel="images (%)")
    upper.legend(fontsize="small")
    for axes in (upper, lower):
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def responses_figure(responses: Mapping[str, npt.NDArray[np.float64]]) -> Figure:
    """Return the paper's figure 7: standard deviations float64 [L] per layer, in original and in sorted order.

    Example: ``save_figure(responses_figure({"resnet20": measured}), Path("responses.svg"))``
    """
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1)
    for number, (name, values) in enumerate(responses.items()):
        color = COLORS[number % len(COLORS)]
        style = "--" if "plain" in name else "-"
        for axes, shown in ((upper, values), (lower, np.sort(values)[::-1])):
            axes.plot(np.arange(1, len(shown) + 1), shown, color=color, linestyle=style, linewidth=1.4, label=name)
    upper.set(xlabel="layer", ylabel="std", title="3×3 layers in their order")
    lower.set(xlabel="layer, sorted by magnitude", ylabel="std")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25, linewidth=0.6)
    upper.legend(fontsize="small")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, atomically; its kind is the file's ending. UserError for another ending, or if it fails."""
    if path.suffix not in FIGURE_SUFFIXES:
        raise UserError(f"figure {path} must end in {', '.join(FIGURE_SUFFIXES)}")
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150)
    except OSError as error:
        raise UserError(f"figure {path} can't be written: {error.strerror or error}") from None
