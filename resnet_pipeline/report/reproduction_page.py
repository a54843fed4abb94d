"""The paper's tables and figures as one self-contained HTML page, as Markdown, and as SVG files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from resnet_pipeline.names import printable
from resnet_pipeline.report.kept import Kept, KeptRun
from resnet_pipeline.report.reproduction import Costs, Line, Section, Study, seen_before, study_of
from resnet_pipeline.report.reproduction_figures import exhibit_figure
from resnet_pipeline.report.templates import rendered, write_text
from resnet_pipeline.report.terminal import duration

PAGE, TABLES = "index.html", "README.md"
"""The page, and the same as Markdown, which a repository's server shows with the folder."""

_HEADINGS = {
    "complexity": ("network", "paper, 10⁹", "ours, 10⁹", "difference"),
    "curves": ("network", "test error", "training error", "seeds"),
    "responses": ("network", "test error", "training error", "seeds"),
}


def write_page(folder: Path, kept: Kept, costs: Costs) -> Path:
    """Write page, Markdown and figures of what is kept into a folder, each atomically; return the page's path.

    The same kept files give the same bytes.

    Example: ``write_page(folder, read_kept(folder), costs)``
    """
    study = study_of(kept, costs)
    figures = {section.exhibit.name: exhibit_figure(section.exhibit, section.drawn) for section in study.sections}
    page = rendered(
        "reproduction.html.j2",
        study=study,
        # matplotlib escapes the text that it draws
        figures={name: Markup(figure) for name, figure in figures.items()},
        columns=columns,
        cells=cells,
        facts=facts,
        caption=caption,
    )
    write_text(folder / PAGE, page)
    write_text(folder / TABLES, "\n".join(_markdown(study, figures)) + "\n")
    for name, figure in figures.items():
        if figure:
            write_text(folder / f"{name}.svg", figure)
    return folder / PAGE


def columns(section: Section) -> tuple[str, ...]:
    """Return the headings of a section's table, that of the remarks last."""
    six, both = section.exhibit.kind == "ensemble", "top-1 / top-5"
    errors = both if any(row.top5 is not None for row in section.exhibit.rows) else "top-1"
    printed, ours = ("top-5", both) if six else (errors, errors)
    plain = ("network", f"paper, {printed}", f"ours, {ours}", "difference", "training error", "seeds")
    return (*_HEADINGS.get(section.exhibit.kind, plain), "remarks and runs")


def cells(section: Section, line: Line) -> tuple[str, ...]:
    """Return what stands in a line's columns, without the remarks."""
    if section.exhibit.kind == "complexity":
        return (line.label, line.paper, line.ours, line.difference)
    if section.exhibit.kind in ("curves", "responses"):
        return (line.label, line.ours, line.training, line.seeds)
    return (line.label, line.paper, line.ours, line.difference, line.training, line.seeds)


def caption(section: Section) -> str:
    """Return what a figure shows, and what is missing in it."""
    if section.exhibit.kind == "responses":
        what = "Output of each 3×3 layer after batch norm, before the nonlinearity; plain networks dashed."
    elif section.exhibit.name == "figure1":
        what = "Error against the iteration."
    else:
        what = "Error against the iteration: dashed on augmented training images, bold on test images."
    networks = [row.network for row in section.exhibit.rows]
    responses = section.exhibit.kind == "responses"
    missing = [n for n in networks if n not in section.drawn or (responses and not section.drawn[n].responses)]
    half = [f"{n} to {run.step:,} of {run.steps:,}" for n, run in section.drawn.items() if not run.result]
    return " ".join(
        [
            what,
            *([f"Not drawn: {', '.join(missing)}."] if missing else []),
            *([f"Unfinished: {', '.join(half)}."] if half else []),
        ]
    )


def facts(run: KeptRun) -> Iterator[tuple[str, str]]:
    """Yield what is said of a run: recipe, data, code, where and how fast it was trained, and the command."""
    yield "run", run.run
    yield "state", run.state if run.result else f"{run.state} at {run.step:,} of {run.steps:,} iterations"
    yield "recipe", f"{run.recipe}, {run.steps:,} of {run.paper_steps:,} iterations"
    yield "changed", " ".join(run.changes) or "nothing else"
    samples = ", ".join(f"{count:,} {name}" for name, count in run.dataset.samples.items())
    name = f"{printable(run.dataset.name)} ({run.dataset.layout})"
    yield "dataset", f"{name}: {samples}, {run.dataset.classes} classes{seen_before(run.dataset)}"
    yield "fingerprint", run.dataset.fingerprint
    yield "commit", run.commit
    yield "MLflow run", run.mlflow_run or "none"
    if run.environment:
        yield "environment", ", ".join(f"{name} {value}" for name, value in run.environment.items())
    if run.result:
        result = run.result
        yield (
            "training",
            f"{duration(result.seconds)} on {result.workers} worker(s), {result.device}, {result.precision}, "
            f"{result.images_per_second:,.0f} images/s",
        )
        yield "weights", result.weights_sha256
    for test in run.tests:
        yield (
            f"{test.protocol}, {test.split}",
            f"{test.wrong1:,} of {test.images:,} wrong, {test.wrong5:,} not among the first five",
        )
    yield "command", run.command


def _markdown(study: Study, figures: dict[str, str]) -> Iterator[str]:
    yield "# The paper's tables and figures"
    yield ""
    yield (
        f"Written by `resnet-pipeline reproduce` from the {len(study.runs)} runs that are kept beside it; the same as "
        f"a page: [{PAGE}]({PAGE}). Errors in percent, with Wilson's 95 % interval; of several seeds mean ± standard "
        "deviation. A difference in brackets is not one to the paper's own conditions. Times on a GPU are estimated "
        "from published rates of ResNet-50, not measured: of small networks they may be many times as long."
    )
    yield from ("", "## Claims", "", "| claim | our runs | |", "|---|---|---|")
    for finding in study.findings:
        family = finding.claim.higher.partition("/")[0]
        yield _row([f"{finding.claim.text} ({finding.claim.source}, {family})", finding.text, f"**{finding.verdict}**"])
    for section in study.sections:
        name = section.exhibit.name
        yield from ("", f"## {section.exhibit.title}", "")
        if section.setting:
            yield from (_plain(section.setting), "")
        if figures[name]:
            yield from (f"![{section.exhibit.title}]({name}.svg)", "", caption(section), "")
        yield _row(columns(section))
        yield "|---" * len(columns(section)) + "|"
        for line in section.lines:
            about = "; ".join(line.remarks)
            if not line.ran:
                about += f": `{line.command}`, {line.estimate}"
            about += "".join(f"; `{run.run}`" for run in line.runs)
            yield _row([*cells(section, line), about.removeprefix("; ")])
    for transfer in study.transfers:
        yield from ("", f"## {transfer.table.title}", "", _row(transfer.columns))
        yield "|---" * len(transfer.columns) + "|"
        for each in transfer.lines:
            remarks = "; ".join((*each.remarks, *([f"`{each.command}`"] if each.command else [])))
            yield _row([each.label, each.paper, each.ours, each.difference, remarks])
    yield from ("", "## Runs", "")
    for run in study.runs:
        yield f"### {run.recipe}, seed {run.seed}"
        yield ""
        for name, value in facts(run):
            yield f"- {name}: `{value}`" if name in ("run", "command", "changed") else f"- {name}: {_plain(value)}"
        yield ""
    if not study.runs:
        yield "None yet."


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(text) for text in texts) + " |"


def _plain(text: str) -> str:
    """Return text that stays in its cell; names of datasets hold no marks (`workspace.checked_name`)."""
    return text.replace("|", "\\|")
