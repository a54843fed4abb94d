"""What a flow run keeps on Prefect's pages: tables of errors, the training's curves, links."""

from __future__ import annotations

import re

from prefect.artifacts import create_table_artifact

from resnet_pipeline.records import JsonObject

_LONGEST_KEY = 100


def key_of(*words: str) -> str:
    """Return an artifact's key: lower-case letters, digits and dashes, as Prefect wants it.

    >>> key_of("errors", "imagenet/resnet34-b")
    'errors-imagenet-resnet34-b'
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:_LONGEST_KEY].rstrip("-")


def table(key: str, rows: list[JsonObject], description: str) -> None:
    """Keep rows as a table artifact of the flow run."""
    create_table_artifact(table=rows, key=key, description=description)
