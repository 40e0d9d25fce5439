import hashlib
import logging
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.data.parquet.toy import COUNTS, cloud, load_toy, write_tree
from tests.errors import raises
from tests.forks import FORKED


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "toy")


MANY = {"train": 130, "test": 4}  # rows of three pieces


@pytest.fixture
def many(tmp_path):
    return write_tree(tmp_path / "many", MANY)


def assert_complete(splits, counts=COUNTS):
    assert {rows.split: len(rows) for rows in splits.values()} == counts
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


def test_an_interrupted_conversion_resumes(many, cache_dir):
    again = []
    with pytest.raises(KeyboardInterrupt):
        load_toy(many, cache_dir, fail_at="train/70.npy", verify=False)
    assert_complete(load_toy(many, cache_dir, again, verify=False), MANY)
    assert again[0] == "train/64.npy" and len(again) == sum(MANY.values()) - 64


def test_a_killed_conversion_leaves_no_piece_that_looks_complete(many, cache_dir):
    options = {"fail_at": "train/70.npy", "here": FORKED.Event(), "verify": False}
    child = FORKED.Process(target=load_toy, args=(many, cache_dir), kwargs=options)
    child.start()
    assert options["here"].wait(60)
    child.kill()
    child.join()
    again = []
    assert_complete(load_toy(many, cache_dir, again, verify=False), MANY)
    assert "train/70.npy" in again and "train/63.npy" not in again
    assert not list(Path(cache_dir).rglob("*.incomplete"))


def test_a_full_disk_is_an_error_that_names_the_cache_and_the_conversion_resumes(many, cache_dir):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow beyond this, which is enough for the first piece: the same failing write as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"toy/default-\w+ could not be written"):
            load_toy(many, cache_dir, verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = []
    assert_complete(load_toy(many, cache_dir, again, verify=False), MANY)
    assert "train/70.npy" in again and "train/63.npy" not in again


def test_rows_stream_from_several_shards(tree, cache_dir):
    splits = load_toy(tree, cache_dir, streaming=True)
    rows = splits["train"].with_format("numpy")
    assert rows.num_shards > 3 and rows.info.license.startswith("other")
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(row["points"], cloud("train", number))
    assert number == 11


def test_one_bad_file_is_named_or_left_out(tree, cache_dir, caplog):
    (tree / "train" / "5.npy").write_bytes(b"no array")
    np.save(tree / "test" / "1.npy", np.array([[0, 0, np.nan]], np.float32))
    with raises(ValueError, naming="train/5.npy"):
        load_toy(tree, cache_dir)
    for message in ("left out", ""):
        with caplog.at_level(logging.WARNING):
            splits = load_toy(tree, cache_dir, on_error="skip")
        assert splits.num_rows == {"train": 11, "test": 3}
        assert "train/4.npy" in splits["train"]["file"] and "train/5.npy" not in splits["train"]["file"]
        assert message in caplog.text and "toy, split test, has 3 clouds; 1 " in caplog.text
        caplog.clear()
    with raises(ValueError, naming="train/5.npy"):
        load_toy(tree, cache_dir)


def test_a_piece_of_only_bad_files_is_left_out(many, cache_dir):
    for number in range(64, 128):
        (many / "train" / f"{number}.npy").write_bytes(b"")
    assert load_toy(many, cache_dir, on_error="skip", verify=False).num_rows == {"train": 66, "test": 4}


def test_a_split_of_only_bad_files_is_an_error(tree, cache_dir):
    for path in (tree / "test").iterdir():
        path.write_bytes(b"")
    with raises(ValueError, naming="0.npy"):
        load_toy(tree, cache_dir, on_error="skip")


@pytest.mark.parametrize("known", [True, False])
def test_the_number_of_missing_clouds_is_reported(tree, cache_dir, known):
    (tree / "train" / "11.npy").unlink()
    with pytest.raises(ValueError, match="toy, split train, has 11 clouds; expected 12, so 1 are missing"):
        load_toy(tree, cache_dir, known=known)
    assert load_toy(tree, cache_dir, verify=False).num_rows == {"train": 11, "test": 4}


def test_checksums_in_the_data_folder_are_checked(tree, cache_dir):
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


def test_concurrent_processes_convert_once(tree, cache_dir):
    opened = []
    with ThreadPoolExecutor(2) as pool:
        for splits in pool.map(lambda _: load_toy(tree, cache_dir, opened), range(2)):
            assert_complete(splits)
    assert len(opened) == sum(COUNTS.values())


def test_a_wrong_option_is_named(tree, cache_dir):
    with raises(ValueError, naming="on_error"):
        load_toy(tree, cache_dir, on_error="ignore")
