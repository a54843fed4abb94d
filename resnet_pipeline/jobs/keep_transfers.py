"""What is kept of tested detectors and localisers for the page of the paper's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import assignment
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.detection.results import facts_in, read_kept_results
from resnet_pipeline.detection.trained import protocol_of
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.transfers import TRANSFERS, options_of
from resnet_pipeline.jobs.detect import figures_of, results_path
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.localise import Localisation, kept_file
from resnet_pipeline.jobs.proposals import proposer_of
from resnet_pipeline.jobs.repeat import training, typed
from resnet_pipeline.recipes import changes_of, get_recipe
from resnet_pipeline.records import load_record
from resnet_pipeline.report.kept import KeptTransfer, keep
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_RECIPES = {row.recipe for table in TRANSFERS for row in table.rows if row.recipe}
_TESTS = {row.test for table in TRANSFERS for row in table.rows}


def keep_transfers(workspace: Workspace, folder: Path) -> list[Path]:
    """Keep what this workspace's finished detectors and localisers of the paper's tables came to; return the files.

    That is each test that `evaluate` or `ensemble` has kept a result file of, or `localise` its error. A run whose
    dataset is not here, or is another one now, is left out, and with it the ensembles that it is in.

    Example: ``keep_transfers(Workspace.of(), Path("docs/reproduction"))``
    """
    localisers: list[tuple[RunDirectory, Dataset]] = []
    detectors: dict[str, RunDirectory] = {}  # by their weights
    places: dict[tuple[str, str], Dataset] = {}  # where they were tested: dataset, and protocol of a plain test
    for path in sorted(workspace.runs.glob("*")) if workspace.runs.is_dir() else ():
        run = RunDirectory(path)
        if not (run.config_file.is_file() and run.result_file.is_file()):
            continue
        config, result = run.config(), run.result()
        if config.recipe not in _RECIPES or result is None:
            continue
        try:
            dataset = open_dataset(workspace, run.dataset().name)
        except UserError:
            continue
        if dataset.fingerprint != run.dataset().fingerprint:
            continue
        if config.task == "localisation":
            localisers.append((run, dataset))
        else:
            detectors[result.weights_sha256] = run
            places[dataset.name, protocol_of(config)] = dataset
    found = [each for run, dataset in localisers for each in _localised(run, dataset)]
    for (_, protocol), dataset in places.items():
        found += [each for test in sorted(_TESTS) for each in _detected(workspace, dataset, protocol, test, detectors)]
    return [keep(folder, each) for each in found]


def _localised(run: RunDirectory, dataset: Dataset) -> Iterator[KeptTransfer]:
    """Yield what is kept of the tests of a localiser, or of an R-CNN, and of ensembles that it is the first of."""
    for test in sorted(_TESTS):
        protocol, _, predicted = test.partition("-")
        file = kept_file(run.path, "center" if protocol == "center" else "dense", predicted=bool(predicted))
        for each in [file, *sorted(file.parent.glob(f"{file.stem}-with-*.json"))]:
            if protocol not in ("center", "dense") or not each.is_file():
                continue
            kept = load_record(Localisation, each)
            runs = [run, *(RunDirectory(Path(path)) for path in kept.rcnns[1:])]
            if all(one.config_file.is_file() for one in runs):
                name = run.name if each == file else f"{run.name}-{each.stem}"
                command = None if each == file else _localising(kept)
                figures = {"error": (kept.error, *kept.interval)}
                yield _kept(runs, dataset, test, kept.images, figures, name, command)


def _localising(kept: Localisation) -> str:
    """Return the command that tests an ensemble of localisers and R-CNNs."""
    first = [Path(path).name for path in kept.run.split(" + ")]
    second = [word for path in kept.rcnns for word in ("--rcnn", Path(path).name)]
    classes = [] if kept.classes == "truth" else ["--classes", kept.classes]
    return typed("localise", *first, *second, "--dataset", kept.dataset, *classes)


def _detected(
    workspace: Workspace, dataset: Dataset, protocol: str, test: str, detectors: Mapping[str, RunDirectory]
) -> Iterator[KeptTransfer]:
    """Yield what is kept of the detectors, and ensembles of them, that were tested on a dataset's images in a way."""
    split = dataset.eval_split
    for path, facts in facts_in(results_path(workspace, dataset.fingerprint, split, protocol + test, "").parent):
        members = facts.members or (facts.weights_sha256,)
        runs = [detectors[digest] for digest in members if digest in detectors]
        kinds = {(config.recipe, _context(config)) for config in (run.config() for run in runs)}
        found = read_kept_results(path, facts, dataset) if len(runs) == len(members) and len(kinds) == 1 else None
        if found is None:
            continue
        boxes, _, voc = figures_of(dataset, found[0], masks=False, voc="11")
        whole, half = boxes.intervals or ((boxes.ap, boxes.ap), (boxes.ap50, boxes.ap50))  # none: nothing was found
        figures = {"AP": (boxes.ap, *whole), "AP50": (boxes.ap50, *half)}
        if voc is not None:
            figures["mAP"] = (voc[0], *(voc[1] or (voc[0], voc[0])))
        name = runs[0].name if len(runs) == 1 else f"ensemble-{facts.weights_sha256[:12]}"
        yield _kept(runs, dataset, test, len(found[0].found), figures, name)


def _kept(
    runs: Sequence[RunDirectory],
    dataset: Dataset,
    test: str,
    images: int,
    figures: dict[str, tuple[float, float, float]],
    name: str,
    command: str | None = None,
) -> KeptTransfer:
    configs = [run.config() for run in runs]
    config = configs[0]
    own = ("steps", "seed", "model.initial_weights", "model.initial_head", "detection.context", "regions.localiser")
    changes = {
        assignment(key, value): None for each in configs for key, value in changes_of(each).items() if key not in own
    }
    command = command or training(
        config, dataset.name, initial=InitialWeights.read(runs[0]), proposals=proposer_of(runs[0])
    )
    if len(runs) > 1 and config.detection is not None:
        names = " ".join(run.name for run in runs)
        command = f"resnet-pipeline ensemble {names} --dataset {dataset.name}{options_of(test)}"
    return KeptTransfer(
        run=name,
        test=test,
        recipe=config.recipe,
        context=_context(config),
        steps=min(each.steps for each in configs),
        paper_steps=get_recipe(config.recipe).steps,
        changes=tuple(changes),
        dataset=f"{dataset.name} ({dataset.fingerprint[:12]}, {dataset.manifest.layout})",
        images=images,
        figures={key: (round(value, 3), round(low, 3), round(high, 3)) for key, (value, low, high) in figures.items()},
        command=command,
        members=tuple(run.name for run in runs) if len(runs) > 1 else (),
    )


def _context(config: RunConfig) -> bool:
    return config.detection is not None and config.detection.context
