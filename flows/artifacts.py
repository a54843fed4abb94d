"""What a flow run keeps on Prefect's pages: tables of errors, the training's curves, links."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from resnet_pipeline.evaluation.ensemble import Measured
from resnet_pipeline.evaluation.paper import PUBLISHED
from resnet_pipeline.records import JsonObject

_LONGEST_KEY = 100


def key_of(*words: str) -> str:
    """Return an artifact's key: lower-case letters, digits and dashes, as Prefect wants it.

    >>> key_of("errors", "imagenet/resnet34-b")
    'errors-imagenet-resnet34-b'
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:_LONGEST_KEY].rstrip("-")


def table(key: str, rows: Sequence[JsonObject], description: str) -> None:
    """Keep rows as a table artifact of the flow run."""
    create_table_artifact(table=list(rows), key=key, description=description)


def error_row(network: str, protocol: str, found: Measured, *, recipe: str | None = None) -> JsonObject:
    """Return a row of a table of errors in percent: ours with Wilson's 95 % intervals, and the paper's.

    ``recipe`` is what the network was trained by: the paper has an error of few of them, and under one protocol.

    Example: ``error_row("digits/resnet8", "center", Measured.of(scores))``
    """
    row: JsonObject = {"network": network, "protocol": protocol, "images": round(found.images)}
    if found.errors is not None:
        for name, error, (low, high) in (
            ("top-1", found.errors.top1, found.errors.top1_interval),
            ("top-5", found.errors.top5, found.errors.top5_interval),
        ):
            row |= {f"{name} error": round(error, 2), f"{name} interval": f"{low:.2f} to {high:.2f}"}
    published = PUBLISHED.get(recipe or "")
    if published is not None and published.protocol == protocol:
        row |= paper_errors(published.top1, published.top5, published.source)
    return row


def paper_errors(top1: float | None, top5: float | None, source: str) -> JsonObject:
    """Return the columns of the paper's errors in percent, with the table where they stand."""
    return {"paper's top-1": top1, "paper's top-5": top5, "paper's table": source}


def even(rows: Sequence[JsonObject]) -> list[JsonObject]:
    """Return rows that all have all columns, in the order in which they come, empty where there is nothing.

    Prefect's page takes the columns from the first row.

    >>> even([{"a": 1}, {"a": 2, "b": None}])
    [{'a': 1, 'b': ''}, {'a': 2, 'b': ''}]
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: "" if row.get(column) is None else row[column] for column in columns} for row in rows]


def curves(title: str, figures: Mapping[str, str]) -> None:
    """Keep figures, SVG by caption, as an artifact that holds the pictures themselves.

    Prefect's image artifact takes an address, which a file on the worker has not; its page shows one that holds the
    picture, but with all of it as text below.

    Example: ``curves("digits/resnet8", {"error": "<svg …></svg>"})``
    """
    pictures = (
        f"![{caption}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
        for caption, svg in figures.items()
    )
    create_markdown_artifact(
        key=key_of("curves", title),
        markdown="\n\n".join(pictures),
        description=f"{title}: {' and '.join(figures)} in training",
    )


class Links:
    """Where more is to be seen, as one artifact of the flow run: what is known so far."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._artifact: UUID | None = None

    def show(self, places: Mapping[str, str | None]) -> None:
        """Show places by name: addresses as links, else what is to be typed; None is left out.

        Example: ``Links("digits/resnet8").show({"MLflow run": "http://127.0.0.1:5000/#/experiments/1"})``
        """
        text = "\n".join(f"- {_link(name, place)}" for name, place in places.items() if place)
        if self._artifact is not None:
            get_client(sync_client=True).update_artifact(self._artifact, ArtifactUpdate(data=text))
            return
        self._artifact = create_markdown_artifact(  # type: ignore[assignment] # synchronous here
            key=key_of("links", self._title), markdown=text, description=f"{self._title}: where to look"
        )


def _link(name: str, place: str) -> str:
    return f"[{name}]({place})" if place.startswith("http") else f"{name}: `{place}`"
