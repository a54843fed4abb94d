"""The command line: a thin door to the jobs and the flows."""

from resnet_pipeline.cli.main import main

__all__ = ["main"]
