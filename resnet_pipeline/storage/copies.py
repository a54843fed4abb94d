"""A folder whose files are kept for good elsewhere: sent there when they are written, brought when they are missing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.files import replacing
from resnet_pipeline.storage.base import Storage


@dataclass(frozen=True)
class Copies:
    """Files of a folder, and the storage that they are copies of; None: they are here alone, and nothing happens.

    Example: ``Copies(workspace.scores, storage_at("s3://bucket/runs/scores")).bring(path)``
    """

    folder: Path
    home: Storage | None = None

    def bring(self, path: Path) -> None:
        """Bring a file that is not here, if it is there."""
        if self.home and not path.exists() and self.home.stat(self._name(path)):
            self._fetch(self.home, path)

    def bring_all(self, folder: Path) -> None:
        """Bring all files of a folder that are not here."""
        for stored in self.home.files(f"{self._name(folder)}/") if self.home else ():
            if self.home and not (self.folder / stored.name).exists():
                self._fetch(self.home, self.folder / stored.name)

    def send(self, path: Path) -> None:
        """Send a file."""
        if self.home:
            self.home.write(self._name(path), path)

    def remove_all(self, folder: Path) -> None:
        """Remove all files of a folder there."""
        for stored in self.home.files(f"{self._name(folder)}/") if self.home else ():
            if self.home:
                self.home.delete(stored.name)

    def _fetch(self, home: Storage, path: Path) -> None:
        with replacing(path) as temporary, home.open(self._name(path)) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
