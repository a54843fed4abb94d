"""What is kept of runs for good: a small JSON file each, from which the page on the paper's results is made again.

    FOLDER/runs/RUN.json  FOLDER/ensembles/NAME.json

Such a file needs neither the run's directory nor its scores, and lies in a repository as well as under a root.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.exhibits import network_name
from resnet_pipeline.files import replacing
from resnet_pipeline.records import OMIT_NONE, load_record, plain_record

FORMAT = 1
_MOST_POINTS = 200  # of a kept curve
R = TypeVar("R", "KeptRun", "KeptEnsemble", "KeptTransfer")


@dataclass(frozen=True, kw_only=True)
class KeptCurve:
    """Errors in percent against the iteration."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class KeptDataset:
    """What a run was trained on: the images of each split, and the layout that staging found its source in.

    ``seen`` is how many images of the other splits are training images too, byte for byte; None for none, or not known.
    """

    name: str
    fingerprint: str
    layout: str
    classes: int
    samples: Mapping[str, int]
    seen: int | None = None


@dataclass(frozen=True, kw_only=True)
class KeptTest:
    """A test under a protocol: images, and how many were wrong at the first, and at the first five, answers.

    ``wrong`` has a bit per image of the split's order, packed and in base64, for paired tests.
    """

    protocol: str
    split: str
    images: int
    wrong1: int
    wrong5: int
    wrong: str

    @classmethod
    def of(cls, protocol: str, split: str, places: npt.NDArray[np.int64]) -> KeptTest:
        """Return the test whose images had ``places`` int64 [N]: how many classes stood before the right one."""
        wrong = places >= 1
        return cls(
            protocol=protocol,
            split=split,
            images=len(places),
            wrong1=int(np.count_nonzero(wrong)),
            wrong5=int(np.count_nonzero(places >= 5)),
            wrong=base64.b64encode(np.packbits(wrong).tobytes()).decode(),
        )

    @property
    def top1(self) -> float:
        """The top-1 error in percent."""
        return 100 * self.wrong1 / self.images

    @property
    def top5(self) -> float:
        """The top-5 error in percent."""
        return 100 * self.wrong5 / self.images

    def wrong_images(self) -> npt.NDArray[np.bool_]:
        """Return which images were wrong, bool [images]; UserError if the bits don't belong to the counts."""
        bits = np.frombuffer(base64.b64decode(self.wrong), dtype=np.uint8)
        found = np.unpackbits(bits)[: self.images].astype(bool)
        if len(found) != self.images or int(np.count_nonzero(found)) != self.wrong1:
            raise UserError(f"a kept test ({self.protocol}) says {self.wrong1} of {self.images} wrong, its bits do not")
        return found


@dataclass(frozen=True, kw_only=True)
class KeptResult:
    """How a finished run was computed, and the hash of its weights."""

    seconds: float
    images_per_second: float
    workers: int
    device: str
    precision: str
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class KeptRun:
    """A run as far as it is: ``step`` of ``steps``, of which the paper's recipe has ``paper_steps``.

    ``changes`` are the fields that differ from the recipe, as ``--set`` takes them, beside steps and seed. ``train``
    and ``validation`` are errors in percent against the iteration. ``trained_images`` and ``trained_wrong`` count the
    augmented training images of about the last epoch. ``responses`` are figure 7's, one of each 3×3 layer.
    ``begun_with`` is the shallower network of the study whose weights, deepened, it begins with.
    """

    format: int = FORMAT
    run: str
    recipe: str
    seed: int
    steps: int
    paper_steps: int
    changes: tuple[str, ...]
    state: Literal["finished", "interrupted", "failed"]
    step: int
    dataset: KeptDataset
    command: str
    commit: str
    mlflow_run: str
    environment: Mapping[str, str]
    train: KeptCurve
    validation: KeptCurve
    trained_images: int
    trained_wrong: int
    tests: tuple[KeptTest, ...] = ()
    result: KeptResult | None = field(default=None, metadata=OMIT_NONE)
    responses: tuple[float, ...] | None = field(default=None, metadata=OMIT_NONE)
    begun_with: str | None = field(default=None, metadata=OMIT_NONE)

    @property
    def network(self) -> str:
        """The recipe's name without its family, and the network whose weights it begins with, if any."""
        return network_name(self.recipe, self.begun_with)

    @property
    def family(self) -> str:
        """The recipe's family, as ``cifar10``."""
        return self.recipe.partition("/")[0]

    @property
    def setting(self) -> Setting:
        """What it has in common with the runs that it compares with."""
        share = self.steps / self.paper_steps
        return Setting(fingerprint=self.dataset.fingerprint, share=share, changes=self.changes)

    def test(self, protocol: str) -> KeptTest | None:
        """Return the test under a protocol, if there was one."""
        return next((test for test in self.tests if test.protocol == protocol), None)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What two runs must share so that their errors compare: data, part of the recipe's iterations, changed fields."""

    fingerprint: str
    share: float
    changes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class KeptEnsemble:
    """The mean of some kept runs' scores, and how it did."""

    format: int = FORMAT
    name: str
    runs: tuple[str, ...]
    command: str
    tests: tuple[KeptTest, ...]


@dataclass(frozen=True, kw_only=True)
class KeptTransfer:
    """A test of a finished detector or localiser: each figure in percent with its 95 % interval, by name.

    ``test`` names what the test adds to a plain one (`evaluation.transfers.TransferRow`), ``context`` says whether the
    network has the paper's global context. ``changes`` are the other fields that differ from the recipe. ``members``
    are the runs of an ensemble, whose name ``run`` then is, and ``steps`` those of its shortest; none for one run.
    """

    format: int = FORMAT
    run: str
    test: str
    recipe: str
    context: bool
    steps: int
    paper_steps: int
    changes: tuple[str, ...]
    dataset: str
    images: int
    figures: Mapping[str, tuple[float, float, float]]
    command: str
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run, and the test if it is not the plain one."""
        return f"{self.run}-{self.test.strip('-')}" if self.test else self.run


@dataclass(frozen=True, kw_only=True)
class Kept:
    """All that a folder keeps."""

    runs: tuple[KeptRun, ...]
    ensembles: tuple[KeptEnsemble, ...]
    transfers: tuple[KeptTransfer, ...] = ()


def keep(folder: Path, what: KeptRun | KeptEnsemble | KeptTransfer) -> Path:
    """Write the file of what is kept, atomically, a line for each field, and return its path."""
    path = folder / _FOLDERS[type(what)] / f"{_name(what)}.json"
    fields = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in plain_record(what).items())
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(fields) + "\n}\n")
    return path


def read_kept(folder: Path) -> Kept:
    """Read what a folder keeps, in the order of names; UserError names a file that is damaged or of another format.

    Example: ``read_kept(Path("docs/reproduction")).runs[0].recipe``
    """
    return Kept(
        runs=tuple(_read(KeptRun, sorted((folder / "runs").glob("*.json")))),
        ensembles=tuple(_read(KeptEnsemble, sorted((folder / "ensembles").glob("*.json")))),
        transfers=tuple(_read(KeptTransfer, sorted((folder / "transfers").glob("*.json")))),
    )


def kept_run(folder: Path, run: str) -> KeptRun | None:
    """Return what a folder keeps of a run, None if it keeps nothing."""
    path = folder / "runs" / f"{run}.json"
    return next(iter(_read(KeptRun, [path])), None) if path.is_file() else None


def thinned(steps: Sequence[int], values: Sequence[float]) -> KeptCurve:
    """Return a curve of at most 200 points: each the mean of as many neighbours, at the last one's iteration.

    >>> thinned(range(1, 401), [1.0] * 400).steps[:2]
    (2, 4)
    """
    size = -(-len(steps) // _MOST_POINTS) or 1
    groups = [slice(start, start + size) for start in range(0, len(steps), size)]
    return KeptCurve(
        steps=tuple(steps[group][-1] for group in groups),
        values=tuple(round(float(np.mean(values[group])), 3) for group in groups),
    )


_FOLDERS = {KeptRun: "runs", KeptEnsemble: "ensembles", KeptTransfer: "transfers"}


def _name(what: KeptRun | KeptEnsemble | KeptTransfer) -> str:
    return what.run if isinstance(what, KeptRun) else what.name


def _read(kind: type[R], files: Iterable[Path]) -> list[R]:
    found = []
    for path in files:
        what = load_record(kind, path)
        if what.format != FORMAT:
            raise UserError(f"{path} is of format {what.format}, not {FORMAT}; keep the run again")
        if _name(what) != path.stem:
            raise UserError(f"{path} is named otherwise than what it keeps, {_name(what)}; rename it")
        found.append(what)
    return found
