"""Duplicates against a count by hand, over random contents."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_pipeline.data.checksums import checksum
from resnet_pipeline.data.duplicates import Duplicates, duplicates_of

SAMPLES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["train", "val"]), st.integers(-1, 2)), max_size=20)


@given(SAMPLES)
@settings(max_examples=200, deadline=None)
def test_each_content_that_stands_twice_is_found(samples):
    checksums = np.array([checksum(bytes([content])) for content, _, _ in samples], np.uint64)
    splits, labels = [s for _, s, _ in samples], [c for _, _, c in samples]
    found = duplicates_of(checksums, splits, labels, [f"{i:02d}" for i in range(len(samples))])
    groups = defaultdict(list)
    for number, (content, split, label) in enumerate(samples):
        groups[content].append((f"{number:02d}", split, label))
    across = sorted(tuple(k for k, _, _ in g) for g in groups.values() if len({s for _, s, _ in g}) > 1)
    mixed = sorted(tuple(k for k, _, _ in g) for g in groups.values() if len({c for _, _, c in g} - {-1}) > 1)
    expected = Duplicates(
        across_splits=len(across), across_classes=len(mixed), split_keys=tuple(across), class_keys=tuple(mixed)
    )
    assert found == expected and len(found.lines()) == bool(across) + bool(mixed)
