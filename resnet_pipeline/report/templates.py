"""HTML pages from the templates beside this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from resnet_pipeline.files import replacing


def rendered(
    template: str, *, trimmed: bool = False, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any
) -> str:
    """Return a template's page; values are escaped, and one that the template names and is not given is an error.

    ``trimmed`` drops the white space around the template's own lines.

    Example: ``rendered("page.html.j2", data=data)``
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resnet_pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=trimmed,
        lstrip_blocks=trimmed,
    )
    environment.filters |= dict(filters or {})
    return environment.get_template(template).render(**values)


def write_text(path: Path, text: str) -> Path:
    """Write a page, atomically, and return its path; UserError if it can't be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
