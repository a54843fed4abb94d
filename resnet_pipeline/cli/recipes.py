"""``resnet-pipeline recipes``: the list of recipes, or one of them field by field."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from resnet_pipeline.cli.options import Json, complete_recipe, write_result
from resnet_pipeline.report.terminal import human, print_table

if TYPE_CHECKING:
    from resnet_pipeline.jobs.recipes import RecipeRow

WIDTH = 80


def recipes(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Print every field of this recipe, and what it means.",
            show_default=False,
            autocompletion=complete_recipe,
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="List those alone that keep so many GPUs busy.", show_default=False)
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="N×GPU",
            help="List those that keep so many v100, a100 or h100 (64xh100) busy, and the hours that each takes there, "
            "from published rates.",
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="With --hardware: what an hour of all of it costs.", min=0, show_default=False)
    ] = None,
    json_file: Json = None,
) -> None:
    """List every recipe with its depth, parameters, multiply-adds and the paper's error; or print one, field by field.

    `train --set FIELD=VALUE` changes a field.
    """
    from resnet_pipeline.jobs.recipes import depth_against_vgg, recipe_row, recipe_rows

    if recipe is None and hardware is not None:
        from resnet_pipeline.jobs.hardware import hours_of, parse_hardware  # it imports PyTorch
        from resnet_pipeline.recipes import get_recipe

        named = parse_hardware(hardware)
        rows = [row for row in recipe_rows(named.gpus) if get_recipe(row.recipe).detection is None]
        hours = hours_of(rows, named)
        print_table(_planned(rows, hours, str(named), price))
        write_result(json_file, [asdict(row) | {"hours": took} for row, took in zip(rows, hours, strict=True)])
    elif recipe is None:
        rows = recipe_rows(gpus)
        print_table(_table(rows))
        print(textwrap.fill(depth_against_vgg(), WIDTH))
        write_result(json_file, [asdict(row) for row in rows])
    else:
        _print_one(recipe_row(recipe), json_file)


def _table(rows: Sequence[RecipeRow]) -> Table:
    table = Table(
        title="Recipes: names for `resnet-pipeline train`",
        title_justify="left",
        caption="top-1, top-5: the paper's errors in percent, and the table that they are from",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("recipe", no_wrap=True)
    for column in ("depth", "para-\nmeters", "mult.-\nadds", "steps", "batch", "top-1", "top-5", "table"):
        table.add_column(column, justify="right", no_wrap=True)
    family = ""
    for row in rows:
        if family not in ("", row.recipe.split("/")[0]):
            table.add_row()
        family = row.recipe.split("/")[0]
        table.add_row(
            row.recipe,
            str(row.depth),
            human(row.parameters),
            human(row.multiply_adds),
            f"{row.steps:,}",
            str(row.batch),
            *("" if error is None else f"{error:.2f}" for error in (row.top1, row.top5)),
            "" if row.source is None else row.source.removeprefix("Table ").partition(":")[0],
        )
    return table


def _planned(rows: Sequence[RecipeRow], hours: Sequence[float], hardware: str, price: float | None) -> Table:
    table = Table(
        title=f"Recipes that keep {hardware} busy",
        title_justify="left",
        caption="hours: from published rates of ResNet-50, not measured here; it may be twice as long",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("recipe", no_wrap=True)
    for column in ("steps", "batch", "top-1", "table", "hours", *([] if price is None else ["cost"])):
        table.add_column(column, justify="right", no_wrap=True)
    for row, took in zip(rows, hours, strict=True):
        error = "" if row.top1 is None else f"{row.top1:.2f}"
        source = "" if row.source is None else row.source.removeprefix("Table ").partition(":")[0]
        money = [] if price is None else [f"{took * price:,.2f}"]
        table.add_row(row.recipe, f"{row.steps:,}", str(row.batch), error, source, f"{took:,.1f}", *money)
    return table


def _print_one(row: RecipeRow, json_file: Path | None) -> None:
    """Print a recipe's network, the paper's error, and each field with its value and its meaning."""
    from resnet_pipeline.config_io import described
    from resnet_pipeline.recipes import get_recipe

    fields = list(described(get_recipe(row.recipe)))
    errors = [
        f"{name} {value:.2f} %" for name, value in (("top-1", row.top1), ("top-5", row.top5)) if value is not None
    ]
    paper = f"; the paper: {', '.join(errors)} ({row.source})" if row.source else ""
    print(
        textwrap.fill(
            f"{row.recipe}: {row.depth} layers, {human(row.parameters)} parameters, {human(row.multiply_adds)} "
            f"multiply-adds per image of {row.input} × {row.input} pixels{paper}",
            WIDTH,
        )
    )
    for field in fields:
        print(f"\n{field.field} = {json.dumps(field.value)}")
        print(textwrap.fill(field.text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    write_result(json_file, {**asdict(row), "fields": [asdict(field) for field in fields]})
