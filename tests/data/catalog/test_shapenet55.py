import numpy as np
import pytest
from datasets import Array2D, Value

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import shapenet55
from tests.data.catalog.shapenet_trees import MODELS, UNSEEN, cloud, write_shapenet55
from tests.errors import raises


@pytest.fixture
def folder(tmp_path):
    return write_shapenet55(tmp_path / "data")


@pytest.fixture
def load(folder, cache_dir):
    def load(**options):
        options = {"data_dir": folder, "verify": False, **options}
        return load_point_dataset("shapenet55", cache_dir=cache_dir, **options)

    return load


def assert_models(rows, models):
    assert rows.column_names == ["points", "label", "file"]
    assert rows.features["points"] == Array2D((8192, 3), "float32") and rows.features["file"] == Value("string")
    assert rows["file"][:].tolist() == models
    names = [rows.features["label"].int2str(int(label)) for label in rows["label"][:]]
    assert names == [shapenet55.TAXONOMY[model[:8]] for model in models]
    for row, model in zip(rows, models, strict=True):
        np.testing.assert_array_equal(row["points"], cloud(model))


def test_rows_are_those_of_the_lists_in_their_order(load):
    splits = load()
    assert list(splits) == ["train", "test"]
    for split, models in MODELS.items():
        assert_models(splits[split], models)
    assert splits["train"].features["label"].int2str(splits["train"]["label"][:].tolist()) == ["airplane", "washer"]


def test_unseen_categories_have_only_a_test_split(load):
    splits = load(split_set="21")
    assert list(splits) == ["test"]
    assert_models(splits["test"], UNSEEN)
    assert load(split_set="34").num_rows == {"train": 2, "test": 1}


def test_the_folder_above_may_be_given(load, folder):
    assert load(data_dir=folder.parent).num_rows == {"train": 2, "test": 1}


@pytest.mark.parametrize("line", ["../../secret.npy", "02691156-a/../b.npy", "00000000-abc.npy", "02691156-abc.ply"])
def test_lines_that_do_not_name_a_cloud_are_refused(load, folder, line):
    (folder / "ShapeNet-55" / "test.txt").write_text(f"{MODELS['test'][0]}.npy\n{line}\n")
    with raises(ValueError, naming="ShapeNet-55/test.txt"):
        load()
