import h5py
import numpy as np
import pytest
from datasets import Array2D, ClassLabel, List

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import scanobjectnn
from tests.errors import raises

NAMES = ["bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table"]
NAMES += ["bed", "pillow", "sink", "sofa", "toilet"]


def arrays(count, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "data": generator.normal(size=(count, 2048, 3)).astype(np.float32),
        "label": generator.integers(0, 15, count),
        "mask": generator.integers(-1, 15, (count, 2048)),
    }


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value
    return values


@pytest.fixture
def tree(tmp_path):
    """All four variants in the official folders; no background has no mask here."""
    folder = tmp_path / "ScanObjectNN" / "h5_files"
    for number, (main, name) in enumerate(scanobjectnn.FILES.values()):
        for split, count in (("training", 5), ("test", 3)):
            values = arrays(count, number)
            if main == "main_split_nobg":
                del values["mask"]
            write(folder / main / f"{split}_{name}.h5", values)
    return folder.parent


VARIANTS = ["obj_bg", "obj_only", "pb_t50_rs", "pb_t50_rs_nobg"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_the_rows_of_its_files(tree, cache_dir, variant):
    splits = load_point_dataset("scanobjectnn", data_dir=tree, variant=variant, cache_dir=cache_dir, verify=False)
    assert splits.num_rows == {"train": 5, "test": 3}
    for split, count in splits.num_rows.items():
        rows, values = splits[split], arrays(count, VARIANTS.index(variant))
        assert rows.column_names == ["points", "label"]
        assert rows.features["points"] == Array2D((2048, 3), "float32")
        assert rows.features["label"].names == NAMES
        np.testing.assert_array_equal(rows["points"][:], values["data"])
        assert rows["label"][:].tolist() == values["label"].tolist()


def test_masks_separate_object_and_background(tree, cache_dir):
    options = {"data_dir": tree, "masks": True, "cache_dir": cache_dir, "verify": False}
    rows = load_point_dataset("scanobjectnn", variant="obj_bg", split="test", **options)
    assert rows.features["labels"] == List(ClassLabel(names=["background", "object"]))
    np.testing.assert_array_equal(rows["labels"][:], arrays(3, 0)["mask"] != -1)
    with raises(ValueError, naming="training_objectdataset.h5"):
        load_point_dataset("scanobjectnn", variant="obj_only", **options)


def test_the_hardest_variant_is_the_default(tree, cache_dir):
    options = {"data_dir": tree, "cache_dir": cache_dir, "verify": False, "split": "test"}
    default, hardest = (load_point_dataset("scanobjectnn", **options, **v) for v in ({}, {"variant": "pb_t50_rs"}))
    np.testing.assert_array_equal(default["points"][:], hardest["points"][:])


@pytest.mark.slow
@pytest.mark.parametrize("below", ["h5_files", "h5_files/..", ".."])
def test_the_folder_may_be_given_above_or_below_h5_files(tree, cache_dir, below):
    rows = load_point_dataset("scanobjectnn", data_dir=tree / below, cache_dir=cache_dir, verify=False, split="test")
    assert len(rows) == 3


def test_published_numbers_are_those_of_the_paper_and_are_checked(tree, cache_dir):
    counts = scanobjectnn.DATASET.expected_counts
    assert counts["obj_bg"] == counts["obj_only"] == {"train": 2309, "test": 581}
    assert counts["pb_t50_rs"] == counts["pb_t50_rs_nobg"] == {"train": 11416, "test": 2882}
    with raises(ValueError, naming="pb_t50_rs"):
        load_point_dataset("scanobjectnn", data_dir=tree, cache_dir=cache_dir)


def test_the_test_split_alone_is_read_if_that_is_said(tree, cache_dir):
    for path in tree.rglob("training_*.h5"):
        path.unlink()
    with raises(FileNotFoundError, naming="training_"):
        load_point_dataset("scanobjectnn", data_dir=tree, cache_dir=cache_dir)
    splits = load_point_dataset("scanobjectnn", data_dir=tree, cache_dir=cache_dir, partial=True)
    assert splits.num_rows == {"test": 3}
