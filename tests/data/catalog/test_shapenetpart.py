import numpy as np
import pytest
from datasets import Array2D, Value

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import shapenetpart
from hf_any3d.training.segmentation_rows import parts_of_categories
from tests.data.catalog.shapenet_trees import OBJECTS, part_table, write_shapenetpart


@pytest.fixture
def folder(tmp_path):
    return write_shapenetpart(tmp_path / "data")


@pytest.fixture
def load(folder, cache_dir):
    def load(**options):
        options = {"data_dir": folder, "verify": False, **options}
        return load_point_dataset("shapenetpart", cache_dir=cache_dir, **options)

    return load


@pytest.mark.slow
@pytest.mark.parametrize("normals", [True, False])
def test_rows_have_points_normals_parts_and_category(load, normals):
    splits = load(normals=normals)
    assert list(splits) == ["train", "validation", "test"]
    for rows, objects in zip(splits.values(), OBJECTS.values(), strict=True):
        assert rows.column_names == ["points", *(["normals"] if normals else []), "labels", "label", "file"]
        assert rows.features["points"] == Array2D((None, 3), "float32") and rows.features["file"] == Value("string")
        assert rows.features["labels"].feature.names == list(shapenetpart.PART_NAMES)
        assert rows["file"][:].tolist() == [name.replace("/", "-") for name in objects]
        for row, name in zip(rows, objects, strict=True):
            table = part_table(name)
            np.testing.assert_array_equal(row["points"], table[:, :3].astype(np.float32))
            if normals:
                np.testing.assert_array_equal(row["normals"], table[:, 3:6].astype(np.float32))
            assert row["labels"].tolist() == table[:, 6].tolist()
            assert rows.features["label"].int2str(int(row["label"])) == shapenetpart.SYNSETS[name[:8]]


def test_parts_are_numbered_as_published():
    assert len(shapenetpart.PART_NAMES) == len(set(shapenetpart.PART_NAMES)) == 50
    published = {
        "Airplane": (0, 3), "Bag": (4, 5), "Cap": (6, 7), "Car": (8, 11), "Chair": (12, 15), "Earphone": (16, 18),
        "Guitar": (19, 21), "Knife": (22, 23), "Lamp": (24, 27), "Laptop": (28, 29), "Motorbike": (30, 35),
        "Mug": (36, 37), "Pistol": (38, 40), "Rocket": (41, 43), "Skateboard": (44, 46), "Table": (47, 49),
    }  # fmt: skip
    assert list(published) == list(shapenetpart.SYNSETS.values()) == list(shapenetpart.CATEGORY_PARTS)
    for category, (first, last) in published.items():
        assert shapenetpart.CATEGORY_PARTS[category] == tuple(range(first, last + 1))
    found = parts_of_categories(shapenetpart.PART_NAMES, list(shapenetpart.SYNSETS.values()))
    assert found == [list(parts) for parts in shapenetpart.CATEGORY_PARTS.values()]


def test_the_folder_above_may_be_given_and_numbers_are_checked(load, folder):
    with pytest.raises(ValueError, match="shapenetpart, split train, has 2 clouds; expected 12,137"):
        load(data_dir=folder.parent, verify=True)
    assert load(data_dir=folder.parent).num_rows == {"train": 2, "validation": 2, "test": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.1 0.2 0.3 0 0 1\n", "line 61 has 6 columns; expected 7"),
        ("0.1 0.2 up 0 0 1 47\n", "line 61: 'up' is not a number"),
        ("0.1 0.2 0.3 0 0 1 47.5\n", "part 47.5; expected a whole number"),
        ("0.1 0.2 0.3 0 0 1 12\n", "part 12 of category Table; expected 47 to 49"),
        ("nan 0.2 0.3 0 0 1 47\n", "points has NaN or infinite numbers in 1 rows, the first is 60"),
    ],
)
def test_malformed_lines_are_named(load, folder, line, message):
    with open(folder / f"{OBJECTS['train'][1]}.txt", "a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=f"408c3db9b4ee6be2e9f3e9c758fef992.txt.*{message}"):
        load()
    assert load(on_error="skip")["train"].num_rows == 1


@pytest.mark.parametrize(
    "content",
    ['["shape_data/02691156/../secret"]', '["shape_data/00000000/abc"]', "[7]", '{"a": 1}', "[" * 3000, ""],
)
def test_lists_with_other_content_are_refused(load, folder, content):
    (folder / "train_test_split" / "shuffled_val_file_list.json").write_text(content)
    with pytest.raises(ValueError):
        load()


def test_categories_in_another_order_are_refused(load, folder):
    path = folder / "synsetoffset2category.txt"
    text = path.read_text()
    path.write_text(text.replace("Cap\t02954340\nCar\t02958343\n", "Car\t02958343\nCap\t02954340\n"))
    with pytest.raises(ValueError, match="category 2 is Car 02958343; expected Cap 02954340"):
        load()
    path.write_text(text.replace("Table\t04379243\n", ""))
    with pytest.raises(ValueError, match="category 15 is missing; expected Table 04379243"):
        load()


def test_a_part_of_the_files_is_read_if_that_is_said(load, folder):
    (folder / "train_test_split" / "shuffled_test_file_list.json").unlink()
    left_out, there = OBJECTS["train"]
    (folder / f"{left_out}.txt").unlink()
    splits = load(partial=True)
    assert list(splits) == ["train", "validation"]
    assert splits["train"]["file"][:].tolist() == [there.replace("/", "-")]
