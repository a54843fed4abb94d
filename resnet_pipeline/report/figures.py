"""The training curves as inline SVG, in the manner of the paper's figures 4 and 6: thin for training, bold for test."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from resnet_pipeline.report.content import Curve, Member

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; each is legible on white and on near-black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9")
_INK = "#80868b"  # axes and text, legible on either background


def error_figure(members: Sequence[Member]) -> str:
    """Return the figure of training error (thin) and validation error (bold) against iterations, as an SVG element."""

    def draw(axes: Axes, member: Member, color: str) -> None:
        last = f": {member.val_error.values[-1]:.2f} %" if member.val_error.values else ""
        _line(axes, member.train_error, color, width=0.9, alpha=0.65)
        _line(axes, member.val_error, color, width=2.2, label=f"{member.name}{last}")

    shown = [value for m in members for curve in (m.train_error, m.val_error) for value in curve.values]
    return _figure(members, "error (%)", shown, draw)


def loss_figure(members: Sequence[Member]) -> str:
    """Return the figure of the training loss against iterations, as an SVG element."""

    def draw(axes: Axes, member: Member, color: str) -> None:
        _line(axes, member.train_loss, color, width=1.4, label=member.name)

    return _figure(members, "training loss", [value for m in members for value in m.train_loss.values], draw)


def _line(axes: Axes, curve: Curve, color: str, *, width: float, alpha: float = 1.0, label: str | None = None) -> None:
    axes.plot(curve.steps, curve.values, color=color, linewidth=width, alpha=alpha, label=label)


def inline(figure: Figure) -> str:
    """Return a figure as an SVG element of a page, legible on white and on near-black; the page sets its width.

    Example: ``inline(reliability_figure({"this model": calibration}))``
    """
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.grid(color=_INK, alpha=0.25, linewidth=0.6)
        axes.tick_params(colors=_INK, which="both")
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        for spine in axes.spines.values():
            spine.set_color(_INK)
        if legend := axes.get_legend():
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(_INK)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # the page sets the width; the picture keeps its proportions
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)


def _figure(
    members: Sequence[Member], what: str, shown: Sequence[float], draw: Callable[[Axes, Member, str], None]
) -> str:
    """Return the figure on a logarithmic axis: on a linear one the first steps would leave the last no room."""
    # here, and not above: flows import this module before they train, matplotlib's import takes a second
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for number, member in enumerate(members):
        draw(axes, member, COLORS[number % len(COLORS)])
    positive = [value for value in shown if value > 0]
    if positive:  # of one class alone losses and errors are 0
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(min(positive) / 1.2, max(positive) * 1.2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        what += ", logarithmic axis" + (", 0 at its foot" if len(positive) < len(shown) else "")
    axes.set_xlabel("iteration")
    axes.set_ylabel(what)
    if members:
        axes.legend(fontsize="small")
    return inline(figure)
