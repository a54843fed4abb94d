"""What a finished run came to: ``result.json``, which is written last and so says that the run is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import json_text, write_json
from resnet_pipeline.records import OMIT_NONE, RecordError, plain, read_record


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run.

    Example: ``RunResult.read(run.result_file).validation["top1"]``
    """

    steps: int
    images: int
    """Training images in all, repeated ones included."""
    seconds: float
    """Of training, in all attempts; validations don't count."""
    images_per_second: float
    workers: int
    """Processes at the end."""
    device: str
    precision: str | None = field(default=None, metadata=OMIT_NONE)
    """What was computed in: float32, bf16, float64; results of before 2026-11-25 don't say."""
    train_loss: float | None
    """Since the last log point, as is the error; None if the run has none."""
    train_error: float | None
    """In percent."""
    validation: Mapping[str, float | int]
    """What the finished network's test came to: for classification "top1", "top5" in percent, and "images"."""
    best: Mapping[str, float | int]
    """The lowest error of all validations, and the "step" it was of."""
    weights_sha256: str
    """Of the final weights' tensors (``models.weights.weights_sha256``)."""

    @classmethod
    def read(cls, path: Path) -> RunResult | None:
        """Read a result; None if there is no such file, UserError if it is damaged."""
        try:
            return read_record(cls, json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, RecordError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it to finish the run again") from None

    def text(self) -> str:
        """Return the result as it stands in its file."""
        return json_text(plain(self))

    def write(self, path: Path) -> None:
        """Write the result, atomically."""
        write_json(path, plain(self))
