"""What the processes of a run tell one another: short texts by name, and lines of metrics for whoever started it.

Processes that see one folder use files in it. Workers on machines that share none use an actor of Ray's instead
(`adapters.ray.run_control`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from resnet_pipeline.files import replacing

OWNER = "owner"
"""The attempt that trains this run now; an earlier one that is still alive ends when it sees that."""
STOP = "stop"
"""Asks the workers to save and stop at their next step."""
SAVE = "save-request"
"""Asks the workers to save soon and to train on; they remove it when they have seen it."""
SAVED = "saved"
"""The step of the newest checkpoint that whoever resumes the run can have."""
PROFILE = "profile-request"
"""Asks the workers to profile a few steps; they remove it when they have."""
ERROR = "error.txt"
"""What ended the last attempt, if it is something that the user can mend."""


class Signals(Protocol):
    """Texts by name, each whole or not there, and lines; UnavailableError if they can't be reached."""

    @property
    def shared(self) -> bool:
        """Whether all processes of the run see one directory; else each has its own, and the run has a home."""

    def put(self, name: str, text: str = "") -> None:
        """Leave a text for the others, in place of what is there."""

    def get(self, name: str) -> str | None:
        """Return a text, None if there is none."""

    def remove(self, name: str) -> None:
        """Remove a text; nothing happens if there is none."""

    def tell(self, line: bytes) -> None:
        """Tell whoever started the run a line of its metrics, unless it sees the metrics file itself."""


@dataclass(frozen=True)
class FileSignals:
    """Files of a folder that all processes see.

    Example: ``FileSignals(run.path).put(STOP)``
    """

    folder: Path
    shared: bool = True

    def put(self, name: str, text: str = "") -> None:
        """Write a file."""
        with replacing(self.folder / name) as temporary:
            temporary.write_text(text)

    def get(self, name: str) -> str | None:
        """Read a file."""
        with suppress(FileNotFoundError):
            return (self.folder / name).read_text(errors="replace")
        return None

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)

    def tell(self, line: bytes) -> None:
        """Do nothing: the line is in the metrics file, which all see."""
