"""What is seen of scans before they are learned."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, Value, concatenate_datasets

from hf_any3d import PointCloudProcessor
from hf_any3d.data.checks.clouds import Checks
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.splits import validation_split
from hf_any3d.training.few_scans.examples import Examples
from hf_any3d.training.few_scans.labeled_scans import joined, look_at, near_duplicates
from tests.errors import raises


def shape(kind: int, seed: int, count: int = 600) -> np.ndarray:
    """Points on boxes of other proportions, drawn by a seed."""
    size = np.random.default_rng(kind).uniform(0.2, 1, 3)
    generator = np.random.default_rng(seed)
    points, sides = generator.uniform(-1, 1, (count, 3)), generator.integers(0, 3, count)
    points[np.arange(count), sides] = generator.choice([-1, 1], count)  # on the faces of a cube
    return (points * size).astype(np.float32)


def rows_of(clouds, labels, names=("ball", "stick"), **columns) -> Dataset:
    features = Features(
        {
            "points": Array2D((None, 3), "float32"),
            "label": ClassLabel(names=list(names)),
            **{name: Value("string") for name in columns},
        }
    )
    return Dataset.from_dict({"points": clouds, "label": labels, **columns}, features=features)


def test_counts_groups_and_names_are_seen():
    clouds = [shape(kind, kind) for kind in range(4)]
    clouds += [shape(1, 99), clouds[2]]
    rows = rows_of(clouds, [0, 0, 1, 1, 0, 1], file=[f"{number}.ply" for number in range(6)])
    scans = look_at(rows, "scans")
    assert scans.counts == {"ball": 3, "stick": 3} and scans.names[1] == "1.ply"
    # Another sample of the second shape, and the same points as the third.
    assert scans.groups.tolist() == [0, 1, 2, 3, 1, 2] and scans.num_copies == 2
    scans.check("scans")


def test_a_check_counts_copies_as_a_training_does():
    clouds = [shape(kind, kind) for kind in range(4)] + [shape(1, 98), shape(1, 99)]
    clouds += [clouds[2], clouds[4]]
    checks = Checks()
    for number, cloud in enumerate(clouds):
        checks.add(f"{number}.npy", PointCloudData(cloud))
    scans = look_at(rows_of(clouds, [0] * 8, file=[f"{number}.npy" for number in range(8)]), "scans")
    named = [(scans.names[first], scans.names[other]) for first, other in scans.twins]
    assert sorted(checks.near_duplicates()) == sorted(named) and len(named) == scans.num_copies == 4


def test_a_column_of_groups_that_is_not_there_is_named_with_those_that_are():
    rows = rows_of([shape(kind, kind) for kind in range(4)], [0, 0, 1, 1])
    with raises(ValueError, naming="no column 'nothing' among points, label"):
        look_at(rows, "scans", "nothing")
    with raises(ValueError, naming="no column 'nothing' among points, label"):
        validation_split(rows, 0.5, group_column="nothing")


def test_a_column_of_groups_joins_scans():
    rows = rows_of([shape(kind, kind) for kind in range(4)], [0, 0, 1, 1], place=["a", "a", "b", "c"])
    assert look_at(rows, "scans", "place").groups.tolist() == [0, 0, 2, 3]
    with raises(ValueError, naming="room"):
        look_at(rows, "scans", "room")


def test_classes_without_scans_are_named_and_left_out():
    rows = rows_of([shape(0, 0), shape(1, 1)], [0, 2], ("ball", "cone", "stick"))
    with pytest.warns(UserWarning, match="scans: no scan of 'cone'; the class is not in the model"):
        scans = look_at(rows, "scans")
    assert scans.classes == ["ball", "stick"] and scans.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0], ("ball", "stick"), "scans: all scans are in one class, 'ball'; add scans of a second"),
        ([0, 1, 1], ("ball", "Ball"), r"classes 'ball' \(1 scans\) and 'Ball' \(2\) differ only in case or spaces"),
        ([0, 1, 1], ("arm chair", "arm_chair"), "differ only in case or spaces; use one name for both, or"),
    ],
)
@pytest.mark.filterwarnings("ignore:scans. no scan")
def test_scans_that_cannot_be_learned_are_refused(labels, names, message):
    scans = look_at(rows_of([shape(kind, kind) for kind in range(len(labels))], labels, names), "scans")
    with pytest.raises(ValueError, match=message):
        scans.check("scans")


def test_the_same_scan_under_two_labels_is_refused_or_warned_of():
    cloud = shape(0, 0)
    rows = rows_of([cloud, shape(1, 1), cloud], [0, 1, 1], file=["ball/a.ply", "stick/b.ply", "stick/c.ply"])
    scans = look_at(rows, "scans")
    text = "scans: ball/a.ply and stick/c.ply are the same scan with different labels, 'ball' and 'stick'; remove one"
    with pytest.raises(ValueError, match=text):
        scans.check("scans")
    with pytest.warns(UserWarning, match=text):
        scans.check("scans", allow_doubts=True)


def test_near_duplicates_are_other_samples_of_a_shape_and_not_similar_shapes():
    same = [shape(0, seed) for seed in range(3)]
    larger = [shape(0, 9) * [1.0, 1.15, 1.0], shape(5, 5)]
    clouds = PointCloudProcessor(num_points=512)([*same, *larger], return_tensors="pt")["points"]
    assert sorted(map(tuple, near_duplicates(clouds))) == [(0, 1), (0, 2), (1, 2)]


def test_later_scans_join_earlier_ones_and_win():
    clouds = [shape(kind, kind) for kind in range(4)]
    earlier = look_at(rows_of(clouds[:3], [0, 0, 1]), "scans")
    later = look_at(rows_of([clouds[1], clouds[3]], [1, 0], ("cone", "stick")), "more")
    together, kept = joined(earlier, later)
    assert kept.tolist() == [True, False, True] and together.classes == ["ball", "cone", "stick"]
    assert together.labels.tolist() == [0, 2, 2, 1] and len(set(together.groups.tolist())) == 4
    assert together.digests == [earlier.digests[0], earlier.digests[2], *later.digests]


@pytest.mark.parametrize("views", [None, np.ones((3, 2), np.float32)])
def test_examples_are_kept_beside_the_model(views, tmp_path):
    processor = PointCloudProcessor(num_points=48)
    scans = look_at(rows_of([shape(kind, kind) for kind in range(3)], [0, 0, 1], file=["a", "b", "c"]), "scans")
    with raises(FileNotFoundError, naming="_features.safetensors"):
        Examples.load(tmp_path)
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    processor.save_pretrained(tmp_path)
    Examples(scans, features, processor, views).save(tmp_path)
    found = Examples.load(tmp_path)
    assert found.processor.num_points == 48 and found.scans.names == ["a", "b", "c"]
    assert (found.scans.classes, found.scans.digests) == (scans.classes, scans.digests)
    for name in ("labels", "groups"):
        assert np.array_equal(getattr(found.scans, name), getattr(scans, name))
    assert np.array_equal(found.features, features)
    assert found.views is None if views is None else np.array_equal(found.views, views)


def test_of_many_scans_only_equal_ones_are_found(monkeypatch):
    monkeypatch.setattr("hf_any3d.training.few_scans.labeled_scans.MOST_COMPARED", 20)
    few = rows_of([shape(1, 1, 8), shape(1, 2, 8), shape(1, 1, 8)], [0, 0, 1])
    many = concatenate_datasets([few, rows_of([shape(1, 9, 8)] * 18, [0] * 18)])
    assert look_at(many, "scans").groups[:3].tolist() == [0, 1, 0]


def test_labels_that_are_no_classes_are_refused():
    rows = rows_of([shape(0, 0)], [0]).cast_column("label", Value("float32"))
    with raises(ValueError, naming="scans: label is"):
        look_at(rows, "scans")
