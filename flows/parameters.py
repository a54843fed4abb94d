"""Every parameter that the command line and the flows share: its type, bounds and help, stated once.

``cli.options.command`` makes options of them and ``flows.shell.form`` the fields of Prefect's form. A command and its
flow give a parameter the same name and the same default. This module imports nothing slow: ``--help`` reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from resnet_pipeline.config_io import parse_assignments
from resnet_pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """What is said of a parameter beside its type; it stands in the type's ``Annotated``.

    ``least`` and ``most`` bound numbers and the length of lists, ``pattern`` texts. The rest is the command line's:
    ``flags`` (empty: ``--`` and the name), ``argument`` (by position, without a flag), ``metavar``, and for what is no
    plain value there ``read``, which takes the text, or the texts if the option may be ``repeated``.
    """

    help: str
    least: float | None = None
    most: float | None = None
    pattern: str | None = None
    flags: tuple[str, ...] = ()
    argument: bool = False
    metavar: str | None = None
    read: Callable[[Any], Any] | None = None
    repeated: bool = False


def _scales(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UserError(f"--scales must be whole numbers with commas between, as 224,256,384, not {text!r}")
    return [int(word) for word in words]


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seeds(text: str) -> list[int]:
    words = _listed(text)
    if not words or not all(word.isascii() and word.isdecimal() for word in words):
        raise UserError(f"--seeds must be whole numbers with commas between, as 0,1, not {text!r}")
    return [int(word) for word in words]


MODEL = (
    "A run directory, a registered model's NAME or NAME@ALIAS, models:/…, runs:/ID, NETWORK=WEIGHTS-FILE, "
    "torchvision:NAME or timm:NAME"
)
Protocol = Literal["center", "10-crop", "multi-scale"]

# staging
Source = Annotated[
    str,
    Parameter(
        help="A folder with the ILSVRC-2012 archives, Kaggle's ILSVRC folder or archive, cifar-10-python.tar.gz or "
        "cifar-10-binary.tar.gz, a folder or archive of train/<class>/* and val/<class>/* (or <class>/* with "
        "--holdout; docs/operations.md has more layouts), COCO's or Pascal VOC's folder, builtin:digits, or "
        "builtin:scenes (digits on backgrounds, for detectors)."
    ),
]
NewName = Annotated[str, Parameter(help="What the dataset is called from now on.")]
StagingWorkers = Annotated[int | None, Parameter(help="Processes. Default: one per CPU core.", least=1)]
MaxRefused = Annotated[
    float, Parameter(help="Stop when more than this share of the images is broken.", least=0, most=1)
]
Holdout = Annotated[
    int, Parameter(help="Make this many training images the split val (the paper's CIFAR-10 study: 5000).", least=0)
]
MaxShorterSide = Annotated[
    int | None,
    Parameter(help="Make images smaller whose shorter side is larger. Default: keep them as they are.", least=1),
]
MaxValue = Annotated[
    int | None,
    Parameter(
        help="What white is in grey images of more than 8 bits (4095 for 12 bits kept in 16). Default: 65535 of 16 "
        "bits; floats are refused.",
        least=1,
    ),
]
CheckMd5 = Annotated[
    bool,
    Parameter(
        help="Compare ILSVRC's and CIFAR-10's archives with their published MD5s; with --no-md5 files that differ are "
        "accepted.",
        flags=("--md5/--no-md5",),
    ),
]
Replace = Annotated[bool, Parameter(help="Replace a dataset of this name that has other files or options.")]

# training
DatasetName = Annotated[str, Parameter(help="The name that the dataset was given when it was staged.")]
Steps = Annotated[int | None, Parameter(help="Optimiser steps. Default: the recipe's.", least=1)]
Workers = Annotated[
    int | str | None,
    Parameter(
        help="Training processes; 1-4: as many as there is room for, also when nodes come and go. "
        "Default: every GPU, or one on a CPU.",
        least=1,
        pattern=r"^\d+(-\d+)?$",
        metavar="N|MIN-MAX",
        read=str,
    ),
]
DemoWorkers = Annotated[int, Parameter(help="Training processes on this machine.", least=1)]
Launcher = Annotated[
    Literal["ray", "local", "torchrun"],
    Parameter(
        help="ray: start workers on a Ray cluster. local: train in this process alone. torchrun: train as one of the "
        "processes that torchrun or srun started."
    ),
]
MaxFailures = Annotated[
    int,
    Parameter(
        help="Resume from the newest checkpoint after this many lost workers or nodes of Ray's (torchrun: its "
        "--max-restarts).",
        least=0,
    ),
]
Mirror = Annotated[
    str | None,
    Parameter(
        help="Keep checkpoints at this folder or s3:// address too, and resume from there on another machine. "
        "Default: RESNET_PIPELINE_MIRROR, else nowhere."
    ),
]
Seed = Annotated[
    int | None,
    Parameter(help="Decides initial weights, sample order and augmentation. Default: the recipe's.", least=0),
]
InitialReference = Annotated[
    str | None,
    Parameter(
        help="Begin with the weights of this network, not with random ones: a run directory, a registered NAME or "
        "NAME@ALIAS, models:/…, runs:/ID, NETWORK=WEIGHTS-FILE, torchvision:NAME or timm:NAME. If its classes are "
        "others than the dataset's, its classifier is replaced.",
        metavar="MODEL",
    ),
]
Deepen = Annotated[
    bool,
    Parameter(
        help="Add the layers that the network of --initial-weights has not, as identity mappings: the errors are at "
        "first those of the shallower one (the paper, section 1).",
        flags=("--deepen",),
    ),
]
Proposals = Annotated[
    str | None,
    Parameter(
        help="For ilsvrc-loc/rcnn-…: train on the boxes that this finished run of ilsvrc-loc/… finds in the images. "
        "They are kept in its directory.",
        metavar="RUN",
    ),
]
Reference = Annotated[str, Parameter(help=f"What is fine-tuned. {MODEL}.", argument=True, metavar="MODEL")]
OptionalName = Annotated[
    str | None, Parameter(help="What the dataset is called from now on. Default: the name of the folder or archive.")
]
Epochs = Annotated[float, Parameter(help="How often each training image is seen.", least=0.1)]
Size = Annotated[
    int | None,
    Parameter(
        help="Side of the crops that it is trained and tested on, in pixels. Default: 224, or 32 for CIFAR's networks.",
        least=8,
    ),
]
FrozenStages = Annotated[
    int | None,
    Parameter(
        help="Keep the first layers as they are, batch norm too: 0 the first convolution, 2 also the stages 1 and 2. "
        "Default: none.",
        least=0,
        most=4,
    ),
]
LinearProbe = Annotated[
    bool, Parameter(help="Train the classifier alone, on the features that there are.", flags=("--linear-probe",))
]
NormEval = Annotated[
    bool,
    Parameter(
        help="Keep the statistics of all batch norm, and use them in training too; scales and shifts are learned.",
        flags=("--norm-eval",),
    ),
]
LayerDecay = Annotated[
    float | None,
    Parameter(
        help="Train each stage with this part of the learning rate of the one above it. Default: one rate for all.",
        least=0,
        most=1,
    ),
]
Overrides = Annotated[
    dict[str, Any] | None,
    Parameter(
        help='Fields of the recipe to change, by dotted name: optim.lr=0.05; for a flow {"optim.lr": 0.05}.',
        flags=("--set",),
        metavar="KEY=VALUE",
        read=parse_assignments,
        repeated=True,
    ),
]
Price = Annotated[
    float | None,
    Parameter(
        help="What an hour of all the hardware in use costs, in any currency: long work then says what it costs. "
        "Default: RESNET_PIPELINE_PRICE, else nothing is said of it.",
        least=0,
        metavar="AN-HOUR",
    ),
]
Profile = Annotated[bool, Parameter(help="Name a step's bottleneck, and keep a trace of a few steps.")]
ValidateAside = Annotated[
    bool,
    Parameter(
        help="Let another worker on Ray, with a GPU or CPUs of its own, validate in mid-training while training goes "
        "on. Not for recipes whose learning rate follows the validation errors.",
        flags=("--validate-aside",),
    ),
]
RegisteredAs = Annotated[
    str | None,
    Parameter(
        help="Register the result in MLflow under this name. Default: the recipe's, as cifar10-resnet20. An ensemble "
        "is registered only with this option, if its members are.",
        flags=("--register",),
        metavar="NAME",
    ),
]
Registered = Annotated[
    bool, Parameter(help="Whether the finished network is registered at all.", flags=(" /--no-register",))
]

# testing
_MODELS = Parameter(help=f"{MODEL}.", least=1, argument=True, metavar="MODEL...")
Models = Annotated[list[str], _MODELS]
OptionalModels = Annotated[list[str] | None, _MODELS]
Members = Annotated[
    list[str],
    Parameter(help=f"{MODEL}, or a score file (….parquet).", least=1, argument=True, metavar="MODEL..."),
]
OptionalDataset = Annotated[
    str | None,
    Parameter(
        help="The name that the dataset was given when it was staged; not needed for score files.", flags=("--dataset",)
    ),
]
ProtocolName = Annotated[
    Protocol,
    Parameter(
        help="center: one crop. 10-crop: corners and centre, mirrored too (Tables 2, 3). "
        "multi-scale: the whole image at several sizes (Table 4)."
    ),
]
Protocols = Annotated[list[Protocol], Parameter(help="How the finished network is tested.")]
Split = Annotated[str | None, Parameter(help="Split to test on. Default: val, or test if there is no val.")]
Scales = Annotated[
    list[int] | None,
    Parameter(
        help="Shorter sides to average over, or of detectors to pool at. Default: each network's own.",
        metavar="N,N,…",
        read=_scales,
    ),
]
Average = Annotated[
    Literal["softmax", "logits"], Parameter(help="What is averaged over views: softmax (the authors) or logits.")
]
Images = Annotated[int | None, Parameter(help="Test on this many evenly spaced images only. Default: all.", least=1)]
ScoringWorkers = Annotated[
    int | None,
    Parameter(
        help="Workers on Ray. Default: all of RAY_ADDRESS's cluster, else all GPUs of this machine, or this process.",
        least=1,
    ),
]
AllowPartial = Annotated[
    bool, Parameter(help="Let runs of fewer steps than their recipe's into ilsvrc2015; its card says so.")
]
Refine = Annotated[bool, Parameter(help="Of detectors: box refinement with voting (the paper, appendix B).")]
Voc = Annotated[
    Literal["11", "all"] | None,
    Parameter(help="Of detectors: also give Pascal VOC's mean average precision, of 11 points or of all."),
]
Half = Annotated[bool, Parameter(help="Keep the scores in half the bytes, as float16.", flags=("--half", "--float16"))]
Combined = Annotated[
    Literal["probabilities", "logits"], Parameter(help="What is averaged over members: probabilities or logits.")
]
FitWeights = Annotated[bool, Parameter(help="Also fit weights on a random half, and report on the other.")]
Greedy = Annotated[bool, Parameter(help="Also add the best member at a time, and show the curve.")]
Contributions = Annotated[bool, Parameter(help="Also show the errors without each member.")]

# the paper's tables and figures
ExhibitName = Annotated[
    Literal[
        "section1", "figure1", "figure4", "figure6", "figure7",
        "table1", "table2", "table3", "table4", "table5", "table6", "all",
    ],
    Parameter(help="A table or figure of the paper, or all of them.", argument=True),
]  # fmt: skip
ImageNetName = Annotated[
    str | None,
    Parameter(help="The staged dataset that stands for ImageNet: figure 4, Tables 1 to 5.", flags=("--imagenet",)),
]
Cifar10Name = Annotated[
    str | None,
    Parameter(help="The staged dataset that stands for CIFAR-10: figures 1, 6 and 7, Table 6.", flags=("--cifar10",)),
]
ScaleName = Annotated[
    Literal["full", "small"],
    Parameter(
        help="full: the paper's iterations, networks and seeds. small: for two cores: a quarter of CIFAR-10's "
        "iterations, a thousandth of ImageNet's on a hundredth of its training images, the shallowest and the deepest "
        "of the networks, one seed."
    ),
]
Networks = Annotated[
    list[str] | None,
    Parameter(help="These networks alone, as plain20,resnet20. Default: those of the scale.", metavar="NAME,NAME,…",
              read=_listed),
]  # fmt: skip
Seeds = Annotated[
    list[int] | None,
    Parameter(help="A run of each network for each of these seeds. Default: those of the scale.", metavar="N,N,…",
              read=_seeds),
]  # fmt: skip
Share = Annotated[
    float | None,
    Parameter(
        help="Train on this part of each class's training images. Default: all; small: 0.01 of ImageNet's.",
        least=0,
        most=1,
    ),
]
StudyLauncher = Annotated[
    Literal["ray", "local"],
    Parameter(help="ray: start workers on a Ray cluster. local: train in this process alone."),
]
KeptIn = Annotated[
    str | None,
    Parameter(
        help="The folder that keeps the results (small JSON files), the page, its tables as Markdown and its figures. "
        "Default: reproduction/ under the root.",
        flags=("--output",),
        metavar="FOLDER",
    ),
]
PlanOnly = Annotated[
    bool,
    Parameter(help="Show the runs, what exists of them and what the rest costs, and start nothing.", flags=("--plan",)),
]
PageOnly = Annotated[bool, Parameter(help="Write the page from what is kept, and start nothing.", flags=("--page",))]
