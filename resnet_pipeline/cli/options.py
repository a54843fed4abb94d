"""The options that several commands share, and how a result is written for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import write_json


def complete_recipe(incomplete: str) -> list[str]:
    """Return the recipes that a word may become, for the shell's completion."""
    from resnet_pipeline.recipes import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_dataset(context: typer.Context, incomplete: str) -> list[str]:
    """Return the staged datasets that a word may become, for the shell's completion; none if they can't be listed."""
    from resnet_pipeline.data.dataset import dataset_names
    from resnet_pipeline.workspace import Workspace

    try:
        names = dataset_names(Workspace.of(context.params.get("root")))
    except UserError:
        return []
    return sorted(name for name in names if name.startswith(incomplete))


Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        help="Where everything is kept: datasets, runs, scores, reports. Default: RESNET_PIPELINE_ROOT, else ./work",
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars or lines.")]
DatasetName = Annotated[
    str, typer.Option("--dataset", help="The name that `stage` was given.", autocompletion=complete_dataset)
]
Images = Annotated[int | None, typer.Option(min=1, help="Test on this many evenly spaced images only.")]
Split = Annotated[str | None, typer.Option(help="Split to test on. Default: val, or test where there is no val.")]
ProtocolName = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="center: one crop. 10-crop: corners and centre, mirrored too (Tables 2, 3). "
        "multi-scale: the whole image at several sizes (Table 4).",
    ),
]
Scales = Annotated[
    str | None, typer.Option(metavar="N,N,…", help="Shorter sides to average over, instead of each network's own.")
]
Average = Annotated[str, typer.Option(help="What is averaged over views: softmax (the authors) or logits.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Tasks on Ray at a time. Default: all of RAY_ADDRESS's cluster, else this process alone."),
]
Half = Annotated[bool, typer.Option("--float16", help="Keep the scores in half the bytes.")]
OptionalDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="The name that `stage` was given; not needed for score files.",
        autocompletion=complete_dataset,
    ),
]
MODEL = (
    "A run directory, a registered model's NAME or NAME@ALIAS, models:/…, runs:/ID, NETWORK=WEIGHTS-FILE, "
    "torchvision:NAME or timm:NAME"
)
Models = Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help=f"{MODEL}.", show_default=False)]
Members = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help=f"{MODEL}, or a score file (….parquet).", show_default=False),
]


def write_result(path: Path | None, value: Any) -> None:
    """Write a result as JSON where a path was given; UserError where it can't be written."""
    if path is None:
        return
    try:
        write_json(path, value)
    except OSError as error:
        raise UserError(f"--json {path} can't be written: {error.strerror or error}") from None
