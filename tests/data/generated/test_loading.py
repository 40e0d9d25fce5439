"""Loading generated data: which shapes a split may use, and that every row is made as the arguments say."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, Value

from hf_any3d.data.generated import rooms, rooms_with_boxes, rooms_with_layouts

NAMES = ["vehicle", "chair", "lamp", "table"]
CLASSES = ["table", "chair"]
ROOMS = {"num_objects": 2, "num_points": 300}


def few_shapes(count: int, first: int) -> Dataset:
    """Shapes of all classes in turn, whose first coordinate is their number; two of a class are a group."""
    points = np.random.default_rng(first).normal(size=(count, 40, 3)).astype(np.float32)
    points[:, 0, 0] = numbers = np.arange(first, first + count)
    features = {"points": Array2D((40, 3), "float32"), "label": ClassLabel(names=NAMES)}
    features |= {"group": Value("string"), "creator": Value("string")}
    rows = {"points": list(points), "label": numbers % len(NAMES), "creator": ["somebody"] * count}
    rows["group"] = [group_of(number) for number in numbers.tolist()]
    return Dataset.from_dict(rows, features=Features(features))


def group_of(number: int) -> str:
    return f"{number % len(NAMES)} {number // (2 * len(NAMES))}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Few shapes in the place of the embedded ones."""
    path = tmp_path_factory.mktemp("shapes")
    few_shapes(80, 0).to_parquet(path / "train.parquet")
    few_shapes(12, 80).to_parquet(path / "test.parquet")
    return path


def objects_of_rooms(folder, seed, counts=(2, 1, 3)):
    """Return the objects that each room may have, by their numbers, and its own draw."""
    seen = []

    def compose(objects, generator):
        seen.append(({int(thing.points[0, 0]): thing for thing in objects}, int(generator.integers(10**9))))
        return {"number": len(seen)}

    rooms.compose_splits(compose, counts, {"number": Value("int64")}, folder, CLASSES, seed, {})
    return seen


def plain_room(objects, generator, **settings):
    room = rooms.compose_room(objects, generator, **ROOMS, **settings)
    return {"points": room["points"], "labels": room["labels"]}


def box_room(names, **places):
    def compose(objects, generator):
        return rooms_with_boxes.with_boxes(rooms.compose_room(objects, generator, **ROOMS, **places), names)

    return compose


def layout_room(noise):
    return lambda objects, generator: rooms_with_layouts.compose_room_with_layout(
        objects, CLASSES, generator, **ROOMS, noise=noise
    )


@pytest.mark.parametrize(
    ("module", "settings", "compose"),
    [
        (rooms, {}, plain_room),
        (rooms_with_boxes, {}, box_room(CLASSES)),
        (rooms_with_boxes, {"headings": False}, box_room(None)),
        (rooms_with_boxes, {"touching": True}, box_room(CLASSES, touching=True, gap=0.03)),
        (rooms_with_layouts, {}, layout_room(0.005)),
        (rooms_with_layouts, {"noise": 0.2}, layout_room(0.2)),
    ],
)
def test_a_room_is_composed_as_the_arguments_say(module, settings, compose, folder):
    counts = {"train_rooms": 2, "validation_rooms": 1, "test_rooms": 3}
    splits = module.load(folder, **counts, **ROOMS, classes=CLASSES, seed=7, **settings)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 1, "test": 3}
    objects = iter(objects_of_rooms(folder, 7))
    for number, rows in enumerate(splits.values()):
        for place, row in enumerate(rows.with_format("numpy")):
            things = list(next(objects)[0].values())
            expected = compose(things, np.random.default_rng([7, number, place]))
            assert row.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(row[name], np.asarray(values), err_msg=name)
    names = splits["train"].features["labels" if module is rooms else "box_labels"].feature.names
    assert names == ([rooms.FLOOR] * (module is rooms)) + CLASSES


def test_no_object_is_in_rooms_of_two_splits_and_each_room_has_its_own_draw(folder):
    composed = objects_of_rooms(folder, 7)
    used = [composed[0][0], composed[2][0], composed[3][0]]
    assert [list(things) for things, _ in composed] == [list(used[number]) for number in (0, 0, 1, 2, 2, 2)]
    assert len({draw for _, draw in composed}) == 6
    for objects in used:
        for number, thing in objects.items():
            name = NAMES[number % len(NAMES)]
            assert (thing.label, thing.size) == (CLASSES.index(name) + 1, {"table": 1.5, "chair": 1.1}[name])
    of_classes = [number for number in range(92) if NAMES[number % len(NAMES)] in CLASSES]
    assert sorted([*used[0], *used[1]]) == of_classes[:40] and list(used[2]) == of_classes[40:]
    # A fifth of each class, in whole groups.
    assert len(used[1]) == 8 and len({group_of(number) for number in used[1]}) == 4
    others = [set(objects_of_rooms(folder, seed, (0, 1, 0))[0][0]) for seed in (0, 1, 2)]
    assert others[0] != others[1] != others[2]
