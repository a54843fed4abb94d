"""The paper's tables and claims beside what is kept of our runs: what compares is compared, what does not is marked.

Everything here is a function of kept files (`report.kept`) and of the networks' costs; nothing is measured.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from resnet_pipeline.evaluation.exhibits import EXHIBITS, Exhibit, PaperRow
from resnet_pipeline.progress import cost, hours
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.report.findings import Finding, findings_of, spread
from resnet_pipeline.report.kept import Kept, KeptDataset, KeptEnsemble, KeptRun, KeptTest, Setting
from resnet_pipeline.report.transfers import TransferSection, transfer_sections


@dataclass(frozen=True)
class Costs:
    """What networks cost.

    ``counted`` is depth, parameters and multiply-adds of each recipe's network (`jobs.recipes.kept_costs`). ``seconds``
    are estimates of each recipe's training on ``hardware`` (`jobs.hardware`); ``price`` is that of an hour of it, None
    if nothing is to be said of money.
    """

    counted: Mapping[str, Mapping[str, int]]
    seconds: Mapping[str, float]
    hardware: str
    price: float | None = None


NONE = "–"
_ORIGINAL = {"cifar10": ("CIFAR-10",), "imagenet": ("ILSVRC-2012 archives", "Kaggle's ILSVRC")}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a table: texts in its columns, what does not compare, and the kept runs that it is of.

    ``ran`` is false for what was never started; ``command`` starts it then, and ``estimate`` says how long it takes.
    """

    label: str
    paper: str
    ours: str
    difference: str = NONE
    training: str = NONE
    seeds: str = NONE
    remarks: tuple[str, ...] = ()
    runs: tuple[KeptRun, ...] = ()
    ran: bool = True
    command: str = ""
    estimate: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """An exhibit as it is shown: its lines, and for a figure the runs to draw, one per network."""

    exhibit: Exhibit
    lines: tuple[Line, ...]
    drawn: Mapping[str, KeptRun]
    setting: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that the page shows."""

    sections: tuple[Section, ...]
    findings: tuple[Finding, ...]
    runs: tuple[KeptRun, ...]
    transfers: tuple[TransferSection, ...]


def study_of(kept: Kept, costs: Costs) -> Study:
    """Return what the page shows of what is kept.

    Example: ``study_of(read_kept(Path("docs/reproduction")), costs).sections[0].lines``
    """
    return Study(
        sections=tuple(_section(exhibit, kept, costs) for exhibit in EXHIBITS.values()),
        findings=findings_of(kept.runs),
        runs=kept.runs,
        transfers=transfer_sections(kept.transfers, costs.seconds, costs.hardware, costs.price),
    )


def reference_setting(runs: Iterable[KeptRun]) -> Setting | None:
    """Return the setting that most networks share, the longer one of two; None if there are no runs."""
    networks = {(run.network, run.setting) for run in runs}
    counts = Counter(setting for _, setting in networks)
    order = sorted(counts, key=lambda s: (-counts[s], -s.share, s.fingerprint, s.changes))
    return order[0] if order else None


def _section(exhibit: Exhibit, kept: Kept, costs: Costs) -> Section:
    if exhibit.kind == "complexity":
        lines = tuple(_cost_line(row, costs) for row in exhibit.rows)
        return Section(exhibit=exhibit, lines=lines, drawn={}, setting="counted, not measured")
    networks = {row.network for row in exhibit.rows}
    runs = [run for run in kept.runs if run.family == exhibit.family and run.network in networks]
    reference = reference_setting(runs)
    lines = tuple(line for row in exhibit.rows for line in _row_lines(exhibit, row, runs, reference, costs, kept.runs))
    means = [ensemble for ensemble in kept.ensembles if ensemble.name.startswith(f"{exhibit.name}-")]
    lines += tuple(_mean_line(exhibit, mean, kept.runs) for mean in means)
    if exhibit.kind == "ensemble" and not means:
        lines += (_missing(exhibit, None, "ensemble of six", _printed(None, exhibit.printed_top5), costs, kept.runs),)
    drawn: dict[str, KeptRun] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.setting == reference:
            drawn.setdefault(run.network, run)
    return Section(exhibit=exhibit, lines=lines, drawn=drawn, setting=described(reference, runs))


def described(setting: Setting | None, runs: Sequence[KeptRun]) -> str:
    """Return a setting in words, as its runs name the dataset; an empty text for none."""
    run = next((run for run in runs if run.setting == setting), None)
    if run is None:
        return ""
    data = f"dataset {run.dataset.name} ({run.dataset.fingerprint[:12]}, {run.dataset.layout})"
    share = "all iterations of the recipe" if run.steps == run.paper_steps else (
        f"{run.steps:,} of the recipe's {run.paper_steps:,} iterations, its schedule in proportion"
    )  # fmt: skip
    changes = f"; changed: {' '.join(run.changes)}" if run.changes else ""
    apart = "" if as_the_paper(run) else "; compares with our other runs, not with the paper"
    return f"{data}, {share}{changes}{apart}{seen_before(run.dataset)}"


def seen_before(dataset: KeptDataset) -> str:
    """Return what is to be said of a dataset whose test images were trained on; an empty text if none were."""
    if not dataset.seen:
        return ""
    tested = sum(count for name, count in dataset.samples.items() if name != "train")
    nothing = ", so these errors say nothing of other images" if dataset.seen == tested else ""
    return f"; {dataset.seen:,} of the {tested:,} test images are training images{nothing}"


def as_the_paper(run: KeptRun) -> bool:
    """Return whether a run's data, iterations and recipe are the paper's, so that its errors compare with those."""
    original = run.dataset.layout in _ORIGINAL.get(run.recipe.partition("/")[0], ())
    return original and run.steps == run.paper_steps and not run.changes


def _row_lines(
    exhibit: Exhibit,
    row: PaperRow,
    runs: Sequence[KeptRun],
    reference: Setting | None,
    costs: Costs,
    known: Sequence[KeptRun],
) -> list[Line]:
    """Return a line for each setting that a row's network was run in, or one that says it was not run."""
    own = [run for run in runs if run.network == row.network]
    paper = _printed(row.top1, row.top5)
    if not own:
        return [_missing(exhibit, row, row.label, paper, costs, known)]
    settings = sorted({run.setting for run in own}, key=lambda s: (s != reference, -s.share, s.fingerprint, s.changes))
    return [
        _line(exhibit, row, paper, sorted((r for r in own if r.setting == setting), key=lambda r: r.seed), reference)
        for setting in settings
    ]


def _line(exhibit: Exhibit, row: PaperRow, paper: str, runs: Sequence[KeptRun], reference: Setting | None) -> Line:
    """Return the line of runs that differ in their seeds alone."""
    tested = [(run, test) for run in runs if run.result and (test := run.test(exhibit.protocol))]
    top5 = row.top5 is not None or (exhibit.kind == "ensemble" and row.top1 is None)
    tests = [test for _, test in tested]
    return Line(
        label=row.label,
        paper=paper,
        ours=_measured(tests, top5=top5) if tests else NONE,
        difference=_difference(tests, row, alike=as_the_paper(runs[0])) if tests else NONE,
        training=_trained([run for run in runs if run.result and run.trained_images]),
        seeds=", ".join(str(run.seed) for run, _ in tested) or NONE,
        remarks=tuple(_remarks(exhibit, row, runs, reference)),
        runs=tuple(runs),
    )


def _remarks(exhibit: Exhibit, row: PaperRow, runs: Sequence[KeptRun], reference: Setting | None) -> Iterable[str]:
    """Yield what keeps a line from comparing with the others; what all lines share is said of the section."""
    first = runs[0]
    if first.setting != reference:
        yield f"does not compare with the other rows: {described(first.setting, runs)}"
    finished = [run for run in runs if run.result]
    if finished and len(finished) < row.seeds:
        yield f"{len(finished)} of the paper's {row.seeds} runs"
    for run in runs:
        if not run.result:
            yield f"seed {run.seed}: {run.state} at {run.step:,} of {run.steps:,} iterations"
        elif exhibit.kind != "responses" and run.test(exhibit.protocol) is None:
            yield f"seed {run.seed}: not tested {exhibit.protocol} yet"
        elif exhibit.kind == "responses" and run.responses is None:
            yield f"seed {run.seed}: responses not measured yet"
    for run in finished:
        test = run.test(exhibit.protocol)
        if test and test.images != run.dataset.samples.get(test.split):
            yield f"seed {run.seed}: tested on {test.images:,} of {run.dataset.samples.get(test.split, 0):,} images"
    if row.note:
        yield row.note


def _mean_line(exhibit: Exhibit, mean: KeptEnsemble, runs: Sequence[KeptRun]) -> Line:
    """Return the line of an ensemble: Table 5's, or one that the paper does not have."""
    members = [run for run in runs if run.run in mean.runs]
    remarks = []
    if len({run.dataset.fingerprint for run in members}) > 1 or len(members) != len(mean.runs):
        remarks.append("its members are not all kept, or not of one dataset")
    shorter = {f"{run.steps:,} of {run.paper_steps:,}" for run in members if run.steps != run.paper_steps}
    if shorter:
        remarks.append(f"members of {' and '.join(sorted(shorter))} iterations")
    six = exhibit.kind == "ensemble"
    if six and len(mean.runs) != 6:
        remarks.append("not the six of the paper")
    if not six:
        remarks.append("not in the paper")
    row = PaperRow(label="", recipe="", top5=exhibit.printed_top5 if six else None)
    return Line(
        label=f"mean of {len(mean.runs)}: {', '.join(run.network for run in members)}",
        paper=_printed(None, row.top5),
        ours=_measured(mean.tests, top5=six),
        difference=_difference(mean.tests, row, alike=all(as_the_paper(run) for run in members)),
        remarks=tuple(remarks),
        runs=tuple(members),
        command=mean.command,
    )


def _missing(
    exhibit: Exhibit, row: PaperRow | None, label: str, paper: str, costs: Costs, known: Sequence[KeptRun]
) -> Line:
    networks = f" --networks {row.network}" if row and exhibit.kind != "ensemble" else ""
    name = "ilsvrc2012" if exhibit.family == "imagenet" else "cifar10"
    recipes = [row.recipe] if row else [each.recipe for each in exhibit.rows for _ in exhibit.seeds(each.network)]
    return Line(
        label=label,
        paper=paper,
        ours=NONE,
        ran=False,
        remarks=("not run",),
        command=f"resnet-pipeline reproduce {exhibit.name} --{exhibit.family} {name}{networks}",
        estimate=_estimate(recipes, costs, known),
    )


def _estimate(recipes: Sequence[str], costs: Costs, known: Sequence[KeptRun]) -> str:
    """Return about how long full runs of these recipes take: on a GPU, and where a run of their family is kept from."""
    seconds = sum(costs.seconds[recipe] for recipe in recipes)
    family, counted = recipes[0].partition("/")[0], costs.counted
    # from published rates of ResNet-50
    found = f"about {hours(seconds)} on {costs.hardware}{cost(seconds, costs.price)}"
    rates = [
        (run.result.images_per_second * counted[run.recipe]["multiply_adds"], run)
        for run in known
        if run.result and run.recipe.startswith(f"{family}/")
    ]
    if not rates:
        return found
    # by multiply-adds, from the fastest
    rate, run = max(rates, key=lambda pair: (pair[0], pair[1].run))
    configs = [get_recipe(recipe) for recipe in recipes]
    work = sum(config.steps * config.batch * counted[config.recipe]["multiply_adds"] for config in configs)
    where = run.environment.get("hardware", "the machine of our runs")
    return f"{found}, {hours(work / rate)} on {where}"


def _cost_line(row: PaperRow, costs: Costs) -> Line:
    own, printed = costs.counted[row.recipe]["multiply_adds"], row.multiply_adds or 0.0
    return Line(
        label=row.label,
        paper=f"{printed / 1e9:.1f}",
        ours=f"{own / 1e9:.3f}",
        difference=f"{(own - printed) / 1e9:+.3f}",
        remarks=(f"{costs.counted[row.recipe]['parameters']:,} parameters",),
    )


def _printed(top1: float | None, top5: float | None) -> str:
    figures = [f"{value:.2f}" for value in (top1, top5) if value is not None]
    return " / ".join(figures) or NONE


def _measured(tests: Sequence[KeptTest], *, top5: bool) -> str:
    """Return top-1, and top-5 if the paper has it: of one run with Wilson's interval, of several mean and spread."""
    kinds = [[(test.wrong1, test.images) for test in tests]]
    if top5:
        kinds.append([(test.wrong5, test.images) for test in tests])
    return " / ".join(spread(counts) for counts in kinds)


def _difference(tests: Sequence[KeptTest], row: PaperRow, *, alike: bool) -> str:
    """Return ours less the paper's, in brackets unless data, iterations and recipe are the paper's."""
    ours = [(row.top1, [test.top1 for test in tests]), (row.top5, [test.top5 for test in tests])]
    text = " / ".join(f"{statistics.mean(own) - printed:+.2f}" for printed, own in ours if printed is not None)
    return (text if alike else f"({text})") if text else NONE


def _trained(runs: Sequence[KeptRun]) -> str:
    return spread([(run.trained_wrong, run.trained_images) for run in runs]) if runs else NONE
