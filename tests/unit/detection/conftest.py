"""What the tests of detection share."""

from __future__ import annotations

import pytest

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.staging.stage import Source, pack
from resnet_pipeline.storage.local import LocalStorage
from tests.packing import InThisProcess


@pytest.fixture(scope="session")
def coco(request, tmp_path_factory) -> Dataset:
    """Return COCO128, staged."""
    archive = request.getfixturevalue("coco128")
    place = LocalStorage(tmp_path_factory.mktemp("coco128") / "d")
    pack(Source.at(archive), place, name="coco128", workers=InThisProcess)
    return Dataset.open(place.root)
