"""Duplicates against a count by hand, over random contents, and images that look alike."""

from __future__ import annotations

import io
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_pipeline.data.checksums import checksum
from resnet_pipeline.data.duplicates import (
    NEAR,
    Duplicates,
    NearDuplicates,
    difference_hash,
    duplicates_of,
    near_duplicates_of,
)
from tests.images import jpeg

SAMPLES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["train", "val"]), st.integers(-1, 2)), max_size=20)


@pytest.mark.slow
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


def flipped(value, bits):
    for bit in bits:
        value ^= 1 << bit
    return value


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 1), st.sets(st.integers(0, 63), max_size=4)), max_size=25),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_each_pair_that_looks_alike_is_found_once(samples, random):
    """Against all pairs: hashes that differ in up to 8 bits, of two images."""
    images = [0x0F0F_1234_ABCD_5A5A, 0x7777_0001_F00F_3C3C]
    hashes = [flipped(images[image], bits) for image, bits in samples]
    splits = [random.choice(["train", "val"]) for _ in samples]
    labels = [random.choice([-1, 0, 1]) for _ in samples]
    sums = [random.randrange(8) for _ in samples]
    keys = [f"{i:02d}" for i in range(len(samples))]
    found = near_duplicates_of(np.array(hashes, np.uint64), np.array(sums, np.uint64), splits, labels, keys)
    pairs = [
        ((hashes[i] ^ hashes[j]).bit_count(), i, j) for i in range(len(samples)) for j in range(i)
        if (hashes[i] ^ hashes[j]).bit_count() <= NEAR and sums[i] != sums[j]
    ]  # fmt: skip
    across = sorted((bits, keys[j], keys[i]) for bits, i, j in pairs if splits[i] != splits[j])
    known = [(bits, i, j) for bits, i, j in pairs if labels[i] != labels[j] and -1 not in (labels[i], labels[j])]
    mixed = sorted((bits, keys[j], keys[i]) for bits, i, j in known)
    assert found == NearDuplicates(
        across_splits=len(across),
        across_classes=len(mixed),
        split_keys=tuple(pair[1:] for pair in across[:100]),
        class_keys=tuple(pair[1:] for pair in mixed[:100]),
    )


def test_the_same_picture_at_another_size_and_quality_looks_alike():
    pictures = [Image.open(io.BytesIO(jpeg(240, 320, seed=seed))) for seed in (1, 2)]
    again = io.BytesIO()
    pictures[0].resize((180, 130)).save(again, "JPEG", quality=40)
    one, other, small = (difference_hash(image) for image in (*pictures, Image.open(again)))
    assert (one ^ small).bit_count() <= NEAR < (one ^ other).bit_count()
    assert difference_hash(Image.new("RGB", (40, 40), "white")) == 0


def test_flat_pictures_are_not_alike():
    hashes = np.array([0, 1, 2**64 - 1, 0b111], np.uint64)
    found = near_duplicates_of(hashes, np.arange(4, dtype=np.uint64), ["a", "b", "a", "b"], [0, 1, 2, 3], list("wxyz"))
    assert found.lines() == []
