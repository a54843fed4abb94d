from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_pipeline.data.order import micro_batch_positions, samples_at, uniform

GOLDEN = Path(__file__).parents[2] / "golden" / "data_order.json"
seeds = st.integers(0, 2**63 - 1)


@given(samples=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_sample_stands_exactly_once_in_each_epoch(samples, seed, epoch):
    positions = np.arange(epoch * samples, (epoch + 1) * samples)
    assert sorted(samples_at(positions, samples=samples, seed=seed)) == list(range(samples))


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
