"""The one-page report on finished runs, and the same as a table for the terminal."""

from resnet_pipeline.report.content import Curve, Ensemble, Member, ReportData
from resnet_pipeline.report.page import write_report
from resnet_pipeline.report.terminal import render_table

__all__ = ["Curve", "Ensemble", "Member", "ReportData", "render_table", "write_report"]
