"""128 images of COCO, crowds included, through `evaluate`: its figures are those of COCO's own code."""

from __future__ import annotations

import json
import tarfile

import pytest
import torch

from resnet_pipeline import cli
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection.networks import build_detector
from resnet_pipeline.detection.results import ResultsFacts
from resnet_pipeline.detection.trained import load_detector
from resnet_pipeline.jobs.detect import results_path
from resnet_pipeline.models import Normalize, build_model
from resnet_pipeline.models.weights import save_weights
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.staging.stage import Source, pack
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.detections import jittered, published
from tests.packing import InThisProcess


@pytest.mark.slow
def test_the_figures_of_a_result_file_are_those_of_coco_s_own_code(coco128, tmp_path, monkeypatch, capsys):
    """The detector has drawn weights; its kept result file has the true boxes and masks, moved, doubled and lost."""
    workspace = Workspace.of(tmp_path / "work")
    pack(Source.at(coco128), LocalStorage(workspace.root / "datasets" / "coco128"), name="coco128",
         workers=InThisProcess)  # fmt: skip
    dataset = open_dataset(workspace, "coco128")
    config = with_overrides(get_recipe("scenes/maskrcnn-resnet8-c4"), {"optim.frozen_stages": None})
    run = RunDirectory.create(workspace.runs, config, dataset.facts)
    torch.manual_seed(0)
    network = build_model("cifar-resnet8", num_classes=len(dataset.classes))
    drawn = build_detector(network, config.detection, classes=len(dataset.classes), normalize=Normalize(torch.zeros(3)))
    save_weights(drawn, run.weights_file, {})
    detector = load_detector(run.path)
    path = results_path(workspace, dataset.fingerprint, "val", detector.protocol, detector.weights_sha256)
    jittered(dataset, "val", masks=True).write(dataset, path)
    ResultsFacts(
        weights_sha256=detector.weights_sha256, dataset_fingerprint=dataset.fingerprint, split="val",
        protocol=detector.protocol, seconds=1.0,
    ).keep(path)  # fmt: skip

    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(workspace.root))
    monkeypatch.setattr("sys.argv", ["resnet-pipeline", "evaluate", str(run.path), "--dataset", "coco128", "--json=-"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (said,) = json.loads(capsys.readouterr().out)["models"]
    assert ended.value.code == 0 and said["reused"] and said["scores"] == str(path) and said["images"] == 128

    with tarfile.open(coco128) as tar:
        truth = json.load(tar.extractfile("annotations/instances_val2017.json"))
    assert sum(annotation["iscrowd"] for annotation in truth["annotations"]) == 10
    for ours, kind in ((said, "bbox"), (said["masks"], "segm")):
        stats, _ = published(truth, json.loads(path.read_text()), kind)
        names = ("ap", "ap50", "ap75", "small", "medium", "large")
        assert [ours[name] for name in names] == pytest.approx((100 * stats[:6]).tolist(), abs=1e-6), kind
        assert ours["recall"] == pytest.approx(100 * stats[8], abs=1e-6) and 5 < ours["ap"] < 95
