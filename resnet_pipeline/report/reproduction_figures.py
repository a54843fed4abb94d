"""The paper's figures from kept runs, as SVG: the same bytes from the same runs."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from resnet_pipeline.evaluation.exhibits import Exhibit, Panel
from resnet_pipeline.report.figures import COLORS
from resnet_pipeline.report.kept import KeptRun

_INK = "#80868b"  # axes and text, legible on light and dark
_ERRORS = {"imagenet": 100.0, "cifar10": 40.0}  # the most that an axis shows, in percent, if errors fall below it


def exhibit_figure(exhibit: Exhibit, drawn: Mapping[str, KeptRun]) -> str:
    """Return a figure of the paper as an SVG element, from one run per network; an empty text if there is nothing yet.

    Training curves: thin and dashed on augmented training images, bold on test images, as in figures 4 and 6. Figure 7:
    the standard deviation of each layer's response, in the layers' order and sorted.

    Example: ``exhibit_figure(section.exhibit, section.drawn)``
    """
    if exhibit.kind == "curves":
        return _curves(exhibit, drawn)
    return _responses(drawn) if exhibit.kind == "responses" else ""


def _curves(exhibit: Exhibit, drawn: Mapping[str, KeptRun]) -> str:
    panels = [panel for panel in exhibit.panels if any(network in drawn for network in panel.networks)]
    if not panels:
        return ""
    # a network has one colour in all parts
    networks = list(dict.fromkeys(network for panel in exhibit.panels for network in panel.networks))
    colors = {network: COLORS[number % len(COLORS)] for number, network in enumerate(networks)}
    figure, axes = _figure(len(panels))
    for part, panel in zip(axes, panels, strict=True):
        _draw(part, panel, drawn, colors, most=_ERRORS[exhibit.family])
    return _svg(figure, exhibit.title)


def _draw(axes: Axes, panel: Panel, drawn: Mapping[str, KeptRun], colors: Mapping[str, str], *, most: float) -> None:
    lowest, highest = 100.0, 0.0
    for network in panel.networks:
        run = drawn.get(network)
        if run is None:
            continue
        label = network if run.result else f"{network}, to {run.step:,}"
        curves = [(run.validation, 2.0, "-")] if panel.title != "training error" else []
        if panel.title != "test error":
            curves.append((run.train, 1.0, "--" if curves else "-"))
        for curve, width, style in curves:
            named = label if curve is curves[0][0] else None
            axes.plot(
                curve.steps, curve.values, color=colors[network], linewidth=width, linestyle=style, label=named,
                alpha=1.0 if width > 1 or style == "-" else 0.7,
            )  # fmt: skip
            if curve.values:
                lowest, highest = min(lowest, *curve.values), max(highest, *curve.values)
    axes.set(xlabel="iteration", ylabel="error (%)", title=panel.title)
    axes.set_ylim(0, (most if lowest < most / 2 else highest * 1.05) or 1.0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _styled(axes)


def _responses(drawn: Mapping[str, KeptRun]) -> str:
    measured = {network: run.responses for network, run in drawn.items() if run.responses}
    if not measured:
        return ""
    figure, (upper, lower) = _figure(2)
    for number, (network, values) in enumerate(measured.items()):
        style = "--" if network.startswith("plain") else "-"
        for axes, shown in ((upper, np.array(values)), (lower, np.sort(values)[::-1])):
            axes.plot(
                np.arange(1, len(shown) + 1), shown, color=COLORS[number % len(COLORS)], linestyle=style, linewidth=1.4,
                label=f"{network} (mean {statistics.mean(values):.2f})",
            )  # fmt: skip
    upper.set(xlabel="layer", ylabel="standard deviation", title="layers in their order", ylim=(0, None))
    lower.set(xlabel="layer", ylabel="standard deviation", title="sorted by magnitude", ylim=(0, None))
    for axes in (upper, lower):
        _styled(axes)
    return _svg(figure, "Figure 7: standard deviations of layer responses")


def _figure(parts: int) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of parts below one another, so that they are legible on a phone."""
    figure = Figure(figsize=(5.2, 2.7 * parts), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    found = figure.subplots(parts, 1, squeeze=False)
    return figure, [axes for (axes,) in found]


def _styled(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    axes.grid(color=_INK, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=_INK, which="both")
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(_INK)
    axes.title.set_fontsize("medium")
    for spine in axes.spines.values():
        spine.set_color(_INK)
    axes.legend(labelcolor=_INK, framealpha=0, fontsize="small")


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "resnet-pipeline"}):  # else ids are random
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    svg = buffer.getvalue()
    # its size is for who shows the file alone; the page sets a width, and the picture keeps its proportions
    return svg[svg.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)
