"""localization-train: the boxes of ILSVRC's classes, trained, tested with the truth or a classifier's, registered."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from prefect.runtime import flow_run

from flows.artifacts import even, key_of, table
from flows.boxes import show_picture, through_the_gate
from flows.evaluate import SECONDS_TO_REGISTER
from flows.parameters import (
    DatasetName,
    Deepen,
    InitialReference,
    Launcher,
    MaxFailures,
    Mirror,
    Overrides,
    Parameter,
    Price,
    Profile,
    Proposals,
    Registered,
    RegisteredAs,
    Seed,
    Steps,
    ValidateAside,
    Workers,
)
from flows.shell import form, logged, outcome, phase
from flows.train import show_places, trained_and_tested
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection.results import read_results
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.localise import Localisation
from resnet_pipeline.jobs.localise import localise as localised
from resnet_pipeline.jobs.pictures import pictures_of
from resnet_pipeline.jobs.register import check_network_name
from resnet_pipeline.jobs.register_localiser import register_localiser
from resnet_pipeline.jobs.train import TrainedRun, run_config
from resnet_pipeline.records import JsonObject, plain
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

LocalisationNetwork = Annotated[
    Literal["resnet50", "resnet101", "rcnn-resnet50", "rcnn-resnet101"],
    Parameter(
        help="A network whose boxes are trained (the paper, Table 13: 101); rcnn-…: the R-CNN on top of another run's, "
        "its proposals."
    ),
]
Classes = Annotated[
    str | None,
    Parameter(help="The classifier whose five likeliest classes get boxes, too. Default: only the true classes do."),
]


def _named() -> str:
    given = flow_run.parameters
    return f"ilsvrc-loc/{given.get('network', 'resnet101')} · {given['dataset']} · seed {given.get('seed') or 0}"


@phase("localise", "localise · {dataset}")
def localise(run: str, dataset: str, classes: str | None, proposals: str | None) -> list[Localisation]:
    """Test the boxes with the true classes, and with a classifier's if one is named.

    A localiser's on one crop of each image and on whole images, an R-CNN's on its localiser's boxes of whole images.
    """
    workspace = Workspace.of()
    first, rcnns = (run, []) if proposals is None else (proposals, [run])
    protocols: list[Literal["center", "dense"]] = ["center", "dense"] if proposals is None else ["dense"]
    found = [localised(workspace, first, dataset, rcnns=rcnns, protocol=protocol) for protocol in protocols]
    if classes is not None:
        found.append(localised(workspace, first, dataset, rcnns=rcnns, classifier=classes))
    for each in found:
        _log.info("localisation error %.2f %% (%s, classes: %s)", each.error, each.protocol, each.classes)
    return found


@phase("register", "register · {trained.run.name}", timeout=SECONDS_TO_REGISTER)
def register(
    trained: TrainedRun, tests: list[Localisation], name: str | None, classes: str | None, proposals: str | None
) -> str:
    """Register the localiser, or the R-CNN with its own, with its errors and the classifier that names classes."""
    version = register_localiser(Workspace.of(), trained, tests, name=name, classifier=classes, proposals=proposals)
    _log.info("%s: %s", trained.run.config().recipe, version.describe())
    return str(version)


@phase("pictures", "pictures · {trained.run.name}", timeout=SECONDS_TO_REGISTER)
def draw(trained: TrainedRun, test: Localisation) -> Path:
    """Draw the boxes of a test, and keep them on Prefect's page."""
    dataset, file = open_dataset(Workspace.of(), test.dataset), trained.run.path / "pictures" / f"{test.test}.png"
    results = read_results(Path(test.results), dataset, test.split)
    pictures_of(dataset, results, file, of=trained.run.name, least_score=0.0)
    show_picture(file, trained.run.config().recipe, f"its boxes in {test.dataset}; white: what is there")
    return file


@flow(name="localization-train", flow_run_name=_named)
@logged
@form
def localization_train(
    dataset: DatasetName,
    network: LocalisationNetwork = "resnet101",
    steps: Steps = None,
    workers: Workers = None,
    launcher: Launcher = "ray",
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    seed: Seed = None,
    initial_weights: InitialReference = None,
    deepen: Deepen = False,
    proposals: Proposals = None,
    overrides: Overrides = None,
    registered: Registered = True,
    registered_as: RegisteredAs = None,
    profile: Profile = False,
    price: Price = None,
    validate_aside: ValidateAside = False,
    classes: Classes = None,
) -> JsonObject:
    """Train the boxes of ILSVRC's classes on a classifier, as the paper's appendix C, and test them as its Table 13.

    An R-CNN is trained on the boxes that another run, its proposals, has found, and is registered with that one. It
    becomes the champion of its name if it is better than the one before by more than chance.

    Started again with the same parameters, it resumes.
    """
    config = run_config(f"ilsvrc-loc/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(
        launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, profile=profile, price=price,
        validate_aside=validate_aside,
    )  # fmt: skip
    initial = InitialWeights.of(initial_weights, deepened=deepen)
    check_network_name(registered_as, registered=registered)
    done = trained_and_tested(
        config,
        dataset,
        launch,
        initial,
        lambda trained: outcome(localise(str(trained.run.path), dataset, classes, proposals)),
        proposals=proposals,
    )
    if done is None:
        return {}
    trained, found, links = done
    rows = [
        {
            "protocol": each.protocol,
            "classes": each.classes,
            "images": each.images,
            "localisation error": round(each.error, 2),
            "95 % interval": f"{each.interval[0]:.2f} to {each.interval[1]:.2f}",
        }
        for each in found
    ]
    title = f"Localisation error of {config.recipe} on {dataset}, percent (the paper, Table 13)"
    table(key_of("localisation", config.recipe), even(rows), title)
    version = outcome(register(trained, found, registered_as, classes, proposals)) if registered else None
    test = next(each for each in found if (each.protocol, each.classes) == ("dense", "truth"))
    pictures = {"pictures": outcome(draw(trained, test))}
    promotion = through_the_gate(trained, registered=registered)
    show_places(links, trained, registered=version is not None, **pictures)
    return {
        **plain(trained.result),
        "run": str(trained.run.path),
        "version": version,
        **promotion,
        **{name: str(file) for name, file in pictures.items()},
        "localisation": [plain(each) for each in found],
        "reused": trained.reused,
    }
