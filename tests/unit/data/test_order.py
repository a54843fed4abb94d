from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_pipeline.data import order as order_module
from resnet_pipeline.data.order import (
    Blocks,
    micro_batch_positions,
    mix,
    permuted,
    samples_at,
    stretches,
    stretches_along,
    uniform,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "data_order.json"
seeds = st.integers(0, 2**63 - 1)


@given(samples=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_sample_stands_exactly_once_in_each_epoch(samples, seed, epoch):
    positions = np.arange(epoch * samples, (epoch + 1) * samples)
    assert sorted(samples_at(positions, samples=samples, seed=seed)) == list(range(samples))


@pytest.mark.slow
@given(samples=st.integers(1, 200), seed=seeds, cuts=st.lists(st.integers(0, 600), max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_order_does_not_depend_on_how_it_is_asked_for(samples, seed, cuts):
    positions = np.arange(600)
    whole = samples_at(positions, samples=samples, seed=seed)
    pieces = [samples_at(p, samples=samples, seed=seed) for p in np.split(positions, sorted(cuts)) if len(p)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    draws = uniform(seed, positions, 3)
    np.testing.assert_array_equal(uniform(seed, positions[::-1].copy(), 3)[::-1], draws)


def test_epochs_and_seeds_have_different_orders():
    first = samples_at(np.arange(100), samples=100, seed=0)
    assert not np.array_equal(first, samples_at(np.arange(100, 200), samples=100, seed=0))
    assert not np.array_equal(first, samples_at(np.arange(100), samples=100, seed=1))


@given(samples=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_an_order_that_is_kept_nowhere_has_every_sample_once(samples, key):
    found = permuted(np.arange(samples), samples, np.array([key], dtype=np.uint64))
    assert sorted(found) == list(range(samples))


def test_an_order_that_is_kept_nowhere_is_as_good_as_a_sorted_one():
    samples = 3**9
    found = [permuted(np.arange(samples), samples, mix(np.array([k], dtype=np.uint64))) for k in range(200)]
    # of random permutations one place in e has no fixed point, and neighbours have nothing to do with one another
    fixed = np.array([(order == np.arange(samples)).sum() for order in found])
    assert 0.7 < fixed.mean() < 1.3 and 0.25 < (fixed == 0).mean() < 0.5
    steps = np.concatenate([np.diff(order) % samples for order in found])
    counts = np.histogram(steps, bins=100, range=(0, samples))[0]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 162  # as below
    correlation = np.corrcoef(np.stack([*found[:5], np.arange(samples)]))
    assert np.abs(correlation - np.eye(6)).max() < 0.03


def test_a_large_split_s_order_is_computed_for_each_position(monkeypatch):
    monkeypatch.setattr(order_module, "SORTED_UP_TO", 1000)
    monkeypatch.setattr(order_module, "epoch_order", None)
    positions = np.arange(3 * 1001)
    whole = samples_at(positions, samples=1001, seed=5)
    for epoch in np.split(whole, 3):
        assert sorted(epoch) == list(range(1001))
    assert not np.array_equal(whole[:1001], whole[1001:2002])
    np.testing.assert_array_equal(samples_at(positions[700:1500], samples=1001, seed=5), whole[700:1500])


def test_draws_are_uniform_and_independent():
    positions = np.arange(200_000)
    draws = [uniform(7, positions, draw) for draw in range(3)] + [uniform(8, positions, 0)]
    for values in draws:
        assert values.min() >= 0 and values.max() < 1
        counts = np.histogram(values, bins=100, range=(0, 1))[0]
        # chi-square with 99 degrees of freedom: its 99.99th percentile is 162
        assert ((counts - 2000) ** 2 / 2000).sum() < 162
    correlation = np.corrcoef(np.stack([*draws, np.roll(draws[0], 1)]))
    assert np.abs(correlation - np.eye(5)).max() < 0.01


@given(steps=st.integers(0, 20), micros=st.integers(1, 8), size=st.integers(1, 16))
def test_micro_batches_tile_the_stream(steps, micros, size):
    batch = micros * size
    positions = [
        micro_batch_positions(s, m, batch=batch, micro_batch=size) for s in range(steps) for m in range(micros)
    ]
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, int), *positions]), np.arange(steps * batch))


def test_the_order_is_the_same_on_every_machine_and_version():
    golden = json.loads(GOLDEN.read_text())
    assert samples_at(np.arange(20), samples=10, seed=42).tolist() == golden["samples"]
    assert uniform(42, np.arange(5), 0).tolist() == golden["uniform"]
    blocks = Blocks(np.repeat(np.arange(6), 2), 2)
    assert samples_at(np.arange(24), samples=12, seed=42, blocks=blocks).tolist() == golden["blocks"]


@st.composite
def shard_sizes(draw):
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.slow
@given(shards=shard_sizes(), size=st.integers(1, 5), seed=seeds, epoch=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_blocks_of_shards_are_read_in_turn_and_every_sample_once(shards, size, seed, epoch):
    samples, blocks = len(shards), Blocks(shards, size)
    positions = np.arange(epoch * samples, (epoch + 1) * samples)
    order = samples_at(positions, samples=samples, seed=seed, blocks=blocks)
    assert sorted(order) == list(range(samples))
    start = 0
    for block in blocks.of_epoch(seed, epoch):
        here = np.isin(shards, block)
        assert set(order[start : start + here.sum()]) == set(np.flatnonzero(here))
        start += here.sum()
    assert [len(block) for block in blocks.of_epoch(seed, epoch)][:-1] == [size] * (
        -(-len(np.unique(shards)) // size) - 1
    )


@pytest.mark.slow
@given(shards=shard_sizes(), size=st.integers(1, 5), seed=seeds, cuts=st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_block_order_does_not_depend_on_how_it_is_asked_for(shards, size, seed, cuts):
    positions, samples = np.arange(300), len(shards)
    whole = samples_at(positions, samples=samples, seed=seed, blocks=Blocks(shards, size))
    pieces = [
        samples_at(p, samples=samples, seed=seed, blocks=Blocks(shards, size))
        for p in np.split(positions, sorted(cuts))
        if len(p)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@given(shards=shard_sizes(), size=st.integers(1, 5), seed=seeds, shuffled=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_block_s_order_is_that_of_a_sort_of_the_whole_epoch(shards, size, seed, shuffled):
    if shuffled:
        shards = np.random.default_rng(0).permutation(shards)
    samples, blocks = len(shards), Blocks(shards, size)
    # the oracle: sort all samples by block, then by the key that sorts an order without blocks
    block_of_shard = np.zeros(shards.max() + 1, dtype=np.int64)
    for number, of_block in enumerate(blocks.of_epoch(seed, 1)):
        block_of_shard[of_block] = number
    rank = np.argsort(samples_at(np.arange(samples, 2 * samples), samples=samples, seed=seed))
    expected = np.lexsort((rank, block_of_shard[shards]))
    found = samples_at(np.arange(samples, 2 * samples), samples=samples, seed=seed, blocks=blocks)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@given(shards=shard_sizes(), seed=seeds)
def test_one_block_is_the_full_order(shards, seed):
    positions = np.arange(2 * len(shards))
    np.testing.assert_array_equal(
        samples_at(positions, samples=len(shards), seed=seed, blocks=Blocks(shards, 12)),
        samples_at(positions, samples=len(shards), seed=seed),
    )


@pytest.mark.slow
@given(shards=shard_sizes(), size=st.integers(1, 5), seed=seeds, first=st.integers(0, 200), count=st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_stretches_say_which_shards_are_read_where(shards, size, seed, first, count):
    blocks = Blocks(shards, size)
    found = list(stretches(first, first + count, seed=seed, blocks=blocks))
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
    if count:
        assert found[0].start <= first < found[0].stop and found[-1].start < first + count <= found[-1].stop
    for stretch in found:
        order = samples_at(np.arange(stretch.start, stretch.stop), samples=len(shards), seed=seed, blocks=blocks)
        assert set(shards[order]) == set(stretch.shards) and len(stretch.shards) <= size


@pytest.mark.slow
@given(shards=st.lists(st.integers(0, 5), max_size=40), most=st.integers(1, 6))
def test_a_given_sequence_is_cut_by_its_shards(shards, most):
    found = stretches_along(np.array(shards, dtype=np.int64), most)
    assert [i for s in found for i in range(s.start, s.stop)] == list(range(len(shards)))
    assert all(set(shards[s.start : s.stop]) == set(s.shards) and len(s.shards) <= most for s in found)


def test_shards_meet_others_in_every_epoch():
    blocks = Blocks(np.repeat(np.arange(100), 3), 10)
    together = np.zeros((100, 100))
    for epoch in range(300):
        for block in blocks.of_epoch(7, epoch):
            together[np.ix_(block, block)] += 1
    pairs = together[~np.eye(100, dtype=bool)]
    # 300 epochs with probability 9/99 each: 27.3 ± 5
    assert 24 < pairs.mean() < 31 and pairs.min() > 3 and pairs.max() < 60
