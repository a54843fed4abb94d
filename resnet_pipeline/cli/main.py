"""The command line: a thin door to the jobs and the flows.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.parameters import (
    CheckMd5,
    DatasetName,
    Deepen,
    DemoWorkers,
    Holdout,
    InitialReference,
    Launcher,
    MaxFailures,
    MaxRefused,
    MaxShorterSide,
    MaxValue,
    Mirror,
    NewName,
    Overrides,
    Price,
    Profile,
    Proposals,
    Registered,
    RegisteredAs,
    Replace,
    Seed,
    Source,
    StagingWorkers,
    Steps,
    ValidateAside,
    Workers,
)
from resnet_pipeline import __version__
from resnet_pipeline.cli import data as cli_data
from resnet_pipeline.cli import evaluation as cli_evaluation
from resnet_pipeline.cli import finetune as cli_finetune
from resnet_pipeline.cli import recipes as cli_recipes
from resnet_pipeline.cli import registry as cli_registry
from resnet_pipeline.cli import reproduce as cli_reproduce
from resnet_pipeline.cli import runs as cli_runs
from resnet_pipeline.cli import services as cli_services
from resnet_pipeline.cli.console import say
from resnet_pipeline.cli.options import Elsewhere, Json, Root, command, complete_recipe
from resnet_pipeline.cli.options import write_result as _write
from resnet_pipeline.cli.terminal import told
from resnet_pipeline.errors import StoppedError, ToldError, UserError
from resnet_pipeline.names import printable
from resnet_pipeline.records import plain
from resnet_pipeline.report.terminal import print_table, render_table
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_NO_HOME = "Could not determine home directory."  # pathlib's words

app = typer.Typer(
    name="resnet-pipeline",
    help="Train, test and register the networks of 'Deep Residual Learning for Image Recognition', from raw images on. "
    "New here? Start with: resnet-pipeline demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_data.app, name="data", no_args_is_help=True)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"resnet-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line; what the user can mend is one line and exit status 2, never a traceback."""
    _open_what_is_closed()
    if sys.stdout is None:
        _tell(UserError("standard output is closed, so no result can be shown; direct it to a file, or to /dev/null"))
        sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the terminal has no character for
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            _flush()
    except StoppedError as error:
        _tell(error)
        sys.exit(130)
    except ToldError:
        sys.exit(2)
    except UserError as error:
        _tell(error)
        sys.exit(2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            _tell(UserError(f"there is no room for a file or the output ({error.strerror}); make some and start again"))
        elif error.filename is None or error.strerror is None:
            raise
        else:
            _tell(UserError(f"{error.filename} can't be used: {error.strerror}"))
        sys.exit(2)
    except RuntimeError as error:
        if str(error) != _NO_HOME:
            raise
        _tell(UserError("this user has no home directory, which MLflow needs, and ~ in paths: set HOME to a folder"))
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nresnet-pipeline: interrupted", file=sys.stderr)
        sys.exit(130)


def _open_what_is_closed() -> None:
    """Let standard input and error be /dev/null if they are closed.

    Else the next files that are opened would take their numbers, and what libraries write to them.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, PTH123 - for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123


def _flush() -> None:
    """Write what is left of the output now; if that can't be done, Python shall not try it again at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever reads no further wants no message
            raise


def _tell(error: UserError) -> None:
    from resnet_pipeline.settings import cleaned

    print(f"resnet-pipeline: {printable(cleaned(str(error)))}", file=sys.stderr)


@app.command()
@command
def demo(
    root: Root = None,
    workers: DemoWorkers = 2,
) -> None:
    """From images to a registered ensemble on built-in data, in minutes, with nothing else running.

    Handwritten digits are staged, three networks trained with two workers, tested, registered in MLflow, and averaged;
    the last lines name the report and the commands that open MLflow's and Prefect's pages. Run again, it reuses what
    is finished.
    """
    from resnet_pipeline.services.temporary_prefect import TemporaryPrefect
    from resnet_pipeline.settings import ROOT_VARIABLE

    workspace = Workspace.of(root)
    os.environ[ROOT_VARIABLE] = str(workspace.root)
    _log.info("Everything is kept under %s. Starting Prefect's temporary API.", workspace.root)
    prefect = TemporaryPrefect(workspace)
    from flows.demo import run_demo  # some seconds, in which Prefect starts

    result = run_demo(workspace, prefect, workers=workers)
    print_table(render_table(result.report))
    if result.reused:
        say(f"{result.reused} of {result.networks} networks were finished before and reused.")
    say(f"Took {result.seconds:.0f} s.\n")
    say(f"MLflow's page on these runs and models:   {result.mlflow}")
    say(f"Prefect's page on these flow runs:        {result.prefect}")
    say(f"Report: {result.path}")


for function in cli_services.COMMANDS:
    app.command()(command(function))


@app.command()
@command
def stage(
    source: Source,
    name: NewName,
    root: Root = None,
    workers: StagingWorkers = None,
    max_refused: MaxRefused = 0.01,
    holdout: Holdout = 0,
    max_shorter_side: MaxShorterSide = None,
    max_value: MaxValue = None,
    check_md5: CheckMd5 = True,
    replace: Replace = False,
    json_file: Json = None,
) -> None:
    """Audit every image of a source and pack the good ones into shards; after an interruption it resumes."""
    from resnet_pipeline.jobs.stage import describe, stage_dataset, summary
    from resnet_pipeline.staging.stage import Options

    staged = stage_dataset(
        Workspace.of(root),
        source,
        name,
        options=Options(holdout=holdout, max_shorter_side=max_shorter_side, max_value=max_value, check_md5=check_md5),
        workers=workers,
        max_refused=max_refused,
        replace=replace,
    )
    say(describe(staged))
    _write(json_file, summary(staged))


@app.command()
@command
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe: see `resnet-pipeline recipes`.", show_default=False, autocompletion=complete_recipe
        ),
    ],
    dataset: DatasetName,
    root: Root = None,
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
    hardware: Elsewhere = None,
    validate_aside: ValidateAside = False,
    json_file: Json = None,
) -> None:
    """Train a recipe on a staged dataset; after an interruption the same command resumes."""
    if launcher == "torchrun":  # before PyTorch is imported: its warnings would come from every process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from resnet_pipeline.jobs.crew import found_by_all
    from resnet_pipeline.jobs.hardware import plan_of
    from resnet_pipeline.jobs.initial_weights import InitialWeights, begun_with
    from resnet_pipeline.jobs.launch import Launch
    from resnet_pipeline.jobs.proposals import proposed
    from resnet_pipeline.jobs.register import check_network_name
    from resnet_pipeline.jobs.register_trained import register_trained
    from resnet_pipeline.jobs.train import run_config, train_run

    with found_by_all(launcher):
        config = run_config(recipe, overrides, steps=steps, seed=seed)
        check_network_name(registered_as, registered=registered)
        initial = InitialWeights.of(initial_weights, deepened=deepen)
    workspace = Workspace.of(root)
    if hardware is not None:
        plan = plan_of(workspace, config, dataset, hardware, price)
        say(plan.describe())
        _write(json_file, plan)
        return
    launch = Launch(
        launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, profile=profile, price=price,
        validate_aside=validate_aside,
    )  # fmt: skip
    with found_by_all(launcher):
        config, network = begun_with(workspace, config, dataset, initial)
        config, boxes = proposed(workspace, config, dataset, proposals)
    trained = train_run(workspace, config, dataset, launch, network, boxes)
    if trained is None:
        return  # rank 0 of torchrun's processes says the rest
    version = register_trained(workspace, trained, name=registered_as, proposals=proposals) if registered else None
    if version:
        say(f"{recipe}: {version.describe()}")
    say(f"{recipe}: {told(trained.result.validation)}; run {trained.run.path}")
    say(f"MLflow's page on it: {trained.mlflow_page}")
    _write(
        json_file,
        {
            **plain(trained.result),
            "run": str(trained.run.path),
            "mlflow_run": trained.mlflow_run,
            "version": version.uri if version else None,
            "reused": trained.reused,
        },
    )


app.command()(command(cli_finetune.finetune))

for function in (*cli_evaluation.COMMANDS, *cli_registry.COMMANDS):
    app.command()(command(function))


@app.command()
@command
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN...]", help="Finished runs. Default: all on the dataset.", show_default=False),
    ] = None,
    dataset: DatasetName = "digits",
    protocols: Annotated[
        list[str] | None, typer.Option("--protocol", help="Repeat for several. Default: center, 10-crop.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The page. Default: reports/<dataset>.html under the root.")
    ] = None,
    root: Root = None,
) -> None:
    """Write a one-page HTML report on finished runs: curves, errors, the ensemble."""
    from resnet_pipeline.jobs.report import report_on_runs

    path, data = report_on_runs(
        Workspace.of(root), dataset, runs=runs, protocols=protocols or ["center", "10-crop"], output=output
    )
    print_table(render_table(data))
    say(path)


app.command()(command(cli_reproduce.reproduce))
app.command()(command(cli_recipes.recipes))
app.command()(command(cli_runs.runs))


@app.command()
@command
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for evaluate.", show_default=False)],
    output: Annotated[
        Path, typer.Argument(help="The file: NAME.safetensors, NAME.onnx or NAME.pt2.", show_default=False)
    ],
    root: Root = None,
) -> None:
    """Write a network for other programs; the kind is the file's ending.

    .safetensors: torchvision's names. .onnx and .pt2 (torch.export): with the preprocessing, for images uint8
    [N, H, W, 3]; the file's outputs are compared with the network's before it gets its name.
    """
    from resnet_pipeline.jobs.export import export_model

    export_model(Workspace.of(root), model, output)
    say(output)


app.command()(command(cli_services.doctor))
