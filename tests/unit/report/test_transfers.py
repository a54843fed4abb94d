"""Tables 7 to 14 beside kept tests of detectors and localisers."""

from __future__ import annotations

import pytest

from resnet_pipeline.evaluation.transfers import TRANSFERS
from resnet_pipeline.jobs.recipes import kept_costs
from resnet_pipeline.recipes import get_recipe, recipe_names
from resnet_pipeline.report.kept import Kept, KeptTransfer, keep, read_kept
from resnet_pipeline.report.reproduction import Costs
from resnet_pipeline.report.reproduction_page import write_page
from resnet_pipeline.report.transfers import transfer_sections

COCO = "coco/fasterrcnn-resnet101-c4"


def sample(**fields) -> KeptTransfer:
    given = {
        "run": "coco-0", "test": "", "recipe": COCO, "context": False, "steps": 320_000, "paper_steps": 320_000,
        "changes": (), "dataset": "coco (0123, COCO)", "images": 40_504, "command": "resnet-pipeline train",
        "figures": {"AP50": (48.0, 47.5, 48.5), "AP": (27.4, 27.0, 27.8)},
    }  # fmt: skip
    return KeptTransfer(**(given | fields))


def lines(*kept, table):
    sections = transfer_sections(kept, {"ilsvrc-loc/resnet101": 7200.0}, "1xa100", 2.0)
    (section,) = [each for each in sections if each.table.name == table]
    return {line.label: line for line in section.lines}


def test_the_tables_are_the_paper_s_and_their_recipes_exist():
    assert [table.name for table in TRANSFERS] == [f"table{number}" for number in range(7, 15)]
    for table in TRANSFERS:
        for row in table.rows:
            assert len(row.paper) == len(table.figures)
            assert (row.recipe is None) <= bool(row.note), "what is not trained here says why"
            if row.recipe:
                get_recipe(row.recipe)


def test_what_was_not_run_has_its_command_and_cost():
    line = lines(table="table8")["ResNet-101"]
    # 320,000 steps of 16 images at 0.619 s for 2 a V100
    assert line.ours == "–" and line.remarks[0] == "not run" and "18.3 days on a V100" in line.remarks[-1]
    assert line.command == (
        f"resnet-pipeline train {COCO} --dataset coco --initial-weights imagenet-resnet101 && resnet-pipeline evaluate "
        "RUN --dataset coco"
    )
    every = lines(table="table9")
    assert every["+ multi-scale testing"].command.endswith(
        "--set detection.context=true && resnet-pipeline evaluate RUN --dataset coco --refine --scales "
        "200,400,600,800,1000"
    )
    assert "ensemble RUN RUN RUN --dataset coco" in every["ensemble of three"].command
    located = lines(table="table13")["ResNet-101 RPN, dense, five predicted classes"]
    assert located.command.endswith("localise RUN --dataset ilsvrc2012 --classes imagenet-resnet101")
    assert located.remarks == ("not run", "about 2.0 hours on 1xa100, 4.00 at 2.00 an hour")
    both = lines(table="table13")["RPN and R-CNN, dense, five predicted classes"]
    assert "train ilsvrc-loc/rcnn-resnet101 " in both.command and "--proposals RUN && " in both.command
    assert both.command.endswith("localise RUN --rcnn RCNN --dataset ilsvrc2012 --classes imagenet-resnet101")
    ensemble = lines(table="table13")["ensemble, five predicted classes"]
    assert "localise RUN RUN --rcnn RCNN --rcnn RCNN --dataset" in ensemble.command
    assert lines(table="table7")["ResNet-101, VOC 2007"].command.endswith("evaluate RUN --dataset voc --voc 11")


def test_what_was_run_stands_beside_the_paper_s_figures():
    whole, short = sample(), sample(run="coco-1", steps=100, changes=("batch=8",), images=5_000)
    line = lines(whole, table="table8")["ResNet-101"]
    assert (line.paper, line.difference) == ("48.4 / 27.2", "-0.4 / +0.2")
    assert line.ours == "48.0 (47.5 to 48.5) / 27.4 (27.0 to 27.8)"
    assert lines(short, table="table8")["ResNet-101"].difference == "(-0.4 / +0.2)"
    remarks = lines(short, table="table8")["ResNet-101"].remarks
    assert remarks[1:] == ("100 of 320,000 iterations", "changed: batch=8")
    # a test with an improvement is another row's
    assert "not run" in lines(sample(test="-refined"), table="table8")["ResNet-101"].remarks
    assert lines(sample(test="-refined"), table="table9")["+ box refinement"].difference == "-1.9 / -2.5"


def test_an_ensemble_stands_in_the_row_of_as_many_members():
    test = "-refined-scales-200-400-600-800-1000"
    three = sample(run="ensemble-0123", test=test, context=True, members=("a", "b", "c"), images=20_288)
    line = lines(three, table="table9")["ensemble of three"]
    assert line.difference == "(-11.0 / -10.0)" and "`a` + `b` + `c` on 20,288 images" in line.remarks[1]
    assert "not run" in lines(three, table="table9")["+ multi-scale testing"].remarks
    two = sample(run="ensemble-0124", test=test, context=True, members=("a", "b"))
    assert "not run" in lines(two, table="table9")["ensemble of three"].remarks


@pytest.mark.parametrize("suffix", ["index.html", "README.md"])
def test_the_page_has_them(tmp_path, suffix):
    keep(tmp_path, sample())
    keep(tmp_path, sample(test="-refined"))
    found = read_kept(tmp_path)
    assert found.transfers == (sample(test="-refined"), sample()), "by the names of their files"
    costs = Costs(kept_costs(), dict.fromkeys(recipe_names(), 7200.0), "1xa100")
    write_page(tmp_path, Kept(runs=(), ensembles=(), transfers=found.transfers), costs)
    text = (tmp_path / suffix).read_text()
    assert all(table.title in text for table in TRANSFERS) and "48.0 (47.5 to 48.5)" in text
