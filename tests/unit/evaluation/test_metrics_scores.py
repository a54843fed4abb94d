from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import average, errors_of, rows_of
from resnet_pipeline.evaluation.metrics import TopErrors, label_ranks
from resnet_pipeline.evaluation.scores import Parts, Scores, merge_scores, read_scores, score_path, write_scores
from resnet_pipeline.storage.copies import Copies
from resnet_pipeline.storage.local import LocalStorage


def make_scores(seed=0, samples=200, classes=20, **changes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(samples, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values = {
        "model": f"model{seed}",
        "weights_sha256": f"{seed:064x}",
        "dataset_fingerprint": "d" * 64,
        "split": "val",
        "protocol": "center",
        "seconds": 4.0,
        "keys": [f"val/{i % classes}/{i}.JPEG" for i in range(samples)],
        "labels": np.random.default_rng(99).integers(0, classes, samples),
        "probabilities": probabilities.astype(np.float32),
    }
    return Scores(**{**values, **changes})


def test_top_k_errors_are_scikit_learn_s_added_in_any_batches():
    scores = make_scores(samples=500)
    counts = TopErrors()
    for part in np.array_split(np.arange(500), 7):
        counts.add(torch.tensor(scores.probabilities[part]), torch.tensor(scores.labels[part]))
    errors = counts.errors()
    for k in (1, 5):
        accuracy = top_k_accuracy_score(scores.labels, scores.probabilities, k=k, labels=np.arange(20))
        assert errors[f"top{k}"] == pytest.approx(100 * (1 - accuracy))
    assert errors["images"] == 500


def test_of_equal_scores_the_lower_class_stands_first_and_nan_last():
    scores = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 2.0, 3.0], [1.0, float("nan"), 0.0]])
    assert label_ranks(scores, torch.tensor([0, 1, 0, 1])).tolist() == [0, 1, 2, 3]


def test_score_files_are_parquet_and_come_back_as_they_were(tmp_path):
    scores = make_scores()
    path = score_path(tmp_path, dataset_fingerprint="d" * 64, split="val", protocol="center", weights_sha256="a" * 64)
    write_scores(scores, path)
    again = read_scores(path)
    for field in dataclasses.fields(Scores):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(scores, field.name))
    table = pq.read_table(path)
    assert table.column_names == ["key", "label", "scores"]
    assert table.column("scores")[3].as_py() == pytest.approx(scores.probabilities[3].tolist())


def test_unreadable_score_files_are_named(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"x")
    pq.write_table(pq.read_table(_written(tmp_path)).replace_schema_metadata({}), tmp_path / "other.parquet")
    for name in ("missing.parquet", "bad.parquet", "other.parquet"):
        with pytest.raises(UserError, match=name):
            read_scores(tmp_path / name)


@pytest.mark.parametrize("column", ["key", "label", "scores"])
def test_a_flipped_bit_in_any_column_of_a_score_file_is_found(tmp_path, column):
    path = _written(tmp_path)
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(["key", "label", "scores"].index(column))
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"good\.parquet"):
        read_scores(path)


@pytest.mark.parametrize("changed", ["labels", "metadata"])
def test_the_content_is_hashed_too(tmp_path, changed):
    """A page's checksum is of the page as it was written; another writer makes a new one for what it was given."""
    table, path = pq.read_table(_written(tmp_path)), tmp_path / "good.parquet"
    if changed == "labels":
        labels = table.column("label").to_numpy().copy()
        labels[7] += 1
        table = table.set_column(1, "label", pa.array(labels % 20, pa.int32()))
    else:
        about = json.loads(table.schema.metadata[b"resnet_pipeline"])
        table = table.replace_schema_metadata({"resnet_pipeline": json.dumps({**about, "split": "train"})})
    pq.write_table(table, path, write_page_checksum=True)
    with pytest.raises(UserError, match=r"good\.parquet is damaged: it does not match its checksum"):
        read_scores(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(tmp_path, value):
    scores = make_scores()
    scores.probabilities[3, 2] = value
    write_scores(scores, tmp_path / "s.parquet")
    with pytest.raises(UserError, match=r"s\.parquet can't be read: some scores are no finite numbers"):
        read_scores(tmp_path / "s.parquet")


def test_score_files_without_checksums_still_open(tmp_path):
    table = pq.read_table(_written(tmp_path))
    about = json.loads(table.schema.metadata[b"resnet_pipeline"])
    del about["sha256"]
    old = table.replace_schema_metadata({b"resnet_pipeline": json.dumps(about).encode()})
    pq.write_table(old, tmp_path / "old.parquet")
    np.testing.assert_array_equal(read_scores(tmp_path / "old.parquet").probabilities, make_scores().probabilities)


def _written(tmp_path):
    write_scores(make_scores(), tmp_path / "good.parquet")
    return tmp_path / "good.parquet"


def test_an_ensemble_is_the_mean_of_probabilities():
    members = [make_scores(seed) for seed in range(3)]
    mean = np.mean([m.probabilities.astype(np.float64) for m in members], axis=0)
    np.testing.assert_allclose(average(members).probabilities, mean, rtol=1e-6)
    expected = 100 * np.mean(mean.argmax(1) != members[0].labels)
    assert errors_of(average(members)).top1 == pytest.approx(expected)
    # three times the same network is that network
    same = average([members[0]] * 3)
    assert errors_of(same) == errors_of(members[0])


def test_half_precision_keeps_the_errors_and_half_the_bytes(tmp_path):
    scores = make_scores(samples=2000, classes=100)
    half = dataclasses.replace(scores, probabilities=scores.probabilities.astype(np.float16))
    write_scores(scores, tmp_path / "32.parquet")
    write_scores(half, tmp_path / "16.parquet")
    again = read_scores(tmp_path / "16.parquet")
    assert again.probabilities.dtype == np.float16
    np.testing.assert_array_equal(again.probabilities, half.probabilities)
    np.testing.assert_allclose(again.probabilities, scores.probabilities, rtol=2**-11, atol=2**-25)
    assert (tmp_path / "16.parquet").stat().st_size < 0.6 * (tmp_path / "32.parquet").stat().st_size
    assert vars(errors_of(again)) == pytest.approx(vars(errors_of(scores)), abs=0.2)


def test_parts_are_put_together_in_the_split_s_order():
    scores = make_scores(samples=97)
    order = np.random.default_rng(3).permutation(97)
    parts = [rows_of(scores, rows) for rows in np.array_split(order, 4)]
    merged = merge_scores(parts, scores.keys)
    assert merged.keys == scores.keys and merged.seconds == pytest.approx(4 * scores.seconds)
    np.testing.assert_array_equal(merged.labels, scores.labels)
    np.testing.assert_array_equal(merged.probabilities, scores.probabilities)
    for wrong in (parts[1:], [*parts, parts[0]], [*parts[1:], parts[1]]):
        with pytest.raises(ValueError, match="each once"):
            merge_scores(wrong, scores.keys)


def test_parts_that_are_held_are_not_read_again(tmp_path, score_files):
    scores = make_scores(samples=30)
    halves = [rows_of(scores, rows) for rows in np.split(np.arange(30), 2)]
    parts = Parts(tmp_path / "scores" / "x.parquet", [15, 15])
    parts.keep(0, halves[0])
    assert parts.missing() == [1]
    parts.keep(1, halves[1])
    assert parts.missing() == [] and parts.merge(scores.keys).keys == scores.keys
    read, written = score_files
    assert (len(read), len(written)) == (0, 2)
    elsewhere = Parts(parts.path, [15, 15])
    assert elsewhere.missing() == []
    np.testing.assert_array_equal(elsewhere.merge(scores.keys).probabilities, scores.probabilities)
    assert read == [elsewhere.file(0), elsewhere.file(1)], "once each"
    elsewhere.remove()
    assert elsewhere.missing() == [0, 1]


def test_scores_and_their_parts_are_found_where_they_are_kept_for_good(tmp_path):
    home = LocalStorage(tmp_path / "home")
    here, there = (Copies(tmp_path / name, home) for name in ("here", "there"))
    path, elsewhere = here.folder / "d/val/center/w.parquet", there.folder / "d/val/center/w.parquet"
    scores = make_scores(samples=30)
    parts = Parts(path, [15, 15], here)
    assert parts.missing() == [0, 1]
    parts.keep(1, rows_of(scores, np.arange(15, 30)))
    shutil.rmtree(here.folder)  # with its machine
    assert Parts(elsewhere, [15, 15], there).missing() == [0]
    write_scores(scores, path)
    here.send(path)
    parts.remove()
    assert [stored.name for stored in home.files()] == ["d/val/center/w.parquet"]
    there.bring(elsewhere)
    np.testing.assert_array_equal(read_scores(elsewhere).probabilities, scores.probabilities)


def test_the_only_chunk_is_not_written_by_itself(tmp_path, score_files):
    scores = make_scores(samples=30)
    parts = Parts(tmp_path / "scores" / "x.parquet", [30])
    parts.keep(0, scores)
    assert parts.merge(scores.keys).keys == scores.keys and score_files == ([], [])


def test_scores_of_another_length_are_named():
    shorter = rows_of(make_scores(1), np.arange(150))
    with pytest.raises(UserError, match=r"model1 and model0 .* 150 and 200 samples"):
        average([make_scores(0), shorter])
    with pytest.raises(UserError, match="at least one member"):
        average([])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_fingerprint": "e" * 64}, "dataset fingerprint"),
        ({"split": "test"}, "split"),
        ({"keys": [f"x{i}" for i in range(200)]}, "sample 0 is x0"),
        ({"labels": np.zeros(200, np.int64)}, "labels"),
        ({"probabilities": np.ones((200, 7), np.float32)}, "classes"),
    ],
)
def test_scores_of_different_things_cannot_be_averaged(change, said):
    with pytest.raises(UserError, match=said) as error:
        average([make_scores(0), make_scores(1, **change)])
    assert "model1" in str(error.value)
