"""The paper's Tables 7 to 14 beside what is kept of our detectors and localisers, or the command that makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resnet_pipeline.evaluation.transfers import TRANSFERS, TransferRow, TransferTable, options_of
from resnet_pipeline.progress import cost, hours
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.report.kept import KeptTransfer

# A V100's seconds for a training image: detectron2's MODEL_ZOO.md, Faster R-CNN R101-C4, 0.619 s for 16 images on 8
# of them, shorter side 640 to 800. The paper's 600 pixels take less.
_V100_SECONDS = 0.619 / 2


@dataclass(frozen=True, kw_only=True)
class TransferLine:
    """A line of a table: texts of its columns, and what is to be said of it."""

    label: str
    paper: str
    ours: str = "–"
    difference: str = "–"
    remarks: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class TransferSection:
    """A table as it is shown."""

    table: TransferTable
    lines: tuple[TransferLine, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings, that of the remarks last."""
        figures = " / ".join(self.table.figures)
        return ("network", f"paper, {figures}", f"ours, {figures}", "difference", "remarks and runs")


def transfer_sections(
    kept: Sequence[KeptTransfer], seconds: Mapping[str, float], hardware: str, price: float | None
) -> tuple[TransferSection, ...]:
    """Return the tables; ``seconds`` are a localiser's recipe's on ``hardware``, ``price`` is that of its hour.

    Example: ``transfer_sections(read_kept(folder).transfers, {}, "1xa100", None)[0].lines``
    """
    return tuple(
        TransferSection(
            table=table,
            lines=tuple(line for row in table.rows for line in _lines(table, row, kept, seconds, hardware, price)),
        )
        for table in TRANSFERS
    )


def _lines(
    table: TransferTable,
    row: TransferRow,
    kept: Sequence[KeptTransfer],
    seconds: Mapping[str, float],
    hardware: str,
    price: float | None,
) -> list[TransferLine]:
    paper = " / ".join(f"{figure:.1f}" for figure in row.paper)
    notes = (row.note,) if row.note else ()
    if row.recipe is None:
        return [TransferLine(label=row.label, paper=paper, remarks=("not run", *notes))]
    own = [
        each
        for each in kept
        if (each.recipe, each.context, each.test, len(each.members) or 1)
        == (row.recipe, row.context, row.test, row.members)
    ]
    if not own:
        remarks = ("not run", *notes, _estimate(row, seconds, hardware, price))
        return [TransferLine(label=row.label, paper=paper, remarks=remarks, command=_command(table, row))]
    return [_measured(table, row, each, paper, notes) for each in own]


def _measured(
    table: TransferTable, row: TransferRow, kept: KeptTransfer, paper: str, notes: tuple[str, ...]
) -> TransferLine:
    found = [kept.figures[name] for name in table.figures]
    difference = " / ".join(
        f"{value:+.1f}" for value in (ours[0] - printed for ours, printed in zip(found, row.paper, strict=True))
    )
    alike = kept.steps == kept.paper_steps and not kept.changes and kept.images == row.images
    runs = " + ".join(f"`{run}`" for run in kept.members or (kept.run,))
    remarks = [*notes, f"{runs} on {kept.images:,} images of {kept.dataset}"]
    if kept.steps != kept.paper_steps:
        remarks.append(f"{kept.steps:,} of {kept.paper_steps:,} iterations")
    if kept.changes:
        remarks.append(f"changed: {' '.join(kept.changes)}")
    return TransferLine(
        label=row.label,
        paper=paper,
        ours=" / ".join(f"{value:.1f} ({low:.1f} to {high:.1f})" for value, low, high in found),
        difference=difference if alike else f"({difference})",
        remarks=tuple(remarks),
        command=kept.command,
    )


def _command(table: TransferTable, row: TransferRow) -> str:
    """Return what trains and tests a row."""
    assert row.recipe is not None  # else nothing is to be run
    context = " --set detection.context=true" if row.context else ""
    train = (
        f"resnet-pipeline train {row.recipe} --dataset {table.dataset} --initial-weights imagenet-resnet101{context}"
    )
    if row.recipe.startswith("ilsvrc-loc"):
        classes = " --classes imagenet-resnet101" if row.test.endswith("predicted") else ""
        protocol = " --protocol center" if row.test == "center" else ""
        test = f"--dataset {table.dataset}{protocol}{classes}"
        if "rcnn-" in row.recipe:
            both = f"{' RUN' * row.members}{' --rcnn RCNN' * row.members}"
            return f"{train} --proposals RUN && resnet-pipeline localise{both} {test}"
        return f"{train} && resnet-pipeline localise RUN {test}"
    verb = "evaluate RUN" if row.members == 1 else f"ensemble{' RUN' * row.members}"
    voc = " --voc 11" if table.figures == ("mAP",) else ""
    return f"{train} && resnet-pipeline {verb} --dataset {table.dataset}{options_of(row.test)}{voc}"


def _estimate(row: TransferRow, seconds: Mapping[str, float], hardware: str, price: float | None) -> str:
    assert row.recipe is not None  # else nothing is to be run
    if row.recipe in seconds:
        took = row.members * seconds[row.recipe]
        return f"about {hours(took)} on {hardware}{cost(took, price)}"
    config = get_recipe(row.recipe)
    took = row.members * config.steps * config.batch * _V100_SECONDS
    return f"at most about {hours(took)} on a V100, from detectron2's published rate at 800 pixels"
