"""The training curves as inline SVG, in the manner of the paper's figures 4 and 6: thin for training, bold for test."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from resnet_pipeline.report.content import Curve, Member

# Okabe and Ito's colours, told apart by the colour-blind; each is legible on white and on near-black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9")
_INK = "#80868b"  # axes and text, legible on either background


def error_figure(members: Sequence[Member]) -> str:
    """Return the figure of training error (thin) and validation error (bold) against iterations, as an SVG element."""

    def draw(axes: object, member: Member, color: str) -> None:
        _line(axes, member.train_error, color, width=0.9, alpha=0.65)
        _line(axes, member.val_error, color, width=2.2, label=member.name)

    return _figure(members, "error (%)", draw)


def loss_figure(members: Sequence[Member]) -> str:
    """Return the figure of the training loss against iterations, as an SVG element."""

    def draw(axes: object, member: Member, color: str) -> None:
        _line(axes, member.train_loss, color, width=1.4, label=member.name)

    return _figure(members, "training loss", draw, logarithmic=True)


def _line(
    axes: object, curve: Curve, color: str, *, width: float, alpha: float = 1.0, label: str | None = None
) -> None:
    axes.plot(curve.steps, curve.values, color=color, linewidth=width, alpha=alpha, label=label)  # type: ignore[attr-defined]


def _figure(
    members: Sequence[Member], what: str, draw: Callable[[object, Member, str], None], *, logarithmic: bool = False
) -> str:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for number, member in enumerate(members):
        draw(axes, member, COLORS[number % len(COLORS)])
    errors = [v for m in members for v in (*m.train_error.values, *m.val_error.values)]
    # of one class alone losses and errors are 0
    if logarithmic and any(v > 0 for m in members for v in m.train_loss.values):
        axes.set_yscale("log")
    elif not logarithmic and errors:
        axes.set_ylim(0, min(100.0, 1.05 * max(errors)) or 1.0)
    axes.set_xlabel("iteration", color=_INK)
    axes.set_ylabel(what, color=_INK)
    axes.grid(color=_INK, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=_INK, which="both")
    for spine in axes.spines.values():
        spine.set_color(_INK)
    if members:
        axes.legend(labelcolor=_INK, framealpha=0, fontsize="small")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # the page sets the width; the picture keeps its proportions
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
