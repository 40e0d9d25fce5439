import pytest

from hf_any3d.data.catalog.folder_layout import find_labeled_files, walk
from tests.errors import raises


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(root):
    splits, others = find_labeled_files(root, walk(root))
    return {
        split: [(file.label, file.path.relative_to(root).as_posix()) for file in files]
        for split, files in splits.items()
    }, others


def test_class_folders_alone_are_the_training_split(tmp_path):
    splits, others = found(make(tmp_path, "mug/b.ply", "mug/a.OFF", "cup/a.ply", "cup/a.blend", ".git/x.ply"))
    assert splits == {"train": [("cup", "cup/a.ply"), ("mug", "mug/a.OFF"), ("mug", "mug/b.ply")]}
    assert others == {".blend": 1}


def test_folders_of_splits_may_be_above_or_below_the_classes(tmp_path):
    expected = {"train": ["mug"], "test": ["cup", "mug"], "validation": ["cup"]}
    above = make(tmp_path / "above", "train/mug/a.ply", "test/cup/b.ply", "test/mug/c.ply", "val/cup/d.ply")
    below = make(tmp_path / "below", "mug/train/a.ply", "cup/test/b.ply", "mug/test/c.ply", "cup/Valid/d.ply")
    for root in (above, below):
        splits, _ = found(root)
        assert {split: [label for label, _ in files] for split, files in splits.items()} == expected


def test_notes_next_to_the_class_folders_are_not_clouds(tmp_path):
    splits, others = found(make(tmp_path, "readme.txt", "filelist.txt", "cup/a.ply"))
    assert splits == {"train": [("cup", "cup/a.ply")]} and others == {".txt": 2}


def test_folders_of_textures_inside_a_class_are_ignored(tmp_path):
    splits, others = found(make(tmp_path, "cup/a.ply", "cup/textures/wood.png"))
    assert splits == {"train": [("cup", "cup/a.ply")]} and others == {".png": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.ply"], "a.ply fits no layout; expected CLASS/FILE, SPLIT/CLASS/FILE"),
        (["cup/a.ply", "train/mug/b.ply"], "train/mug/b.ply fits no layout"),
        (["scans/cup/a.ply", "test/cup/b.ply"], "scans/cup/a.ply fits no layout"),
        (["a/train/cup/x.ply"], "fits no layout"),
        (["cup/a.ply", "mug/notes.md"], "no point cloud in the folders mug; remove them or add files"),
    ],
)
def test_a_layout_without_classes_is_refused(names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        found(make(tmp_path, *names))


def test_folders_without_clouds_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder with point clouds; .*ply"):
        found(make(tmp_path, "cup/a.png"))
    with raises(FileNotFoundError, naming="absent"):
        found(tmp_path / "absent")


@pytest.mark.parametrize(
    ("clouds", "arrays"),
    [
        (("a/room_points.npy", "b/room_points.npy"), ("a/room_colors.npy", "a/room_labels.npy", "b/room_normals.npy")),
        (("a/room.npy", "b/room.ply"), ("a/room_rgb.npy", "b/room_labels.txt", "b/room-intensity.npy")),
        (("a/coord.npy", "b/coord.npy"), ("a/color.npy", "b/normal.npy", "b/segment20.npy", "b/instance.npy")),
        (("a/points/1.npy", "b/points/1.npy"), ("a/colors/1.npy", "b/labels/1.npy")),
    ],
)
def test_arrays_of_the_points_beside_them_are_no_clouds_and_are_told(clouds, arrays, tmp_path, caplog):
    tree = walk(make(tmp_path, *clouds, *arrays))
    assert sorted("/".join(parts) for parts in tree.found) == sorted(clouds)
    assert all(name in caplog.text for name in arrays)


def test_clouds_that_are_called_like_arrays_stay_clouds(tmp_path, caplog):
    names = ("normal/1.npy", "defect/1.npy", "defect/labels.npy", "defect/colors.ply", "defect/chair_segment.ply")
    assert len(walk(make(tmp_path, *names)).found) == 5 and not caplog.text


def test_photos_among_scans_are_told_and_textures_are_not(tmp_path, caplog):
    walk(make(tmp_path, "cup/a.ply", "cup/photo.JPG", "mug/a.obj", "mug/a.mtl", "mug/wood.png", "mug/maps/b.png"))
    assert "cup/photo.JPG" in caplog.text and "png" not in caplog.text
