import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, load_dataset
from huggingface_hub import DatasetCard

from hf_any3d.data import load_point_dataset
from hf_any3d.data.catalog.shapes import LICENSE
from hf_any3d.data.generated import rooms
from tests.errors import raises

FOLDER = Path(__file__).parents[3] / "examples" / "data"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load_point_dataset("shapes", cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.mark.slow
def test_rows_are_clouds_as_numpy_arrays_with_a_class(shapes):
    assert {split: len(rows) for split, rows in shapes.items()} == {"train": 433, "test": 141}
    assert shapes["train"].features["points"] == Array2D((1024, 3), "float32")
    assert shapes["train"].features["label"].num_classes == 18
    row = shapes["test"][5]
    assert row["points"].shape == (1024, 3) and row["points"].dtype == np.float32
    assert row["colors"].shape == (1024, 3) and 0 <= row["colors"].min() < row["colors"].max() <= 255


def test_clouds_are_in_the_unit_sphere_near_its_center(shapes):
    for rows in shapes.values():
        points = rows["points"][:]  # (shapes, 1024, 3)
        radii = np.linalg.norm(points, axis=-1).max(axis=1)
        assert radii.max() < 1.001 and radii.min() > 0.8
        assert np.linalg.norm(points.mean(axis=1), axis=-1).max() < 0.05


def test_no_group_of_duplicates_straddles_the_split(shapes):
    assert not set(shapes["train"]["group"][:]) & set(shapes["test"]["group"][:])
    assert len({name for rows in shapes.values() for name in rows["name"][:]}) == 574


def test_every_shape_is_under_a_creative_commons_license_and_names_its_author(shapes):
    for rows in shapes.values():
        assert set(rows["license"][:]) <= {"CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US"}
        assert all(rows["creator"][:]) and "eTeks" not in set(rows["source"][:])


def test_the_declared_licenses_are_those_of_the_rows(shapes):
    stated = {name for rows in shapes.values() for name in rows["license"][:]}
    assert stated == set(re.findall(r"CC0-1.0|CC-BY-3.0(?:-US)?", LICENSE.terms.replace(" ", "-")))
    declared = DatasetCard.load(FOLDER / "README.md").data.to_dict()
    identifiers = {declared["license_name"] if name == "other" else name for name in declared["license"]}
    assert identifiers == {name.lower() for name in stated}
    assert rooms.LICENSE.terms.startswith(LICENSE.terms.split(";")[0]), "rooms are made of the shapes"


def test_the_card_counts_what_is_there_and_names_every_author(shapes):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = {name: (int(a), int(b)) for name, a, b in re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|$", card, re.M)}
    names = shapes["train"].features["label"].names
    train, test = (Counter(shapes[split]["label"][:].tolist()) for split in ("train", "test"))
    assert table == {name: (train[i], test[i]) for i, name in enumerate(names)}
    assert all(author in card for rows in shapes.values() for author in set(rows["creator"][:]))


def test_the_folder_opens_with_datasets_alone(cache_dir, shapes):
    plain = load_dataset(str(FOLDER), cache_dir=cache_dir)
    assert plain["test"].features == shapes["test"].features
    assert isinstance(plain["train"].features["label"], ClassLabel)


def test_the_set_stays_small_enough_to_ship():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.parquet")) < 6e6


def test_a_folder_without_the_files_is_an_error_with_advice(tmp_path):
    with raises(FileNotFoundError, naming="train.parquet"):
        load_point_dataset("shapes", data_dir=tmp_path)
