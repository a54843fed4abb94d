"""Small image folders in the layout that staging takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.images import photo_files


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes ``{name: bytes}`` below a new folder."""

    def make(files: dict[str, bytes], name: str = "source") -> Path:
        for relative, data in files.items():
            path = tmp_path / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / name

    return make


@pytest.fixture
def photos(make_folder: Callable[..., Path]) -> Path:
    """Return a folder of 24 training and 10 validation images of many sizes in two classes."""
    return make_folder(photo_files())


@pytest.fixture
def score_files(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], list[Path]]:
    """Return the score files that are read and those that are written from here on: Arrow's own calls are counted."""
    read: list[Path] = []
    written: list[Path] = []
    reader, write = pyarrow.parquet.ParquetFile, pyarrow.parquet.write_table

    def note(found: list[Path], place: Any) -> None:
        if isinstance(place, str | Path) and "scores" in Path(place).parts:
            found.append(Path(place))

    def counted_reader(place: Any, *arguments: Any, **options: Any) -> Any:
        note(read, place)
        return reader(place, *arguments, **options)

    def counted_write(table: Any, place: Any, *arguments: Any, **options: Any) -> None:
        note(written, place)
        write(table, place, *arguments, **options)

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", counted_reader)
    monkeypatch.setattr(pyarrow.parquet, "write_table", counted_write)
    return read, written
