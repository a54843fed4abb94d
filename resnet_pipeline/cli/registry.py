"""The commands of the registry: the gate before the champion, predictions, and a page on a model's mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.parameters import MODEL, DatasetName, Images, ProtocolName, Split
from resnet_pipeline.cli.console import say
from resnet_pipeline.cli.options import Json, Root, write_result
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.workspace import Workspace


def promote(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="models:/NAME@ALIAS, models:/NAME/VERSION, or NAME for its candidate.",
            show_default=False,
        ),
    ],
    protocol: ProtocolName = "10-crop",
    top: Annotated[int, typer.Option(help="The error to compare: 1 for top-1, 5 for top-5.")] = 1,
    root: Root = None,
    json_file: Json = None,
) -> None:
    """Make a registered version the champion, if it is better than the champion by more than chance.

    Both need scores of the whole split on the same dataset; the errors are compared image by image. A refusal gives
    the reasons, with exit status 2. A first champion needs only the scores. Detectors are compared by their boxes'
    average precision, over samples of the images, localisers by their localisation error.
    """
    from resnet_pipeline.jobs.promote import promote as promote_job
    from resnet_pipeline.jobs.promote_results import promote_by_results
    from resnet_pipeline.jobs.tasks import named_task

    if top not in (1, 5):
        raise UserError(f"--top must be 1 or 5, not {top}")
    if named_task(Workspace.of(root), model) == "classification":
        promotion = promote_job(Workspace.of(root), model, protocol, top=top)  # type: ignore[arg-type]
    else:
        promotion = promote_by_results(Workspace.of(root), model)
    version = f"{promotion.version.name} version {promotion.version.version}"
    if promotion.before and promotion.before.uri == promotion.version.uri:
        say(f"{version} is the champion already")
    else:
        say(f"{version} is the champion now: {promotion.reason}")
        say(f"serve it:  {promotion.serve}")
    write_result(
        json_file,
        {
            "version": promotion.version.uri,
            "before": promotion.before.uri if promotion.before else None,
            "reason": promotion.reason,
            "comparison": asdict(promotion.comparison) if promotion.comparison else None,
        },
    )


def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"{MODEL}, or a registered ensemble.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(help="Images, at any depth; or one image.", show_default=False)],
    output: Annotated[Path, typer.Option(help="The file: NAME.csv, NAME.parquet or NAME.json.", show_default=False)],
    protocol: ProtocolName = "center",
    top: Annotated[int, typer.Option(min=1, help="How many of the best classes to write.")] = 5,
    dataset: Annotated[
        str | None, typer.Option(help="A staged dataset whose class names to use for weights that have none.")
    ] = None,
    root: Root = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Of boxes: a folder for a picture of each image with what was found.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Of a localiser: the classifier whose five likeliest classes get boxes."),
    ] = None,
    named: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Of a localiser: a class that gets a box.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Name the best classes of every image in a folder, with their probabilities; a detector: its objects.

    A detector's output has a row for each object: class, score, and box in pixels, with masks as COCO's run lengths. A
    localiser's has a box for each class that is named with --class, or is one of a classifier's five likeliest.

    The images are decoded, resized and cropped as in `evaluate`. Files that can't be decoded are listed, in the output
    with the reason, and don't stop it.
    """
    from resnet_pipeline.jobs.predict import predict_folder
    from resnet_pipeline.jobs.predict_objects import predict_objects
    from resnet_pipeline.jobs.tasks import named_task

    if named_task(Workspace.of(root), model) != "classification":
        found = predict_objects(
            Workspace.of(root), model, folder, output, pictures=pictures, classes=named or (), classifier=classes
        )
    elif pictures is not None or classes is not None or named:
        raise UserError(f"--pictures, --classes and --class are for detectors and localisers, and {model} is neither")
    else:
        found = predict_folder(
            Workspace.of(root), model, folder, output, protocol=protocol, top=top, dataset_name=dataset
        )
    broken = f", {len(found.broken):,} files can't be used:" if found.broken else ""
    say(f"{found.path}: {found.images:,} images{broken}")
    for name, reason in found.broken[:10]:
        say(f"  {name}: {reason}")
    if len(found.broken) > 10:
        say(f"  and {len(found.broken) - 10:,} more, in the output's column `error`")
    files = [{"file": file, "reason": reason} for file, reason in found.broken]
    write_result(json_file, {"output": str(found.path), "images": found.images, "broken": files})


def explore(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help=f"{MODEL}, or a registered ensemble.", show_default=False),
    ],
    dataset: DatasetName,
    protocol: ProtocolName = "center",
    root: Root = None,
    split: Split = None,
    images: Images = None,
    mistakes: Annotated[int, typer.Option(min=0, help="How many of the worst mistakes to show.")] = 48,
    output: Annotated[
        Path | None, typer.Option(help="The page. Default: reports/errors-….html under the root.")
    ] = None,
) -> None:
    """Write an HTML page on a network's mistakes: the worst ones, confusions, errors per class, reliability.

    Several networks, or a registered ensemble, are averaged. Scores that are missing are computed first. Of detectors
    it shows the images where most is missed, confused or found where nothing is.
    """
    from resnet_pipeline.jobs.explore import explore as explore_job
    from resnet_pipeline.jobs.tasks import all_detectors

    if all_detectors(Workspace.of(root), models):
        from resnet_pipeline.jobs.detect import DetectionTest
        from resnet_pipeline.jobs.explore_detector import explore_detectors

        of = DetectionTest(dataset=dataset, split=split, images=images)
        say(explore_detectors(Workspace.of(root), models, of, mistakes=mistakes, output=output))
        return

    test = TestSpec(dataset=dataset, protocol=protocol, split=split, images=images)
    say(explore_job(Workspace.of(root), models, test, mistakes=mistakes, output=output))


COMMANDS: Sequence[Callable[..., None]] = (promote, predict, explore)
