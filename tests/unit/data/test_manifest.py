"""The manifest against files that an earlier version wrote, and what is said of one that can't be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet_pipeline.data.manifest import (
    MANIFEST,
    DamagedDatasetError,
    Manifest,
    fingerprint_of,
    read_manifest,
)
from resnet_pipeline.records import plain_record
from resnet_pipeline.staging.shard_writer import Record
from resnet_pipeline.storage.local import LocalStorage

GOLDEN = Path(__file__).parents[2] / "golden" / "staging"


def test_a_manifest_is_written_as_it_was_read():
    manifest = read_manifest(LocalStorage(GOLDEN))
    assert manifest.to_bytes() == (GOLDEN / MANIFEST).read_bytes()


def test_a_manifest_has_the_fingerprint_of_what_it_says():
    manifest = read_manifest(LocalStorage(GOLDEN))
    assert fingerprint_of(plain_record(manifest)) == manifest.fingerprint


def test_white_is_in_the_manifest_if_it_was_given(tmp_path):
    with_white = signed(golden() | {"max_value": 4095}, tmp_path)
    assert (with_white.max_value, json.loads(with_white.to_bytes())["max_value"]) == (4095, 4095)


def test_a_shard_s_record_is_written_as_it_was_read():
    data = (GOLDEN / "train-00000.npz").read_bytes()
    assert Record.from_bytes(data).to_bytes() == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": "n01"}, "classes must be a list, not 'n01'"),
        ({"splits": {"train": {"samples": 7}}}, "missing field splits.train.shards"),
        ({"refused": [{"file": "a", "reason": None}]}, r"refused\[0\].reason must be of type str, not None"),
        ({"boxes": []}, "unknown field boxes"),
    ],
)
def test_a_field_of_another_version_is_named_in_one_line(tmp_path, change, message):
    with pytest.raises(DamagedDatasetError, match=message) as error:
        signed(golden() | change, tmp_path)
    assert str(tmp_path / MANIFEST) in str(error.value) and "stage the dataset again" in str(error.value)
    assert "\n" not in str(error.value)


def golden() -> dict[str, object]:
    content: dict[str, object] = json.loads((GOLDEN / MANIFEST).read_text())
    return content


def signed(content: dict[str, object], folder: Path) -> Manifest:
    """Write a manifest with its fingerprint, and read it."""
    (folder / MANIFEST).write_text(json.dumps({**content, "fingerprint": fingerprint_of(content)}))
    return read_manifest(LocalStorage(folder))
