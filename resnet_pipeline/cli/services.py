"""The commands for what runs beside the jobs: this machine's servers, the deployments, a look at what there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from resnet_pipeline.cli.options import Json, Root, write_result
from resnet_pipeline.errors import UserError
from resnet_pipeline.report.terminal import print_table
from resnet_pipeline.workspace import Workspace


def up(
    root: Root = None,
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's server and pages.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's server and pages.")] = 5000,
    detach: Annotated[bool, typer.Option("--detach", help="Return once all answer; `down` stops them.")] = False,
) -> None:
    """Start a Prefect server, a worker and an MLflow server on this machine and register all deployments.

    They listen on this machine only. Ctrl-C stops them; with --detach, `resnet-pipeline down` does.
    """
    from resnet_pipeline.services import local

    with local.up(Workspace.of(root), prefect_port=prefect_port, mlflow_port=mlflow_port, detach=detach) as text:
        print(text, flush=True)


def down(root: Root = None) -> None:
    """Stop what `up` started, and nothing else."""
    from resnet_pipeline.services import local

    local.down(Workspace.of(root))


def deploy(pool: Annotated[str, typer.Option(help="The Prefect work pool that runs them.")] = "local") -> None:
    """Register all deployments with the Prefect server that PREFECT_API_URL names (`up` does this itself)."""
    from resnet_pipeline.services import deployments

    deployments.deploy(pool)


def doctor(root: Root = None, json_file: Json = None) -> None:
    """Say what this machine has and what would be used, and try it: decoders, disk, servers, buckets.

    Ends with status 2 if something that is configured can't be used.
    """
    from resnet_pipeline.services.doctor import examine

    findings = examine(Workspace.of(root))
    table = Table(show_header=False, box=None)
    for finding in findings:
        table.add_row(Text("" if finding.ok else "✗", style="bold red"), finding.what, finding.state, finding.use)
    print_table(table)
    write_result(json_file, [vars(f) for f in findings])
    if bad := [finding.what for finding in findings if not finding.ok]:
        raise UserError(f"what is configured can't all be used; see above: {', '.join(bad)}")


COMMANDS: Sequence[Callable[..., None]] = (up, down, deploy)
