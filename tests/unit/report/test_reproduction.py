"""The page on the paper's results: a function of kept files, and nothing averaged that does not compare."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.exhibits import CLAIMS, EXHIBITS
from resnet_pipeline.evaluation.statistics import p_text
from resnet_pipeline.jobs.recipes import kept_costs
from resnet_pipeline.jobs.reproduce import page_of
from resnet_pipeline.recipes import recipe_names
from resnet_pipeline.report.findings import findings_of
from resnet_pipeline.report.kept import Kept, KeptEnsemble, keep, read_kept
from resnet_pipeline.report.reproduction import Costs, study_of
from resnet_pipeline.report.reproduction_page import PAGE, TABLES, write_page
from tests.sample_kept import CIFAR10, JPEGS, sample_kept, sample_run, sample_test
from tests.unit.report.test_report import Checker


def lines_of(kept, exhibit):
    (section,) = [s for s in study_of(kept, costs()).sections if s.exhibit.name == exhibit]
    return section.lines


def costs(price=None):
    """Return what the page is made with, an hour of the GPU for every recipe."""
    return Costs(kept_costs(), dict.fromkeys(recipe_names(), 7200.0), "1xa100", price)


def kept(*runs, ensembles=()):
    return Kept(runs=runs, ensembles=tuple(ensembles))


@pytest.fixture
def folder(tmp_path):
    sample = sample_kept()
    for what in (*sample.runs, *sample.ensembles):
        keep(tmp_path, what)
    return tmp_path


def test_kept_files_are_read_as_they_were_written(folder):
    found, sample = read_kept(folder), sample_kept()
    assert sorted(found.runs, key=lambda r: r.run) == sorted(sample.runs, key=lambda r: r.run)
    assert found.ensembles == sample.ensembles


def test_page_tables_and_figures_are_the_same_bytes_from_the_same_kept_files(folder):
    page_of(folder)
    made = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert set(made) == {PAGE, TABLES, "section1.svg", "figure1.svg", "figure6.svg", "figure7.svg"}
    for name in made:
        (folder / name).unlink()
    page_of(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == made


def test_the_page_is_whole_fetches_nothing_and_names_every_run(folder):
    page = page_of(folder).read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not [tag for tag, _ in checker.tags if tag in ("script", "link", "img", "iframe")]
    outside = [
        value
        for _, attributes in checker.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href") and not (value or "").startswith("#")
    ]
    assert outside == [] and "@import" not in page and not re.search(r"url\((?!['\"]?#)", page)
    ids = {attributes.get("id") for _, attributes in checker.tags}
    text = " ".join(checker.text)
    for run in read_kept(folder).runs:
        assert run.run in ids, "each number links to its run"
        for part in (run.dataset.fingerprint, run.commit, run.mlflow_run, run.command):
            assert part in text
    assert "prefers-color-scheme: dark" in page and "@media print" in page and "width=device-width" in page


def test_numbers_are_those_of_the_kept_counts(folder):
    found = read_kept(folder)
    (row,) = [line for line in lines_of(found, "table6") if line.label == "ResNet-56"]
    (test,) = row.runs[0].tests
    low, high = binomtest(test.wrong1, test.images).proportion_ci(0.95, method="wilson")
    assert row.ours == f"8.20 ({100 * low:.2f} to {100 * high:.2f})"
    assert (row.paper, row.difference, row.seeds) == ("6.97", f"({8.20 - 6.97:+.2f})", "0")
    (both,) = [line for line in lines_of(found, "table6") if line.label == "ResNet-20"]
    assert both.ours == f"9.80 ± {statistics.stdev([9.7, 9.9]):.2f} (9.70, 9.90)" and both.seeds == "0, 1"
    text = (page_of(folder).parent / TABLES).read_text()
    assert f"| ResNet-56 | 6.97 | {row.ours} | (+1.23) |" in text


def test_differences_stand_without_brackets_under_the_paper_s_conditions_alone():
    whole = sample_run("cifar10/resnet56", 7.1, steps=64_000, dataset=CIFAR10)
    for run, difference in (
        (whole, "+0.13"),
        (replace(whole, steps=16_000, step=16_000), "(+0.13)"),
        (replace(whole, dataset=replace(CIFAR10, layout="image folder")), "(+0.13)"),
        (replace(whole, changes=("optim.lr=0.05",)), "(+0.13)"),
    ):
        (line,) = [line for line in lines_of(kept(run), "table6") if line.label == "ResNet-56"]
        assert line.difference == difference


def test_runs_of_other_data_iterations_or_recipes_are_lines_of_their_own_and_marked():
    first = sample_run("cifar10/resnet20", 9.7)
    others = [
        sample_run("cifar10/resnet20", 8.8, seed=1, dataset=CIFAR10),
        sample_run("cifar10/resnet20", 9.0, seed=2, steps=32_000),
        sample_run("cifar10/resnet20", 9.9, seed=3, changes=("optim.lr=0.05",)),
    ]
    lines = lines_of(kept(first, *others, sample_run("cifar10/resnet56", 8.2)), "table6")
    own = [line for line in lines if line.label == "ResNet-20"]
    assert [line.seeds for line in own] == ["0", "2", "1", "3"], "nothing is averaged over them"
    assert own[0].remarks == ()
    for line in own[1:]:
        assert any(remark.startswith("does not compare with the other rows: dataset") for remark in line.remarks)
    assert "32,000 of the recipe's 64,000 iterations" in own[1].remarks[0]
    assert "optim.lr=0.05" in own[3].remarks[0]


@pytest.mark.parametrize(
    ("seen", "text"),
    [(10_000, "10,000 of the 10,000 test images are training images, so these errors say nothing"), (3, "3 of the")],
)
def test_images_that_were_tested_and_trained_on_are_said(folder, seen, text):
    study = kept(sample_run("cifar10/resnet56", 0.0, dataset=replace(JPEGS, seen=seen)))
    (section,) = [one for one in study_of(study, costs()).sections if one.exhibit.name == "table6"]
    assert text in section.setting
    assert text in write_page(folder, study, costs()).read_text()
    other = kept(sample_run("cifar10/resnet56", 8.0))
    assert "test images are training images" not in write_page(folder, other, costs()).read_text()


def test_half_finished_runs_and_missing_seeds_are_said():
    half = sample_run("cifar10/resnet110", 8.0, seed=1, step=9_000)
    whole = sample_run("cifar10/resnet110", 8.0)
    (line,) = [line for line in lines_of(kept(whole, half), "table6") if line.label == "ResNet-110"]
    assert line.seeds == "0" and line.ours.startswith("8.00 (")
    assert "1 of the paper's 5 runs" in line.remarks
    assert "seed 1: interrupted at 9,000 of 16,000 iterations" in line.remarks
    (alone,) = [line for line in lines_of(kept(half), "figure6") if line.label == "resnet110"]
    assert (alone.ours, alone.training, alone.seeds) == ("–", "–", "–")
    untested = replace(whole, tests=())
    (line,) = [line for line in lines_of(kept(untested), "table6") if line.label == "ResNet-110"]
    assert line.ours == "–" and "seed 0: not tested center yet" in line.remarks
    part = replace(whole, tests=(sample_test(8.0, images=500, split="val"),))
    (line,) = [line for line in lines_of(kept(part), "table6") if line.label == "ResNet-110"]
    assert "seed 0: tested on 500 of 10,000 images" in line.remarks


def test_what_was_not_run_says_how_to_and_how_long():
    lines = lines_of(kept(sample_run("cifar10/resnet20", 9.7)), "table6")
    (missing,) = [line for line in lines if line.label == "ResNet-32"]
    assert not missing.ran and missing.remarks == ("not run",)
    assert missing.command == "resnet-pipeline reproduce table6 --cifar10 cifar10 --networks resnet32"
    # 64,000 iterations of 128 images at 512 images/s of 20 layers, by multiply-adds (recipes/costs.json)
    seconds = 64_000 * 128 / (512 * 40_551_040 / 68_862_592)
    assert missing.estimate == f"about 2.0 hours on 1xa100, {seconds / 3600:.1f} hours on x86_64, 2 CPU cores"
    (other,) = [line for line in lines_of(kept(), "table2") if line.label == "ResNet-18"]
    assert other.estimate == "about 2.0 hours on 1xa100"
    (six,) = [line for line in lines_of(kept(), "table5") if line.label == "ensemble of six"]
    assert six.estimate == "about 12.0 hours on 1xa100"


def test_a_price_is_said_if_there_is_one():
    (section,) = [s for s in study_of(kept(), costs(price=1.5)).sections if s.exhibit.name == "table2"]
    assert section.lines[0].estimate == "about 2.0 hours on 1xa100, 3.00 at 1.50 an hour"


def test_with_nothing_kept_there_is_a_page_of_what_can_be_run_and_counted(tmp_path):
    text = write_page(tmp_path, Kept(runs=(), ensembles=()), costs()).read_text()
    assert all(exhibit.name in text for exhibit in EXHIBITS.values())
    assert not list(tmp_path.glob("*.svg"))
    assert {line.ours for line in lines_of(kept(), "table1")} == {"1.795", "3.644", "3.858", "7.570", "11.282"}


def test_ensembles_say_whose_mean_they_are_and_what_does_not_compare():
    (mean,) = [line for line in lines_of(sample_kept(), "table6") if line.label.startswith("mean of")]
    assert mean.label == "mean of 2: resnet20, resnet56" and mean.ours.startswith("7.50 (")
    assert "not in the paper" in mean.remarks and "members of 16,000 of 64,000 iterations" in mean.remarks
    members = [sample_run("imagenet/resnet50", 24.0, steps=600_000, dataset=data) for data in (CIFAR10, JPEGS)]
    test = sample_test(20.0, protocol="multi-scale")
    five = KeptEnsemble(name="table5-0", runs=tuple(r.run for r in members), command="x", tests=(test,))
    lines = lines_of(kept(*members, ensembles=[five]), "table5")
    assert {"its members are not all kept, or not of one dataset", "not the six of the paper"} <= set(lines[-1].remarks)
    assert lines[-1].paper == "3.57" and f" / {test.top5:.2f} (" in lines[-1].ours
    assert lines[-1].difference == f"({test.top5 - 3.57:+.2f})"


def test_a_claim_is_decided_by_runs_of_one_setting_and_seed():
    def verdicts(*runs):
        return {(f.claim.higher, f.claim.lower, f.claim.on): f for f in findings_of(runs)}

    def plain(layers, error, trained, **options):
        return sample_run(f"cifar10/plain{layers}", error, trained=trained, **options)

    training, test = ("cifar10/plain56", "cifar10/plain20", "training"), ("cifar10/plain56", "cifar10/plain20", "test")
    shows = verdicts(plain(20, 10.9, 4.0), plain(56, 14.6, 8.5))
    assert (shows[training].verdict, shows[test].verdict) == ("shows", "shows")
    against = verdicts(plain(20, 14.6, 8.5), plain(56, 10.9, 4.0))
    assert (against[training].verdict, against[test].verdict) == ("does not show", "does not show")
    near = verdicts(plain(20, 10.90, 4.00), plain(56, 10.91, 4.05))
    assert (near[training].verdict, near[test].verdict) == ("undecided", "undecided")
    for other in (
        plain(56, 14.6, 8.5, seed=1),
        plain(56, 14.6, 8.5, dataset=CIFAR10),
        plain(56, 14.6, 8.5, steps=8_000),
    ):
        found = verdicts(plain(20, 10.9, 4.0), other)
        assert (found[training].verdict, found[training].text) == (
            "not run", "no finished runs of one dataset, budget and seed",
        )  # fmt: skip
    assert verdicts()[test].text == "not run"


def test_claims_are_of_recipes_and_of_the_exhibits_networks():
    for claim in CLAIMS:
        assert {each.partition("-from-")[0] for each in (claim.higher, claim.lower)} <= set(recipe_names())
    assert [finding.claim for finding in findings_of([])] == list(CLAIMS)


def test_bits_that_are_not_the_counts_are_refused(folder):
    file = next((folder / "runs").glob("cifar10-plain56*"))
    values = json.loads(file.read_text())
    values["tests"][0]["wrong1"] -= 1
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"says 1459 of 10000 wrong, its bits do not"):
        page_of(folder)


def test_curves_reach_their_end_and_a_network_has_one_colour_in_all_parts(folder):
    run = read_kept(folder).runs[0]
    assert run.train.steps[-1] == run.steps and len(run.train.steps) <= 200
    svg = page_of(folder).with_name("figure1.svg").read_text()
    drawn = re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: (?:1|2)[;\"]", svg)
    assert len(set(drawn)) == 2 and 'role="img"' in svg, "two networks, in two parts"


def test_no_p_value_is_nought():
    assert p_text(0.0) == "p < 1e-300" and p_text(0.0312) == "p = 0.031"
