import json
import logging
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from hf_any3d.data.parquet import journal, shards
from tests.data.parquet.toy import COUNTS, cloud, load_toy, write_tree
from tests.forks import FORKED


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "toy")


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two or three clouds each."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 300)


def files_in(cache_dir, pattern="*"):
    return sorted(path.name for path in Path(cache_dir).rglob(pattern) if path.is_file())


def assert_complete(splits):
    assert {split: len(rows) for split, rows in splits.items()} == COUNTS
    for split, rows in splits.items():
        for number, row in enumerate(rows.with_format("numpy")):
            np.testing.assert_array_equal(row["points"], cloud(split, number))
            assert row["label"] == number % 3 and row["file"] == f"{split}/{number}.npy"


def test_rows_are_those_of_the_files_with_the_info_of_the_dataset(tree, cache_dir):
    splits = load_toy(tree, cache_dir)
    assert_complete(splits)
    for rows in splits.values():
        assert rows.features["label"].names == ["mug", "tile", "cup"]
        assert (rows.info.description, rows.info.citation) == ("Clouds for tests.", "@misc{toy}")
        assert rows.info.homepage == "https://example.org/toy"
        assert rows.info.license == "other: for tests alone https://example.org/terms"


def test_files_are_read_once_and_again_when_they_change(tree, cache_dir):
    load_toy(tree, cache_dir)
    again = []
    assert_complete(load_toy(tree, cache_dir, again))
    assert again == []
    np.save(tree / "test" / "3.npy", np.ones((2, 3), np.float32))
    splits = load_toy(tree, cache_dir, again)
    assert len(again) == sum(COUNTS.values()) and splits["test"].with_format("numpy")[3]["points"].shape == (2, 3)


def test_other_options_are_another_cache(tree, cache_dir):
    load_toy(tree, cache_dir, options={"sampled": 1})
    again = []
    load_toy(tree, cache_dir, again, options={"sampled": 2})
    assert len(again) == sum(COUNTS.values())


def test_an_interrupted_conversion_resumes(tree, cache_dir, small_shards):
    first, second = [], []
    with pytest.raises(KeyboardInterrupt):
        load_toy(tree, cache_dir, first, fail_at="train/9.npy")
    kept = sum(
        json.loads(path.read_text())["statistics"]["num_rows"] for path in Path(cache_dir).rglob("train-*.json")
    )
    assert 0 < kept <= 9 and not files_in(cache_dir, ".*.tmp")
    assert_complete(load_toy(tree, cache_dir, second))
    assert second[0] == f"train/{kept}.npy" and len(second) == sum(COUNTS.values()) - kept


def test_a_killed_conversion_leaves_no_shard_that_looks_complete(tree, cache_dir, small_shards, monkeypatch):
    here, written = FORKED.Event(), shards.ShardWriter.add

    def slow(shard, row):
        written(shard, row)
        shard._rows._writer.write_examples_on_file()
        if row["file"] == "train/8.npy":
            here.set()
            time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "add", slow)
        child = FORKED.Process(target=load_toy, args=(tree, cache_dir))
        child.start()
    assert here.wait(60)
    child.kill()
    child.join()
    assert len(files_in(cache_dir, ".train-*.tmp")) == 1 and not files_in(cache_dir, "stats.json")
    again = []
    assert_complete(load_toy(tree, cache_dir, again))
    assert 0 < len(again) < sum(COUNTS.values()) and "train/8.npy" in again
    assert not files_in(cache_dir, ".*.tmp")


def test_a_full_disk_is_an_error_that_names_the_shard_and_the_conversion_resumes(tree, cache_dir, small_shards):
    np.save(tree / "train" / "6.npy", np.random.default_rng(0).uniform(size=(9000, 3)).astype(np.float32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow beyond this: the same failing write as on a full disk, without filling one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"train-0000\d\.parquet could not be written .*nothing of it was kept"):
            load_toy(tree, cache_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not files_in(cache_dir, ".*.tmp") and not files_in(cache_dir, "stats.json")
    again = []
    splits = load_toy(tree, cache_dir, again)
    assert splits.num_rows == COUNTS and 0 < len(again) < sum(COUNTS.values())


def test_a_full_disk_while_opening_is_an_error_and_keeps_the_shards(tree, cache_dir):
    # Equal points fill little of Parquet and much of Arrow.
    np.save(tree / "train" / "6.npy", np.zeros((9000, 3), np.float32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"arrow could not be written"):
            load_toy(tree, cache_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = []
    assert load_toy(tree, cache_dir, again).num_rows == COUNTS and again == []


def test_rows_stream_from_several_shards_without_a_copy(tree, cache_dir, small_shards):
    splits = load_toy(tree, cache_dir, streaming=True)
    rows = splits["train"].with_format("numpy")
    assert rows.num_shards > 3 and rows.info.license.startswith("other")
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(row["points"], cloud("train", number))
    assert number == 11 and not files_in(cache_dir, "*.arrow")


def test_a_truncated_shard_is_written_again(tree, cache_dir, small_shards):
    load_toy(tree, cache_dir)
    shard = sorted(Path(cache_dir).rglob("train-00001.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    again = []
    assert_complete(load_toy(tree, cache_dir, again))
    assert again and "train/0.npy" not in again


@pytest.mark.parametrize("streaming", [False, True])
def test_a_flipped_byte_in_a_shard_is_noticed(tree, cache_dir, small_shards, caplog, streaming):
    load_toy(tree, cache_dir, streaming=streaming)
    shard = next(Path(cache_dir).rglob("train-00001.parquet"))
    before = shard.stat()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = []
    with caplog.at_level(logging.WARNING):
        load_toy(tree, cache_dir, again, streaming=streaming)
    assert again and "train/0.npy" not in again
    assert "train-00001.parquet: SHA-256" in caplog.text and "so it is converted again" in caplog.text
    assert_complete(load_toy(tree, cache_dir))


def test_unchanged_shards_are_not_read_again(tree, cache_dir, small_shards, monkeypatch):
    load_toy(tree, cache_dir)
    monkeypatch.setattr(journal, "sha256_of", lambda file: pytest.fail(f"{file} is read again"))
    assert_complete(load_toy(tree, cache_dir))
    monkeypatch.undo()
    # Without the copy that rows are read from, the shards are read, and checked before.
    shutil.rmtree(next(Path(cache_dir).rglob("arrow")))
    read, sha256_of = [], journal.sha256_of
    monkeypatch.setattr(journal, "sha256_of", lambda file: (read.append(file.name), sha256_of(file))[1])
    load_toy(tree, cache_dir)
    assert len(read) == len(files_in(cache_dir, "*.parquet")) > 4


def test_one_bad_file_is_named_or_left_out(tree, cache_dir, caplog):
    (tree / "train" / "5.npy").write_bytes(b"no array")
    np.save(tree / "test" / "1.npy", np.array([[0, 0, np.nan]], np.float32))
    with pytest.raises(ValueError, match=r"train/5\.npy: not a valid \.npy header"):
        load_toy(tree, cache_dir)
    with caplog.at_level(logging.WARNING):
        splits = load_toy(tree, cache_dir, on_error="skip")
    assert splits.num_rows == {"train": 11, "test": 3}
    assert "train/4.npy" in splits["train"]["file"] and "train/5.npy" not in splits["train"]["file"]
    assert "left out" in caplog.text and "toy, split test: 3 clouds, and 1 pieces left out" in caplog.text
    with pytest.raises(ValueError, match=r"converted without 1 pieces that could not be read, the first: .*5\.npy"):
        load_toy(tree, cache_dir)


def test_a_split_of_only_bad_files_is_an_error(tree, cache_dir):
    for path in (tree / "test").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="split test, has no clouds that could be read; the first error: .*0.npy"):
        load_toy(tree, cache_dir, on_error="skip")


@pytest.mark.parametrize("known", [True, False])
def test_the_number_of_missing_clouds_is_reported(tree, cache_dir, known):
    (tree / "train" / "11.npy").unlink()
    with pytest.raises(ValueError, match="toy, split train, has 11 clouds; expected 12, so 1 are missing"):
        load_toy(tree, cache_dir, known=known)
    assert load_toy(tree, cache_dir, verify=False).num_rows == {"train": 11, "test": 4}


def test_checksums_in_the_data_folder_are_checked(tree, cache_dir):
    import hashlib

    right = hashlib.sha256((tree / "train" / "0.npy").read_bytes()).hexdigest()
    sums = tree / "SHA256SUMS"
    sums.write_text(f"{right}  train/0.npy\n{'0' * 64}  test/2.npy\n")
    with pytest.raises(ValueError, match=rf"test/2\.npy: SHA-256 [0-9a-f]+; SHA256SUMS has {'0' * 64}"):
        load_toy(tree, cache_dir)
    sums.write_text(f"{right} *train/0.npy\n")
    assert_complete(load_toy(tree, cache_dir))
    sums.write_text("something else\n")
    with pytest.raises(ValueError, match="a line is 'something else'; expected a SHA-256"):
        load_toy(tree, cache_dir + "2")


def test_statistics_are_stored_with_a_version(tree, cache_dir, small_shards):
    load_toy(tree, cache_dir)
    (path,) = Path(cache_dir).rglob("stats.json")
    statistics = json.loads(path.read_text())
    assert statistics["format_version"] == 1 and statistics["name"] == "toy"
    points = np.concatenate([cloud("test", number) for number in range(4)])
    assert statistics["splits"]["test"] == {
        "num_rows": 4,
        "points_per_cloud": {"min": 5, "mean": 6.5, "max": 8},
        "num_points": 26,
        "bounds": {"min": points.min(0).tolist(), "max": points.max(0).tolist()},
        "labels": {"cup": 1, "mug": 2, "tile": 1},
        "num_skipped": 0,
    }
    # Added up over several shards.
    assert statistics["splits"]["train"]["points_per_cloud"] == {"min": 5, "mean": 10.5, "max": 16}


def test_concurrent_processes_convert_once(tree, cache_dir):
    from concurrent.futures import ThreadPoolExecutor

    opened = []

    def load(_):
        return load_toy(tree, cache_dir, opened)

    with ThreadPoolExecutor(2) as pool:
        for splits in pool.map(load, range(2)):
            assert_complete(splits)
    assert len(opened) == sum(COUNTS.values())


def test_a_wrong_option_is_named(tree, cache_dir):
    with pytest.raises(ValueError, match="on_error is 'ignore'; expected 'raise' or 'skip'"):
        load_toy(tree, cache_dir, on_error="ignore")
