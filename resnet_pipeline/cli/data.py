"""``resnet-pipeline data``: whether a staged dataset is intact, what is in it, what training sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from resnet_pipeline.cli.console import say
from resnet_pipeline.cli.options import Json, Root, command, complete_dataset, complete_recipe, write_result
from resnet_pipeline.errors import UserError
from resnet_pipeline.report.terminal import print_table
from resnet_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from resnet_pipeline.jobs.data import DatasetStats, Spread

app = typer.Typer(help="Check a staged dataset, look at its training crops, and count what is in it.")
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The name that `stage` was given.",
        show_default=False,
        autocompletion=complete_dataset,
    ),
]


@app.command()
@command
def verify(
    name: Name,
    root: Root = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per CPU core.")] = None,
    near_duplicates: Annotated[
        bool,
        typer.Option("--near-duplicates", help="Find images, too, that look alike across splits and classes (dHash)."),
    ] = False,
    json_file: Json = None,
) -> None:
    """Compare every shard with its checksum and decode every image; name what is bad, with exit status 2."""
    from resnet_pipeline.jobs.data import verify_dataset

    found = verify_dataset(Workspace.of(root), name, threads=threads, near_duplicates=near_duplicates)
    near = found.near_duplicates
    write_result(
        json_file,
        {
            "name": name,
            "fingerprint": found.dataset.fingerprint,
            "good": found.good,
            "shards": {"checked": found.shards, "bad": found.bad_shards},
            "samples": {"checked": found.samples, "bad": found.bad_samples},
            "duplicates": {"splits": found.duplicates.split_keys, "classes": found.duplicates.class_keys},
            "near_duplicates": near and {"splits": near.split_keys, "classes": near.class_keys},
        },
    )
    for shard in found.bad_shards:
        say(f"shard {shard.file} {shard.reason}")
    for sample in found.bad_samples:
        say(f"{sample.split} image {sample.file} in shard {sample.shard}: {sample.reason}")
    if not found.good:
        raise UserError(
            f"dataset {name!r} is damaged: {len(found.bad_shards)} of {found.shards} shard(s) and "
            f"{len(found.bad_samples)} of {found.samples:,} images are bad; stage it again with --replace"
        )
    say(f"dataset {name}: {found.samples:,} images in {found.shards} shard(s), all good")
    for line in (*found.duplicates.lines(), *(near.lines() if near else ())):
        say(line)


@app.command()
@command
def show(
    name: Name,
    root: Root = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="The recipe whose crops are shown. Default: imagenet/resnet50; cifar10/resnet20 for small images.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    epoch: Annotated[int, typer.Option(min=0, max=2**32, help="The epoch, from 0 on.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many crops.")] = 18,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The run's seed.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="The picture, a PNG. Default: reports/<name>-crops.png under the root.")
    ] = None,
) -> None:
    """Draw an epoch's first training crops beside their images, with each crop outlined on its image."""
    from resnet_pipeline.jobs.data import show_dataset

    say(show_dataset(Workspace.of(root), name, recipe=recipe, seed=seed, epoch=epoch, count=count, output=output))


@app.command()
@command
def stats(name: Name, root: Root = None, json_file: Json = None) -> None:
    """Count images, classes, sizes and bytes of each split; print the training images' mean and eigenvalues."""
    from resnet_pipeline.jobs.data import dataset_stats

    found = dataset_stats(Workspace.of(root), name)
    print_table(_table(found))
    pixels = found.statistics
    kind = "training" if "train" in found.splits else " and ".join(found.splits)
    say(
        f"of {pixels.images:,} {kind} images: mean RGB {_numbers(pixels.mean_rgb, 2)} of 255; "
        f"eigenvalues of the colours' covariance {_numbers(pixels.eigenvalues, 5)} (values in 0..1)"
    )
    say(f"{found.converted} images were converted, {found.refused} refused; fingerprint {found.fingerprint}")
    write_result(json_file, found)


def _table(found: DatasetStats) -> Table:
    table = Table(title=f"{found.name}: {found.classes} classes", title_justify="left")
    for column in ("split", "images", "classes", "images\nper class", "width", "height", "MB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in found.splits.items():
        table.add_row(
            name,
            f"{split.images:,}",
            f"{split.classes:,}",
            *map(_spread, (split.images_per_class, split.width, split.height)),
            f"{split.bytes / 1e6:,.1f}",
        )
    table.caption = "least..most, median in brackets, if they differ"
    return table


def _spread(values: Spread) -> str:
    if values.least == values.most:
        return f"{values.least:,}"
    return f"{values.least:,}..{values.most:,}\n({values.median:,})"


def _numbers(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)
