import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, ClassLabel, Features, List, Value

from hf_any3d.data.files import PointCloudError
from hf_any3d.data.parquet import SplitSource, journal, shards
from hf_any3d.data.parquet.shards import SplitStatistics, checked_row

FEATURES = Features(
    {
        "points": Array2D((None, 3), "float32"),
        "label": ClassLabel(names=["mug", "tile"]),
        "labels": List(ClassLabel(names=["background", "object"])),
        "file": Value("string"),
    }
)


def row(**change):
    return {"points": np.zeros((2, 3)), "label": 1, "labels": [0, 1], "file": "a.npy", **change}


def test_values_are_converted_to_the_types_of_their_columns():
    checked = checked_row({**row(), "more": 1}, FEATURES)
    assert list(checked) == ["points", "label", "labels", "file"]
    assert checked["points"].dtype == np.float32 and checked["labels"].dtype == np.int64
    assert checked["label"] == 1 and checked["file"] == "a.npy"


@pytest.mark.parametrize("label", [1, np.int32(1), np.array([1], np.uint8), "tile"])
def test_a_class_is_a_number_or_a_name(label):
    assert checked_row(row(label=label), FEATURES)["label"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((0, 3)), "labels": []}, "points has no rows; expected at least 1 point"),
        ({"points": np.zeros((2, 4))}, r"points has shape \(2, 4\); expected \(points, 3\)"),
        ({"points": np.zeros(3)}, r"points has shape \(3,\)"),
        ({"points": "text"}, "points has type <U4; expected numbers"),
        ({"points": [[0, 0, 0], [0, np.inf, 0]]}, "points has NaN or infinite numbers in 1 rows, the first is 1"),
        ({"points": [[0, 0, 1e39], [0, 0, 0]]}, "points has NaN or infinite numbers"),
        ({"label": 2}, "label is 2; expected 0 to 1"),
        ({"label": -1}, "label is -1; expected 0 to 1"),
        ({"label": "cup"}, "label is 'cup'; expected one of mug, tile"),
        ({"label": 0.5}, "label has type float64; expected whole numbers"),
        ({"label": [0, 1]}, r"label has shape \(2,\); expected one number a cloud"),
        ({"labels": [0, 2]}, "labels is 2; expected 0 to 1"),
        ({"labels": [0]}, r"labels has shape \(1,\); expected .*2"),
    ],
)
def test_invalid_values_are_named(change, message):
    with pytest.raises(PointCloudError, match=message):
        checked_row(row(**change), FEATURES)


def test_a_missing_column_is_named():
    incomplete = row()
    del incomplete["labels"]
    with pytest.raises(PointCloudError, match="there are no labels"):
        checked_row(incomplete, FEATURES)


def clouds(sizes=(5, 2, 7), channels=4) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [
        generator.normal(size=(size, channels)) * [1, 2, 3, 99][:channels] + [5, -6, 0, 1][:channels] for size in sizes
    ]


def test_statistics_are_those_of_all_points_together():
    statistics, parts, labels = SplitStatistics(), [], [1, 1, 0]
    for cloud, label in zip(clouds(), labels, strict=True):
        part = SplitStatistics()
        for one in (statistics, part):
            one.add({"points": cloud, "label": label}, FEATURES)
        parts.append(part)
    points = np.concatenate(clouds())[:, :3]
    expected = {
        "num_rows": 3,
        "points_per_cloud": {"min": 2, "mean": 4.667, "max": 7},
        "num_points": 14,
        "bounds": {"min": points.min(axis=0).tolist(), "max": points.max(axis=0).tolist()},
        "labels": {"mug": 1, "tile": 2},
    }
    assert statistics.as_dict() == expected and list(statistics.as_dict()["labels"]) == ["mug", "tile"]
    merged = SplitStatistics()
    merged.merge(SplitStatistics())
    for part in reversed(parts):
        merged.merge(part)
    assert merged == statistics == SplitStatistics.from_dict(expected)
    merged.merge(SplitStatistics())
    assert merged == statistics


def test_statistics_of_rows_without_points_and_classes_are_their_number():
    statistics = SplitStatistics()
    for _ in range(2):
        statistics.add({"file": "a"}, Features({"file": Value("string"), "label": Value("int64")}))
    assert statistics.as_dict() == {"num_rows": 2} and SplitStatistics.from_dict({"num_rows": 2}) == statistics
    assert SplitStatistics().as_dict() == {"num_rows": 0}


ROWS = Features({"points": Array2D((None, 3), "float32"), "names": List(Value("string")), "number": Value("int64")})


def test_rows_are_passed_to_parquet_by_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BUFFER_BYTES", 60)
    rows = [
        {"points": cloud.astype(np.float32), "names": ["ab", "cde"], "number": number}
        for number, cloud in enumerate(clouds((2, 4, 1, 1, 6, 1), 3))
    ]
    # A number counts as 8 bytes.
    sizes = [12 * len(row["points"]) + 5 + 8 for row in rows]
    with shards.ParquetRows(tmp_path / "a.parquet", ROWS) as file:
        for row in rows:
            file.add(row)
        assert file.num_bytes == sum(sizes)
        file.finish()
    groups, buffered = [0], 0
    for size in sizes:
        groups[-1] += 1
        buffered += size
        if buffered >= 60:
            groups.append(0)
            buffered = 0
    stored = pq.ParquetFile(tmp_path / "a.parquet")
    found = [stored.metadata.row_group(number).num_rows for number in range(stored.num_row_groups)]
    assert found == [count for count in groups if count] and len(found) > 2
    assert stored.read().column("number").to_pylist() == list(range(6))


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (np.zeros((2, 3), np.float64), 48),
        ([np.zeros(4, np.uint8), "abc", (b"de", 7)], 17),
        ({"a": "bcd", "e": {"f": [1, 2.0, None]}}, 27),
        ("", 0),
        (True, 8),
    ],
)
def test_sizes_of_values_are_those_of_their_parts(value, size):
    assert shards._size(value) == size


def test_a_shard_has_its_statistics_size_and_checksum(tmp_path):
    features = Features({"points": Array2D((None, 3), "float32"), "label": FEATURES["label"]})
    path = tmp_path / "data" / "train-00000.parquet"
    shard, expected = shards.ShardWriter(path, features), SplitStatistics()
    for cloud in clouds(channels=3):
        row = {"points": cloud.astype(np.float32), "label": 1}
        shard.add(row)
        expected.add(row, features)
    assert shard.statistics == expected and shard.num_bytes == 14 * 12 + 3 * 8
    assert not path.exists()
    assert shard.finish() == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    table = pq.read_table(path)
    assert table.num_rows == 3 and table.column("label").to_pylist() == [1, 1, 1]
    other = shards.ShardWriter(tmp_path / "data" / "train-00001.parquet", features)
    other.add({"points": np.zeros((1, 3), np.float32), "label": 0})
    other.discard()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_unit_that_cannot_be_read_is_left_out_on_request(tmp_path, monkeypatch, caplog):
    def read(unit):
        if unit == "gone":
            raise FileNotFoundError("gone.npy: no such file")
        for number, cloud in enumerate(clouds((3, 4), 3)):
            yield {"points": cloud * (np.nan if (unit, number) == ("bad", 0) else 1), "label": "mug"}

    monkeypatch.setattr(shards, "SHARD_BYTES", 250)
    features = Features({"points": Array2D((None, 3), "float32"), "label": FEATURES["label"]})
    units = ["one", "bad", "two", "gone", "three"]
    source = SplitSource(units, read, [], num_rows=None)
    arguments = (source, "train", features, tmp_path, journal.ShardChecks(tmp_path, trust_times=True))
    records = shards.convert_split(*arguments, skip=True, progress="toy")
    # Each good unit has 7 points and two labels, 100 bytes; shards are closed from 250 bytes on.
    assert [(record.file, record.start, record.stop) for record in records] == [
        ("train-00000.parquet", 0, 3), ("train-00001.parquet", 3, 5)
    ]  # fmt: skip
    where = "points has NaN or infinite numbers in 3 rows, the first is 0"
    assert [len(record.skipped) for record in records] == [1, 1] and where in records[0].skipped[0]
    assert "row 0" in records[0].skipped[0] and records[1].skipped == ["gone.npy: no such file"]
    assert [message for message in caplog.messages if message.startswith("left out")] == [
        f"left out {text}" for record in records for text in record.skipped
    ]
    for record, sizes in zip(records, ([3, 4, 4, 3, 4], [3, 4]), strict=True):
        path = tmp_path / "data" / record.file
        assert [len(row) for row in pq.read_table(path).column("points").to_pylist()] == sizes
        assert record.statistics["num_points"] == sum(sizes) and record.size == path.stat().st_size
    assert shards.convert_split(*arguments, skip=True, progress="toy") == records
