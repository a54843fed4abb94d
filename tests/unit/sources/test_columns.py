"""Members and entries in columns behave as lists of them do, in a fraction of their memory."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resnet_pipeline.names import escaped
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.entries import UNLABELLED, Entries, Entry
from resnet_pipeline.sources.members import Member, Zipped
from resnet_pipeline.staging import index_file
from resnet_pipeline.staging.index_file import IndexWriter
from resnet_pipeline.staging.shard_plan import AVERAGED_IMAGES, TAR_OVERHEAD, plan_shards

ENTRIES = [
    Entry(Member("train/a/0.jpg", "x.tar", 512, 10), "train", "a"),
    Entry(Member("train/a/deep/er/0.jpg", "x.tar", 2**40, 2**62), "train", "a", "deep/er/0.jpg"),
    Entry(Member("é", "é", 0, 0), "val", "b"),
    Entry(Member("test/1.jpg", "test/1.jpg", 0, 7), "test", UNLABELLED),
    Entry(Member(escaped("val/b/\udcff\n.jpg"), "val/b/\udcff\n.jpg", 0, 5), "val", "b"),
    Entry(Member("train/b/holes.jpg", "y.tar", 0, 9, pieces=((0, 2), (4, 1))), "train", "b"),
]


def test_entries_in_columns_are_the_list_that_they_were_made_of():
    columns = Entries(ENTRIES)
    assert columns == ENTRIES and list(columns) == ENTRIES and columns[-1] == ENTRIES[-1]
    assert columns[1:4] == ENTRIES[1:4] and columns != ENTRIES[::-1] and columns != ENTRIES[1:]
    assert list(columns.keys()) == [entry.key for entry in ENTRIES]
    assert list(columns.members.names()) == [entry.member.name for entry in ENTRIES]
    with pytest.raises(IndexError):
        columns[len(ENTRIES)]


def test_a_part_that_is_sent_to_a_process_takes_its_own_entries_along_and_no_others():
    columns = Entries([*ENTRIES, *(Entry(Member(f"c/{n}.jpg", "z.tar", n, n), "train", f"c{n}") for n in range(5000))])
    part = columns.part(np.array([5, 1, 4]))
    sent = pickle.dumps(part)
    assert list(pickle.loads(sent)) == list(part) == [ENTRIES[5], ENTRIES[1], ENTRIES[4]] and len(sent) < 3000


def test_members_of_a_zip_file_keep_what_is_known_of_them():
    members = [Member(f"a/{n}.jpg", "x.zip", n, n, Zipped(8 * (n % 2), 2**33 + n, 2**32 - 1 - n)) for n in range(4)]
    assert Members(members) == members and Members(members).taken(np.array([3, 0])) == [members[3], members[0]]


def test_an_entry_takes_less_than_a_hundred_bytes():
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    columns = Entries(
        Entry(Member(f"train/n{n // 50:08d}/n{n // 50:08d}_{n}.JPEG", "x.tar", 512 * n, n), "train", f"n{n // 50:08d}")
        for n in range(50_000)
    )
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(columns) == 50_000 and taken / len(columns) < 100


def plain_plan(entries, shard_bytes):
    """Return the keys and marks of each shard, as lists of entries give them: dealt out in training, else cut."""

    def packed(some):
        return sum(-(-entry.member.size // 512) * 512 + TAR_OVERHEAD for entry in some)

    training = [entry for entry in entries if entry.split == "train"] or entries
    count = min(len(training), AVERAGED_IMAGES)
    averaged = {training[i * len(training) // count].key for i in range(count)}
    found = []
    for split in dict.fromkeys(["train", *(entry.split for entry in entries)]):
        own = [entry for entry in entries if entry.split == split]
        if split == "train":
            count = max(1, min(len(own), -(-packed(own) // shard_bytes)))
            parts = [own[number::count] for number in range(count) if own[number::count]]
        else:
            parts = [[]]
            for entry in own:
                if packed(parts[-1]) >= shard_bytes:
                    parts.append([])
                parts[-1].append(entry)
        found += [(split, [e.key for e in part], [e.key in averaged for e in part]) for part in parts]
    return found


@pytest.mark.parametrize("splits", [["train", "val", "test"], ["val", "train"], ["val"]])
def test_a_plan_is_that_of_lists(splits):
    random = np.random.default_rng(0)
    sizes = [*random.integers(0, 5000, 400).tolist(), 2**62, 2**62, 2**62]
    entries = [
        Entry(Member(f"{splits[n % len(splits)]}/a/{n}.jpg", "x.tar", n, size), splits[n % len(splits)], "a")
        for n, size in enumerate(sizes)
    ]
    for shard_bytes in (1, 20_000, 2**40):
        found = [
            (shard.split, [e.key for e in shard.entries], list(map(bool, shard.averaged)))
            for shard in plan_shards(entries, shard_bytes)
        ]
        assert found == plain_plan(entries, shard_bytes)


@pytest.mark.parametrize("shards", [[3], [7], [7, 7], [5, 1, 20, 2], [16, 5]])
def test_an_index_that_is_written_as_it_comes_is_the_file_that_one_table_gives(tmp_path, monkeypatch, shards):
    monkeypatch.setattr(index_file, "ROWS", 7)
    random, columns = np.random.default_rng(0), {field.name: [] for field in index_file._SCHEMA}
    with IndexWriter(tmp_path / "index.parquet") as index:
        for number, count in enumerate(shards):
            rows, labels = random.integers(0, 2**31, (count, 4)), random.integers(-1, 9, count).tolist()
            keys = [f"train/a/{number}-{i}" for i in range(count)]
            index.add("train", number, rows, labels=labels, keys=keys)
            added = zip(
                columns.values(), (["train"] * count, [number] * count, *rows.T.tolist(), labels, keys), strict=True
            )
            for column, values in added:
                column.extend(values)
    table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in index_file._SCHEMA})
    pq.write_table(table, tmp_path / "whole.parquet", row_group_size=7)
    assert (tmp_path / "index.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
