"""What is kept of tested detectors and localisers for the page of the paper's tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from resnet_pipeline.config_io import assignment
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.detection.results import ResultsFacts, read_kept_results
from resnet_pipeline.detection.trained import protocol_of
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.transfers import TRANSFERS
from resnet_pipeline.jobs.detect import figures_of, results_path
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.localise import Localisation, kept_file
from resnet_pipeline.jobs.repeat import training
from resnet_pipeline.recipes import changes_of, get_recipe
from resnet_pipeline.records import load_record
from resnet_pipeline.report.kept import KeptTransfer, keep
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_RECIPES = {row.recipe for table in TRANSFERS for row in table.rows if row.recipe}
_TESTS = {row.test for table in TRANSFERS for row in table.rows}


def keep_transfers(workspace: Workspace, folder: Path) -> list[Path]:
    """Keep what this workspace's finished detectors and localisers of the paper's tables came to; return the files.

    That is each test that `evaluate` has kept a result file of, or `localise` its error. A run whose dataset is not
    here, or is another one now, is left out.

    Example: ``keep_transfers(Workspace.of(), Path("docs/reproduction"))``
    """
    found = []
    for path in sorted(workspace.runs.glob("*")) if workspace.runs.is_dir() else ():
        run = RunDirectory(path)
        if not (run.config_file.is_file() and run.result_file.is_file()):
            continue
        if run.config().recipe not in _RECIPES:
            continue
        try:
            dataset = open_dataset(workspace, run.dataset().name)
        except UserError:
            continue
        if dataset.fingerprint == run.dataset().fingerprint:
            found += [keep(folder, each) for each in _tested(workspace, run, dataset)]
    return found


def _tested(workspace: Workspace, run: RunDirectory, dataset: Dataset) -> Iterator[KeptTransfer]:
    config, result, split = run.config(), run.result(), dataset.eval_split
    assert result is not None  # the caller has looked
    if config.localisation is not None:
        for test in sorted(_TESTS):
            protocol, _, predicted = test.partition("-")
            file = kept_file(run.path, "center" if protocol == "center" else "dense", predicted=bool(predicted))
            if protocol in ("center", "dense") and file.is_file():
                kept = load_record(Localisation, file)
                yield _kept(run, dataset, test, kept.images, {"error": (kept.error, *kept.interval)})
        return
    for test in sorted(_TESTS):
        protocol = protocol_of(config) + test
        path = results_path(workspace, dataset.fingerprint, split, protocol, result.weights_sha256)
        facts = ResultsFacts(
            weights_sha256=result.weights_sha256, dataset_fingerprint=dataset.fingerprint, split=split,
            protocol=protocol, seconds=0.0,
        )  # fmt: skip
        found = read_kept_results(path, facts, dataset)
        if found is not None:
            boxes, _, voc = figures_of(dataset, found[0], masks=False, voc="11")
            whole, half = boxes.intervals or ((boxes.ap, boxes.ap), (boxes.ap50, boxes.ap50))  # none: nothing was found
            figures = {"AP": (boxes.ap, *whole), "AP50": (boxes.ap50, *half)}
            if voc is not None:
                figures["mAP"] = (voc[0], *(voc[1] or (voc[0], voc[0])))
            yield _kept(run, dataset, test, len(found[0].found), figures)


def _kept(
    run: RunDirectory, dataset: Dataset, test: str, images: int, figures: dict[str, tuple[float, float, float]]
) -> KeptTransfer:
    config = run.config()
    own = ("steps", "seed", "model.initial_weights", "model.initial_head", "detection.context")
    changes = {key: value for key, value in changes_of(config).items() if key not in own}
    return KeptTransfer(
        run=run.name,
        test=test,
        recipe=config.recipe,
        context=config.detection is not None and config.detection.context,
        steps=config.steps,
        paper_steps=get_recipe(config.recipe).steps,
        changes=tuple(assignment(*change) for change in changes.items()),
        dataset=f"{dataset.name} ({dataset.fingerprint[:12]}, {dataset.manifest.layout})",
        images=images,
        figures={
            name: (round(value, 3), round(low, 3), round(high, 3)) for name, (value, low, high) in figures.items()
        },
        command=training(config, dataset.name, initial=InitialWeights.read(run)),
    )
