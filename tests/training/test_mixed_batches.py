"""Batches drawn from several datasets."""

from collections import Counter

import numpy as np

from hf_any3d import MiniGPT3DProcessor, PointCloudProcessor, load_point_dataset
from hf_any3d.data.catalog import objaverse_captions
from hf_any3d.training.text_rows import ConversationRows, MixedBatches
from tests.chat.tiny_tokenizers import byte_tokenizer
from tests.data.catalog.pointllm_trees import write_pointllm
from tests.errors import raises

LENGTHS, SIZES, RATIOS = [7, 11, 5], [2, 3, 1], [2, 3, 3]


def mixed(batches: int = 200, seed: int = 1, **changes) -> MixedBatches:
    return MixedBatches(LENGTHS, SIZES, RATIOS, batches, seed, **changes)


def dataset_of(row: int) -> int:
    return int(np.searchsorted(np.cumsum(LENGTHS), row, side="right"))


def test_batch_has_rows_of_one_dataset_and_its_batch_size():
    for batch, drawn in zip(mixed(), mixed().draws(), strict=True):
        assert {dataset_of(row) for row in batch} == {drawn}
        assert len(set(batch)) == len(batch) == SIZES[drawn]


def test_datasets_are_drawn_by_their_ratios():
    counts = Counter(mixed(20_000).draws())
    shares = np.array([counts[number] for number in range(3)]) / 20_000
    np.testing.assert_allclose(shares, np.array(RATIOS) / 8, atol=0.015)


def test_each_pass_has_every_row_at_most_once_in_a_new_order():
    batches = [batch for batch in mixed(300) if dataset_of(batch[0]) == 1]
    passes = [sum(batches[start : start + 3], []) for start in range(0, len(batches) - 3, 3)]
    for rows in passes:
        assert len(set(rows)) == 9
    assert len({tuple(rows) for rows in passes}) == len(passes) > 10
    assert set().union(*passes) == set(range(7, 18))


def test_batches_depend_only_on_seed_and_number():
    longer, again = list(mixed(50)), list(mixed(20))
    assert longer[:20] == again == list(mixed(20))
    assert list(mixed(20, seed=2)) != again


def test_processes_split_the_batches_of_one_process():
    one = list(MixedBatches(LENGTHS, [2 * size for size in SIZES], RATIOS, 60, 1))
    first, second = (list(mixed(60, rank=rank, processes=2)) for rank in (0, 1))
    for whole, *parts in zip(one, first, second, strict=True):
        assert sorted(whole) == sorted(sum(parts, []))
        assert len(parts[0]) == len(parts[1])


def test_processes_read_the_files_of_their_own_batches_alone(tmp_path, monkeypatch):
    root, read, read_cloud = write_pointllm(tmp_path), [], objaverse_captions.read_cloud
    monkeypatch.setattr(objaverse_captions, "read_cloud", lambda path: read.append(path.name) or read_cloud(path))
    options = {"data_dir": root, "cache_dir": str(tmp_path / "cache"), "verify": False, "splits": ["train"]}
    copied, left = (load_point_dataset("objaverse_captions", copy_clouds=copy, **options) for copy in (True, False))
    processor = MiniGPT3DProcessor(PointCloudProcessor(num_points=8192, features=["xyz", "rgb"]), byte_tokenizer())
    copies, rows = (ConversationRows(splits["train"], processor) for splits in (copied, left))
    assert len(copies) == len(rows) == 3
    files = []
    for rank in (0, 1):
        read.clear()
        for batch in MixedBatches([3], [1], [1], 1, seed=0, rank=rank, processes=2):
            for found, expected in zip(rows.__getitems__(batch), copies.__getitems__(batch), strict=True):
                assert found["messages"] == expected["messages"] and found["cloud"].keys() == expected["cloud"].keys()
                for name, values in expected["cloud"].items():
                    np.testing.assert_array_equal(found["cloud"][name], values)
        files.append(list(read))
    assert [len(names) for names in files] == [1, 1] and files[0] != files[1]


def test_a_dataset_without_a_batch_is_named():
    with raises(ValueError, naming="dataset 1 has 2 rows"):
        MixedBatches([3, 2], [1, 3], [1, 1], batches=1, seed=0)
