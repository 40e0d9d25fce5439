import numpy as np
import pytest
from datasets import Array2D

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import s3dis
from tests.data.catalog.s3dis_trees import CLASSES, PIECES, ROOMS, room_table, write_annotations, write_arrays
from tests.errors import raises

TRAIN, TEST = ["Area_1_office_2", "Area_1_office_10", "Area_3_hallway_1"], ["Area_5_WC_1", "Area_5_hallway_6"]
WRITERS = pytest.mark.parametrize("write", [write_annotations, write_arrays])


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def load(root, cache_dir):
    def load(**options):
        options = {"data_dir": root, "verify": False, **options}
        return load_point_dataset("s3dis", cache_dir=cache_dir, **options)

    return load


def annotation(folder, room, name):
    _, area, kind, number = room.split("_")
    return folder / f"Area_{area}" / f"{kind}_{number}" / "Annotations" / f"{name}.txt"


@WRITERS
def test_both_layouts_give_the_same_rooms(load, root, write):
    write(root)
    splits = load()
    for split, rooms in (("train", TRAIN), ("test", TEST)):
        rows = splits[split]
        assert rows.column_names == ["points", "colors", "labels", "room", "area"]
        assert rows.features["points"] == Array2D((None, 3), "float32")
        assert rows.features["colors"] == Array2D((None, 3), "uint8")
        assert rows.features["labels"].feature.names == CLASSES
        assert rows["room"][:].tolist() == rooms
        assert rows["area"][:].tolist() == [int(room[5]) for room in rooms]
        for row, room in zip(rows, rooms, strict=True):
            table = room_table(room)
            assert (row["points"].min(axis=0) == 0).all()
            np.testing.assert_array_equal(row["points"], table[:, :3].astype(np.float32))
            np.testing.assert_array_equal(row["colors"], table[:, 3:6])
            np.testing.assert_array_equal(row["labels"], table[:, 6])


def test_stairs_are_clutter(load, root):
    write_annotations(root)
    labels = load()["test"][0]["labels"]
    assert "stairs_1" in PIECES and labels[-30:].tolist() == [CLASSES.index("clutter")] * 30


def test_the_control_character_in_hallway_6_is_read_as_a_space(load, root, caplog):
    path = annotation(write_annotations(root), "Area_5_hallway_6", "ceiling_1")
    assert b"\x10" in path.read_bytes()
    rows = load()["test"]
    np.testing.assert_array_equal(rows[1]["colors"], room_table("Area_5_hallway_6")[:, 3:6])
    assert r"ceiling_1.txt: line 8 has a control character b'\x10', read as a space" in caplog.text


def test_a_control_character_in_place_of_a_digit_is_refused(load, root):
    path = annotation(write_annotations(root), "Area_3_hallway_1", "floor_1")
    path.write_bytes(path.read_bytes() + b"19.302 -9.1\x100 1.785 146 137 106\n")
    with raises(ValueError, naming="floor_1.txt"):
        load()
    assert load(on_error="skip").num_rows == {"train": 2, "test": 2}


@pytest.mark.slow
@pytest.mark.parametrize("test_area", [1, 3, 5])
def test_one_area_is_for_testing(load, root, test_area):
    write_arrays(root)
    splits = load(test_area=test_area)
    assert set(splits["test"]["area"][:].tolist()) == {test_area}
    assert set(splits["train"]["area"][:].tolist()) == {1, 3, 5} - {test_area}


@pytest.mark.slow
def test_training_rooms_may_be_cut_into_blocks(load, root):
    write_arrays(root, num_points=200)
    splits = load(block_size=1.0, block_points=64)
    assert splits["test"]["room"][:].tolist() == TEST
    rows = splits["train"]
    assert set(rows["room"][:].tolist()) == set(TRAIN) and len(rows) > 3 * 9
    for name in TRAIN:
        seen = set()
        for row in rows.filter(lambda row, name=name: row["room"] == name):
            assert row["points"].shape == row["colors"].shape == (64, 3) and row["labels"].shape == (64,)
            assert np.ptp(row["points"][:, :2], axis=0).max() <= 1.0 + 1e-5
            columns = (row["points"], row["colors"], row["labels"][:, None])
            seen |= {tuple(point) for point in np.concatenate(columns, axis=1, dtype=np.float32).tolist()}
        assert seen == {tuple(point) for point in room_table(name, 200).astype(np.float32).tolist()}
    tall = [np.ptp(row["points"][:, 2]) for row in rows]
    assert max(tall) > 2, "columns stand upright on x and y"
    assert len(load(block_size=1.0, block_points=64, block_overlap=0.5)["train"]) > len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 1.0])
def test_all_272_rooms_are_complete(load, root, block_size):
    rooms = list(map(str, s3dis.PUBLISHED_ROOMS))
    write_arrays(root, rooms, num_points=1)
    splits = load(verify=True, block_size=block_size, block_points=8)
    assert splits["test"]["room"][:].tolist() == rooms[156:224]
    assert list(dict.fromkeys(splits["train"]["room"][:].tolist())) == rooms[:156] + rooms[224:]


def test_rooms_that_were_never_published_are_named(load, root):
    write_arrays(root, (*ROOMS, "Area_1_cellar_1"))
    with raises(ValueError, naming="Area_1_cellar_1.npy"):
        load(verify=True)
    assert "Area_1_cellar_1" in load()["train"]["room"][:].tolist()


@WRITERS
def test_the_folder_itself_may_be_given(load, root, write):
    assert load(data_dir=write(root)).num_rows == {"train": 3, "test": 2}


def test_prepared_arrays_are_preferred_to_annotations(load, root):
    write_annotations(root, ROOMS[:4])
    write_arrays(root)
    assert load().num_rows == {"train": 3, "test": 2}
    assert load(layout="annotations").num_rows == {"train": 3, "test": 1}
    with pytest.raises(FileNotFoundError, match="no rooms in layout npy"):
        load(layout="npy", data_dir=root / "Stanford3dDataset_v1.2_Aligned_Version")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "1 2 3 4 5\n",
        "1 2 3 4 5 256\n",
        "1 2 3 4 5 0.5\n",
        "1 2 inf 4 5 6\n",
        "1e30 2 3 4 5 6\n",
        "1 2 3 red 5 6\n",
        "",
    ],
)
def test_pieces_with_other_content_are_named(load, root, text):
    annotation(write_annotations(root), "Area_1_office_2", "chair_2").write_text(text)
    with pytest.raises(ValueError):
        load()
    assert load(on_error="skip")["train"]["room"][:].tolist() == TRAIN[1:]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 6)),
        np.full((5, 7), "x"),
        np.full((5, 7), 13.0),
        np.full((5, 7), 0.5),
        np.full((5, 7), np.nan),
        np.array([[0, 0, 0, -1, 0, 0, 1.0]]),
        np.array([None]),
    ],
)
def test_arrays_with_other_content_are_named(load, root, array):
    np.save(write_arrays(root) / "Area_1_office_2.npy", array)
    with pytest.raises(ValueError):
        load()
