"""The report as one self-contained HTML page: no script, nothing fetched."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from resnet_pipeline.progress import per_second
from resnet_pipeline.report.content import ReportData
from resnet_pipeline.report.figures import error_figure, loss_figure
from resnet_pipeline.report.templates import rendered, write_text
from resnet_pipeline.report.terminal import duration, human


def write_report(data: ReportData, path: Path) -> Path:
    """Write the page, atomically, and return its path.

    Example: ``write_report(data, Path("report.html"))``
    """
    page = rendered(
        "page.html.j2",
        filters={"human": human, "duration": duration, "per_second": per_second, "interval": _interval},
        data=data,
        # matplotlib escapes the text that it draws
        error_figure=Markup(error_figure(data.members)),
        loss_figure=Markup(loss_figure(data.members)),
    )
    return write_text(path, page)


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"
