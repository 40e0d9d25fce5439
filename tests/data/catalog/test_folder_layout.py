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
        (["a.ply"], "a.ply fits no layout; expected class/file, split/class/file"),
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
    with pytest.raises(FileNotFoundError, match="no folder with point clouds; readable are .*ply"):
        found(make(tmp_path, "cup/a.png"))
    with raises(FileNotFoundError, naming="absent"):
        found(tmp_path / "absent")
