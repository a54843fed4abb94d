"""The commands that test networks, and those that work from kept scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.parameters import (
    AllowPartial,
    Average,
    Combined,
    Contributions,
    DatasetName,
    FitWeights,
    Greedy,
    Half,
    Images,
    Members,
    Models,
    OptionalDataset,
    OptionalModels,
    Price,
    ProtocolName,
    Refine,
    RegisteredAs,
    Scales,
    ScoringWorkers,
    Split,
    Voc,
)  # fmt: skip
from resnet_pipeline.cli.console import say
from resnet_pipeline.cli.options import Elsewhere, Json, Root, write_result
from resnet_pipeline.cli.terminal import (
    ErrorLine,
    print_errors,
    print_fitted,
    print_member_errors,
    print_network,
    print_pairs,
    print_precision,
    print_responses,
)
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.records import plain_record
from resnet_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from resnet_pipeline.jobs.detect import DetectorEvaluation


def evaluate(
    dataset: DatasetName,
    models: OptionalModels = None,
    protocol: ProtocolName = "center",
    root: Root = None,
    split: Split = None,
    scales: Scales = None,
    average: Average = "softmax",
    images: Images = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Weights trained elsewhere: a file, torchvision:NAME or timm:NAME."),
    ] = None,
    network: Annotated[str | None, typer.Option(help="The network that the file of --weights is for.")] = None,
    ema: Annotated[
        bool,
        typer.Option("--ema", help="Take the averaged weights of --weights, if it has both; as NETWORK=FILE#ema."),
    ] = False,
    workers: ScoringWorkers = None,
    half: Half = False,
    allow_partial: AllowPartial = False,
    price: Price = None,
    hardware: Elsewhere = None,
    voc: Voc = None,
    refine: Refine = False,
    json_file: Json = None,
) -> None:
    """Test networks under one of the paper's protocols; scores are kept, so nothing is computed twice.

    Detectors are tested on whole images: what they find is kept as result files in COCO's form, and gives its average
    precision. With --scales their regions are pooled at several sizes of the image, with --refine again at their boxes.
    After an interruption the same command resumes.
    """
    from resnet_pipeline.jobs.evaluate import TestRow, evaluate_models
    from resnet_pipeline.jobs.tasks import all_detectors, check_no_detectors

    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, images=images, scales=scales, average=average,
        workers=workers, half=half, allow_partial=allow_partial, price=price,
    )  # fmt: skip
    references = [*(models or []), *_weights(weights, network, models, ema=ema)]
    if all_detectors(Workspace.of(root), references):
        if hardware is not None:
            raise UserError("what a detector's test takes elsewhere is not known: leave --hardware out")
        from resnet_pipeline.jobs.detect import detection_test, evaluate_detectors

        on = detection_test(test, voc=voc, refine=refine)
        _write_precision(evaluate_detectors(Workspace.of(root), references, on), dataset, json_file)
        return
    check_no_detectors(voc=voc, refine=refine)
    if hardware is not None:
        from resnet_pipeline.jobs.hardware import plans_of_test

        plans = plans_of_test(Workspace.of(root), references, test, hardware, price)
        for plan in plans:
            say(plan.describe())
        write_result(json_file, {"dataset": dataset, "protocol": protocol, "models": plans})
        return
    evaluations = evaluate_models(Workspace.of(root), references, test)
    rows = [TestRow.of(evaluation) for evaluation in evaluations]
    print_errors(f"{protocol} on {dataset}", [ErrorLine(row.model, row.tested, row.images_per_second) for row in rows])
    write_result(json_file, {"dataset": dataset, "protocol": protocol, "models": rows})


def ensemble(
    members: Members,
    dataset: OptionalDataset = None,
    protocol: ProtocolName = "10-crop",
    root: Root = None,
    split: Split = None,
    scales: Scales = None,
    average: Average = "softmax",
    images: Images = None,
    combine: Combined = "probabilities",
    fit_weights: FitWeights = False,
    greedy: Greedy = False,
    contributions: Contributions = False,
    workers: ScoringWorkers = None,
    registered_as: RegisteredAs = None,
    allow_partial: AllowPartial = False,
    price: Price = None,
    voc: Voc = None,
    refine: Refine = False,
    json_file: Json = None,
) -> None:
    """Average the scores of several networks and print the ensemble's error.

    Detectors are tested together: on the union of their proposals, with their region classifiers averaged.

    `ilsvrc2015` stands for the paper's six models: the newest registered versions of their recipes, steps and seeds.
    """
    from resnet_pipeline.jobs.analyse import ensemble as combined
    from resnet_pipeline.jobs.analyse import evaluations_of, score_sources
    from resnet_pipeline.jobs.register import check_registrable, register_ensemble_of
    from resnet_pipeline.jobs.tasks import all_detectors, check_no_detectors

    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, images=images, scales=scales, average=average, workers=workers,
        allow_partial=allow_partial, price=price,
    ) if dataset else None  # fmt: skip
    if all_detectors(Workspace.of(root), members):
        from resnet_pipeline.jobs.detect import detection_test, evaluate_detectors_together

        on = detection_test(test, voc=voc, refine=refine, registered_as=registered_as)
        _write_precision([evaluate_detectors_together(Workspace.of(root), members, on)], on.dataset, json_file)
        return
    check_no_detectors(voc=voc, refine=refine)
    check_registrable(registered_as, members, test, combine=combine)
    sources = score_sources(Workspace.of(root), members, test)
    result = combined(sources, combine=combine, fit=fit_weights, greedy=greedy, contributions=contributions)
    lines = [ErrorLine(row.model, row.tested) for row in result.members]
    print_errors(
        f"{protocol} on {dataset}" if dataset else "from score files",
        [*lines, ErrorLine(f"ensemble of {len(sources)}", result.ensemble)],
    )
    if result.paper:
        say(f"The paper: top-5 error {result.paper.top5} % ({result.paper.source}, not these images)")
    if result.fitted:
        print_fitted([source.name for source in sources], result.fitted)
    if result.greedy:
        print_member_errors("Best member added at a time", result.greedy)
    if result.without:
        print_member_errors("The ensemble without one member", result.without)
    written = {"dataset": dataset, "protocol": protocol, **plain_record(result)}
    if registered_as and test:
        version = register_ensemble_of(Workspace.of(root), registered_as, evaluations_of(sources), test)
        say(f"ensemble of {len(sources)}: {version.describe()}")
        written["version"] = version.uri
    write_result(json_file, written)


def _write_precision(found: Sequence[DetectorEvaluation], dataset: str, json_file: Path | None) -> None:
    print_precision(f"objects of {found[0].split} on {dataset}", found)
    write_result(json_file, {"dataset": dataset, "models": [each.row() for each in found]})


def analyse(
    models: Members,
    dataset: OptionalDataset = None,
    protocol: ProtocolName = "10-crop",
    root: Root = None,
    split: Split = None,
    scales: Scales = None,
    average: Average = "softmax",
    images: Images = None,
    real_labels: Annotated[
        Path | None, typer.Option(help="JSON of sample name → list of right classes (ReaL): the error against those.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the reliability diagram: .svg, .png or .pdf.")] = None,
    most: Annotated[int, typer.Option(min=1, help="How many classes and confusions to show.")] = 5,
    json_file: Json = None,
) -> None:
    """Say more of networks from their scores: intervals, calibration, worst classes, confusions, how far they agree."""
    from resnet_pipeline.data.dataset import open_dataset
    from resnet_pipeline.evaluation.real_labels import read_real_labels
    from resnet_pipeline.jobs.analyse import analyse as analysed
    from resnet_pipeline.jobs.analyse import score_sources

    workspace = Workspace.of(root)
    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, images=images, scales=scales, average=average
    ) if dataset else None  # fmt: skip
    sources = score_sources(workspace, models, test)
    classes = open_dataset(workspace, dataset).classes if dataset else None
    labels = read_real_labels(real_labels) if real_labels else None
    found = analysed(sources, classes=classes, real_labels=labels, most=most)
    lines = [ErrorLine(network.model, network.tested) for network in found.models]
    print_errors(f"{protocol} on {dataset}" if dataset else "from score files", lines)
    for network in found.models:
        print_network(network, most)
    if found.pairs:
        print_pairs(found.pairs)
    if figure is not None:
        from resnet_pipeline.report.evaluation_figures import reliability_figure, save_figure

        save_figure(reliability_figure(found.calibrations), figure)
        say(figure)
    write_result(json_file, {"dataset": dataset, "protocol": protocol, "models": found.models, "pairs": found.pairs})


def submission(
    models: Members,
    dataset: DatasetName,
    classes: Annotated[
        Path, typer.Option(help="The ids of the classes: the development kit's meta.mat, or lines of wnid and id.")
    ],
    output: Annotated[Path, typer.Option(help="The file to write: five ids per test image.")],
    protocol: ProtocolName = "multi-scale",
    root: Root = None,
    split: Annotated[str, typer.Option(help="The split of the test images.")] = "test",
    scales: Scales = None,
    average: Average = "softmax",
    workers: ScoringWorkers = None,
    allow_partial: AllowPartial = False,
) -> None:
    """Write the file that the ILSVRC classification test server takes, from one network or the mean of several."""
    from resnet_pipeline.jobs.analyse import score_sources, submit

    workspace = Workspace.of(root)
    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, scales=scales, average=average, workers=workers,
        allow_partial=allow_partial,
    )  # fmt: skip
    sources = score_sources(workspace, models, test)
    images = submit(workspace, sources, dataset, classes, output)
    say(f"{output}: {images:,} images, five classes each")


def check_submission(
    file: Annotated[Path, typer.Argument(help="The submission file.", show_default=False)],
    images: Annotated[int, typer.Option(min=1, help="How many test images there are.")] = 100_000,
) -> None:
    """Say whether the ILSVRC test server would take a file; names the first bad line."""
    from resnet_pipeline.evaluation.submission import check_submission as check

    check(file, images=images)
    say(f"{file}: good, {images:,} images")


def responses(
    models: Models,
    dataset: DatasetName,
    root: Root = None,
    split: Split = None,
    images: Annotated[int, typer.Option(min=1, help="Evenly spaced images of the split to look at.")] = 1000,
    figure: Annotated[Path | None, typer.Option(help="Also draw the paper's figure 7: .svg, .png or .pdf.")] = None,
    json_file: Json = None,
) -> None:
    """Measure how strongly each 3×3 layer responds (figure 7): its output's standard deviation after batch norm."""
    from resnet_pipeline.jobs.responses import measure_responses

    found = measure_responses(Workspace.of(root), models, dataset, split=split, images=images)
    print_responses({name: values.tolist() for name, values in found.items()})
    if figure is not None:
        from resnet_pipeline.report.evaluation_figures import responses_figure, save_figure

        save_figure(responses_figure(found), figure)
        say(figure)
    write_result(
        json_file, {name: {"std": v.tolist(), "sorted": sorted(v.tolist(), reverse=True)} for name, v in found.items()}
    )


def localise(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="A localiser: a run of ilsvrc-loc/…, or registered. Several go with --rcnn alone."
        ),
    ],
    dataset: DatasetName,
    rcnn: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="One of ilsvrc-loc/rcnn-… that scores the boxes again; several are averaged."
        ),
    ] = None,
    root: Root = None,
    split: Split = None,
    protocol: Annotated[
        Literal["center", "dense"], typer.Option(help="center: one crop. dense: whole images (the paper, Table 13).")
    ] = "dense",
    scales: Scales = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The classifier whose five likeliest classes get boxes; else the truth."),
    ] = None,
    workers: ScoringWorkers = None,
    json_file: Json = None,
) -> None:
    """Test boxes of classes: ILSVRC's localisation error (the paper, appendix C)."""
    from resnet_pipeline.jobs.localise import localise as localised

    found = localised(
        Workspace.of(root), runs, dataset, rcnns=rcnn or (), split=split, protocol=protocol,
        scales=tuple(scales) if scales else None, classifier=classes, workers=workers,
    )  # fmt: skip
    low, high = found.interval
    whose = "the true classes" if classes is None else f"the five likeliest classes of {classes}"
    say(
        f"localisation error {found.error:.2f} % (95 % interval {low:.2f} to {high:.2f}) with {whose} on "
        f"{found.images:,} images of {found.split}, {protocol}{', by R-CNN' if 'regions' in found.test else ''}"
    )
    write_result(json_file, plain_record(found))


COMMANDS: Sequence[Callable[..., None]] = (
    evaluate, ensemble, localise, analyse, responses, submission, check_submission,
)  # fmt: skip


def _weights(weights: str | None, network: str | None, models: Sequence[str] | None, *, ema: bool) -> list[str]:
    """Return the MODEL reference that --weights and --network stand for; UserError if it is incomplete."""
    if ema and (weights is None or network is None):
        raise UserError("--ema needs --weights FILE and --network; write NETWORK=FILE#ema for a MODEL")
    if weights is None:
        if network is not None:
            raise UserError(f"--network {network} needs --weights FILE")
        if not models:
            raise UserError("name a MODEL, or --weights")
        return []
    if network is not None:
        from resnet_pipeline.jobs.references import EMA

        return [f"{network}={weights}{EMA if ema else ''}"]
    from resnet_pipeline.evaluation.published_weights import REFERENCE_SOURCES

    if weights.startswith(REFERENCE_SOURCES):
        return [weights]
    raise UserError(f"--weights {weights} needs --network, the name of the network that the file is for")
