"""The paper's tables of its appendices as data: what its networks come to in detection and localisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_VOC, _COCO, _LOC = "voc/fasterrcnn-resnet101-c4", "coco/fasterrcnn-resnet101-c4", "ilsvrc-loc/resnet101"
_RCNN = "ilsvrc-loc/rcnn-resnet101"
_SCALES = "-refined-scales-200-400-600-800-1000"


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """A row: what the paper calls it, its figures in the table's order, and what gives ours.

    ``recipe`` is None for what this program does not train; ``note`` says why, or what differs. A run of the recipe is
    the row's if it has its ``context`` (the paper's global context), and a test if its protocol ends with ``test``.
    ``images`` is how many the paper's figure is of, None if it is of a test server. ``members`` networks are trained.
    """

    label: str
    paper: tuple[float, ...]
    recipe: str | None = None
    context: bool = False
    test: str = ""
    images: int | None = None
    members: int = 1
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class TransferTable:
    """A table: the names of its figures in percent, and how a dataset of it is tested; ``better`` says which way."""

    name: str
    title: str
    figures: tuple[str, ...]
    dataset: str
    better: Literal["higher", "lower"]
    rows: tuple[TransferRow, ...]


def options_of(test: str) -> str:
    """Return the options of `evaluate` and `ensemble` that a test of detectors is made with.

    >>> options_of("-refined-scales-400-600")
    ' --refine --scales 400,600'
    """
    scales = test.partition("scales-")[2].replace("-", ",")
    return (" --refine" if "refined" in test else "") + (f" --scales {scales}" if scales else "")


_VGG = "VGG-16 is no network of this program"
_NO_SERVER = "the paper's is its test server's figure"
_DET = "ILSVRC's detection task (200 classes) has no recipe here"
_TRAINED_ON_COCO = "with COCO's networks trained on, and all improvements; ours would begin with a run of coco/"

TRANSFERS: tuple[TransferTable, ...] = (
    TransferTable(
        name="table7", title="Table 7: Pascal VOC 2007 and 2012, mean average precision", figures=("mAP",),
        dataset="voc", better="higher",
        rows=(
            TransferRow(label="VGG-16, VOC 2007", paper=(73.2,), note=_VGG),
            TransferRow(label="ResNet-101, VOC 2007", paper=(76.4,), recipe=_VOC, images=4_952),
            TransferRow(label="VGG-16, VOC 2012", paper=(70.4,), note=_VGG),
            TransferRow(label="ResNet-101, VOC 2012", paper=(73.8,), note=f"{_NO_SERVER}; its labels are not public"),
        ),
    ),
    TransferTable(
        name="table8", title="Table 8: COCO validation, average precision", figures=("AP50", "AP"), dataset="coco",
        better="higher",
        rows=(
            TransferRow(label="VGG-16", paper=(41.5, 21.2), note=_VGG),
            TransferRow(label="ResNet-101", paper=(48.4, 27.2), recipe=_COCO, images=40_504),
        ),
    ),
    TransferTable(
        name="table9", title="Table 9: COCO validation with the improvements, one after the other",
        figures=("AP50", "AP"), dataset="coco", better="higher",
        rows=(
            TransferRow(label="+ box refinement", paper=(49.9, 29.9), recipe=_COCO, test="-refined", images=40_504),
            TransferRow(label="+ context", paper=(51.1, 30.0), recipe=_COCO, context=True, test="-refined",
                        images=40_504),
            TransferRow(label="+ multi-scale testing", paper=(53.8, 32.5), recipe=_COCO, context=True, test=_SCALES,
                        images=40_504),
            TransferRow(label="ensemble of three", paper=(59.0, 37.4), recipe=_COCO, context=True, test=_SCALES,
                        members=3, note=f"{_NO_SERVER} (test-dev)"),
        ),
    ),
    TransferTable(
        name="table10", title="Table 10: Pascal VOC 2007 with all improvements", figures=("mAP",), dataset="voc",
        better="higher",
        rows=(TransferRow(label="ResNet-101 + + +", paper=(85.6,), recipe=_VOC, context=True, test=_SCALES,
                          images=4_952, note=_TRAINED_ON_COCO),),
    ),
    TransferTable(
        name="table11", title="Table 11: Pascal VOC 2012 with all improvements", figures=("mAP",), dataset="voc",
        better="higher",
        rows=(TransferRow(label="ResNet-101 + + +", paper=(83.8,), note=f"{_NO_SERVER}; its labels are not public"),),
    ),
    TransferTable(
        name="table12", title="Table 12: ImageNet detection, mean average precision on val2 and test",
        figures=("val2", "test"), dataset="", better="higher",
        rows=(
            TransferRow(label="ResNet-101, single", paper=(60.5, 58.8), note=_DET),
            TransferRow(label="ensemble of three", paper=(63.6, 62.1), note=_DET),
        ),
    ),
    TransferTable(
        name="table13", title="Table 13: ImageNet localisation error, validation", figures=("error",),
        dataset="ilsvrc2012", better="lower",
        rows=(
            TransferRow(label="VGG-16, one crop, true class", paper=(33.1,), note=_VGG),
            TransferRow(label="ResNet-101 RPN, one crop, true class", paper=(13.3,), recipe=_LOC, test="center",
                        images=50_000),
            TransferRow(label="ResNet-101 RPN, dense, true class", paper=(11.7,), recipe=_LOC, test="dense",
                        images=50_000),
            TransferRow(label="ResNet-101 RPN, dense, five predicted classes", paper=(14.4,), recipe=_LOC,
                        test="dense-predicted", images=50_000),
            TransferRow(label="RPN and R-CNN, dense, five predicted classes", paper=(10.6,), recipe=_RCNN,
                        test="dense-predicted", images=50_000),
            TransferRow(label="ensemble, five predicted classes", paper=(8.9,), recipe=_RCNN, test="dense-predicted",
                        images=50_000, members=2, note="the paper does not say of how many; two here"),
        ),
    ),
    TransferTable(
        name="table14", title="Table 14: ImageNet localisation error, test", figures=("error",), dataset="ilsvrc2012",
        better="lower", rows=(TransferRow(label="ensemble", paper=(9.0,), note=_NO_SERVER),),
    ),
)  # fmt: skip
"""The paper's Tables 7 to 14."""
