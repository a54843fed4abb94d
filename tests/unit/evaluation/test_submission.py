from __future__ import annotations

import numpy as np
import pytest
from scipy.io import savemat

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.scores import Scores
from resnet_pipeline.evaluation.submission import check_submission, read_class_ids, write_submission

WNIDS = [f"n{i:08d}" for i in range(1000)]
IDS = np.random.default_rng(0).permutation(1000) + 1


def scores_of(images: int = 30, classes: int = 1000) -> Scores:
    rng = np.random.default_rng(1)
    names = [f"test/ILSVRC2012_test_{i + 1:08d}.JPEG" for i in rng.permutation(images)]
    return Scores(
        model="m", weights_sha256="", dataset_fingerprint="d", split="test", protocol="center", seconds=1.0,
        keys=names, labels=np.full(images, -1), probabilities=rng.random((images, classes), dtype=np.float32),
    )  # fmt: skip


def meta_mat(path):
    """Write a file as the devkit's: 1,000 classes and inner nodes after them, in the order of the ids."""
    order = np.argsort(IDS)
    synsets = np.empty((1003, 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")])
    for place in range(1003):
        wnid = WNIDS[order[place]] if place < 1000 else f"inner{place}"
        synsets[place, 0] = (np.array([[place + 1]]), wnid, "words, of it", np.array([[0]]))
    savemat(path, {"synsets": synsets})
    return path


@pytest.mark.slow
def test_ids_come_from_the_devkit_s_file_or_text(tmp_path):
    np.testing.assert_array_equal(read_class_ids(meta_mat(tmp_path / "meta.mat"), WNIDS), IDS)
    (tmp_path / "map_clsloc.txt").write_text("".join(f"{w} {i} some_words\n" for w, i in zip(WNIDS, IDS, strict=True)))
    np.testing.assert_array_equal(read_class_ids(tmp_path / "map_clsloc.txt", WNIDS), IDS)
    (tmp_path / "ordered.txt").write_text("".join(f"{WNIDS[row]} kit fox\n" for row in np.argsort(IDS)))
    np.testing.assert_array_equal(read_class_ids(tmp_path / "ordered.txt", WNIDS), IDS)


def test_five_best_ids_in_the_order_of_the_images(tmp_path):
    scores = scores_of()
    write_submission(scores, IDS, tmp_path / "s.txt")
    check_submission(tmp_path / "s.txt", images=30)
    lines = (tmp_path / "s.txt").read_text().splitlines()
    by_name = dict(zip(scores.keys, scores.probabilities, strict=True))
    for number, line in enumerate(lines, 1):
        best = np.argsort(-by_name[f"test/ILSVRC2012_test_{number:08d}.JPEG"])[:5]
        assert [int(word) for word in line.split()] == IDS[best].tolist()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 2 3 4", "line 2"),
        ("1 2 3 4 5 6", "line 2"),
        ("1 2 3 4 4", "line 2"),
        ("0 2 3 4 5", "line 2"),
        ("1 2 3 4 1001", "line 2"),
        ("1 2 3 4 x", "line 2"),
        ("1 2 3 4 ٣", "line 2"),
        ("", "line 2"),
        ("1 2 3 4 5\n6 7 8 9 10", "has 3 lines, there are 2 images"),
    ],
)
def test_what_the_server_would_refuse_is_named(tmp_path, line, said):
    (tmp_path / "s.txt").write_text(f"1 2 3 4 5\n{line}\n")
    with pytest.raises(UserError, match=said):
        check_submission(tmp_path / "s.txt", images=2)


def test_wrong_classes_and_files_are_named(tmp_path):
    with pytest.raises(UserError, match="10"):
        write_submission(scores_of(classes=10), IDS[:10], tmp_path / "s.txt")
    (tmp_path / "short.txt").write_text("n00000001 1\n")
    with pytest.raises(UserError, match="lack 999 of 1000 classes, n00000000"):
        read_class_ids(tmp_path / "short.txt", WNIDS)
    (tmp_path / "twice.txt").write_text("".join(f"{w} 7\n" for w in WNIDS))
    with pytest.raises(UserError, match="each once"):
        read_class_ids(tmp_path / "twice.txt", WNIDS)
    (tmp_path / "bad.mat").write_bytes(b"MATLAB no")
    for name in ("bad.mat", "none.txt"):
        with pytest.raises(UserError, match=name):
            read_class_ids(tmp_path / name, WNIDS)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        write_submission(scores_of(), IDS, tmp_path / "file" / "s.txt")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
