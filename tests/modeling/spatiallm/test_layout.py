"""The layout language: as the released program reads, writes and moves it, and what a round trip keeps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hf_any3d.modeling.spatiallm import Box, Door, Layout, Wall, Window
from tests.errors import raises

CASE = json.loads((Path(__file__).parents[2] / "reference" / "spatiallm_layout.json").read_text())
BINS = CASE["num_bins"]
_THEIRS = {"position_x": "x", "position_y": "y", "position_z": "z", "class_name": "label", "angle_z": "angle"}
_THEIRS |= {"scale_x": "sx", "scale_y": "sy", "scale_z": "sz"}
_KINDS = {"wall": Wall, "door": Door, "window": Window, "bbox": Box}


def items(kind: str) -> list[dict]:
    return [item for item in CASE["items"] if item["kind"] == kind]


def layout_of(stored: list[dict]) -> Layout:
    rows = []
    for one in stored:
        fields = {_THEIRS.get(name, name): value for name, value in one.items() if name != "entity_label"}
        rows.append(_KINDS[one["entity_label"]](**fields))
    return Layout.of(rows)


def assert_close(found: Layout, expected: Layout) -> None:
    assert [type(one) for one in found.entities] == [type(one) for one in expected.entities]
    for one, other in zip(found.entities, expected.entities, strict=True):
        mine, theirs = vars(one), vars(other)
        for name, value in theirs.items():
            assert mine[name] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-9)), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bbox_0=Bbox(sofa,1,2,3,0.5,-1,1,1)", "line 1, .*: sx is -1; expected at least 0"),
        ("wall_0=Wall(1,1,0,1,1,0,2.8,0)", "line 1, .*: has no length"),
        ("wall_0=Wall(0,0,0,1,0,0,2.8,-0.1)", "thickness is -0.1"),
        (
            "wall_0=Wall(0,0,0,1,0,0,2.8,0)\nwall_1=Wall(0,0,0,1,1,0,2.8,0)\nwall_0=Wall(0,0,0,2,0,0,2.8,0)",
            "line 3, .*: wall_0 is in an earlier line too",
        ),
    ],
)
def test_a_strict_text_has_nothing_that_can_mean_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        Layout.parse(text, strict=True)


def test_a_wall_whose_ends_meet_in_bins_is_read_and_learned():
    """The released program writes it for a wall that is shorter than a bin."""
    text = "wall_0=Wall(40,40,0,40,40,0,112,0)\ndoor_0=Door(wall_0,40,40,40,30,80)"
    layout = Layout.parse(text, strict=True)
    assert Layout.parse(layout.write(), strict=True) == layout and len(layout.corners()) == 2


@pytest.mark.parametrize("item", items("round_trip"))
def test_there_and_back_as_released(item):
    layout = layout_of(item["entities"])
    assert layout.write() == item["text_metres"]
    read = Layout.parse(item["text_metres"], strict=True)
    # Numbers above 999 are cut where they are written.
    assert read.write() == item["text_metres"] and (read == layout or any(one.id > 999 for one in layout.entities))
    assert layout.quantized(BINS).write() == item["bins_text"]
    parsed = Layout.parse(item["bins_text"], strict=True)
    assert parsed == layout_of(item["parsed"])
    meters = parsed.unquantized(BINS, lower_edge=True)
    assert_close(meters, layout_of(item["metres"]))
    moved = meters.translated(item["translation"])
    assert_close(moved, layout_of(item["translated"]))
    assert moved.write() == item["final_text"]


@pytest.mark.parametrize("item", items("parse"))
def test_texts_are_read_as_released(item):
    found = Layout.parse(item["text"], keep_unclosed=True)
    assert found == layout_of(item["parsed"])
    assert found.write() == item["text_again"]
    # Every line that holds something is read or reported.
    lines = [line for line in item["text"].split("\n") if line.strip()]
    assert len(found.entities) + len(found.dropped) == len(lines)
    assert all(one.text == item["text"].split("\n")[one.number - 1] and one.reason for one in found.dropped)


@pytest.mark.parametrize("item", items("train"))
def test_layouts_are_turned_and_ordered_as_released(item):
    center = np.array(item["center"])
    layout = Layout.parse(item["text"], strict=True).translated(-center)
    moved = layout.scaled(item["scaling"]).rotated(item["angle"]).translated(center)
    assert_close(moved, layout_of(item["moved"]))
    kept = [box for box in moved.boxes if box.id in item["boxes_kept"]]
    ordered = Layout.of([*moved.walls, *moved.doors, *moved.windows, *kept]).ordered()
    assert_close(ordered, layout_of(item["ordered"]))
    corner = -np.array(item["min_bound"])
    assert ordered.translated(corner).quantized(BINS).write() == item["bins_text"]


def random_layout(seed: int) -> Layout:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))

    def numbers(*highest: float) -> list[float]:
        return (rng.random(len(highest)) * highest).tolist()

    walls = [Wall(number, *numbers(*[31.9] * 6, 25.5, 25.5)) for number in range(count)]
    openings = [
        kind(number, int(rng.integers(count)), *numbers(31.9, 31.9, 31.9, 25.5, 25.5))
        for kind in (Door, Window)
        for number in range(3)
    ]
    boxes = [
        Box(number, "coffee_table", *numbers(31, 31, 31), float(rng.uniform(-3.1, 0)), *numbers(19, 19, 19))
        for number in range(4)
    ]
    return Layout.of([*boxes, *openings, *walls])


def test_lengths_below_zero_are_refused():
    text = "wall_0=Wall(0,0,0,1,0,0,-2.5,0.1)\nwall_1=Wall(0,0,0,1,0,0,2.5,0.1)"
    told = "height is -2.5; expected at least 0"
    read = Layout.parse(text)
    assert [wall.id for wall in read.walls] == [1] and [line.reason for line in read.dropped] == [told]
    with pytest.raises(ValueError, match=f"line 1, .*: {told}"):
        Layout.parse(text, strict=True)
    with pytest.raises(ValueError, match="sy is -1; expected at least 0"):
        Box(0, "chair", 0, 0, 0, 0, 1, -1, 1)
    with pytest.raises(ValueError, match="width is -1; expected at least 0"):
        Door(0, 0, -1, -1, -1, -1, 2)  # positions may be


@pytest.mark.parametrize("seed", range(20))
def test_a_round_trip_keeps_every_layout(seed):
    layout = random_layout(seed)
    assert Layout.parse(layout.write(), strict=True) == layout
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    for bins in (640, 1280):
        written = layout.quantized(bins)
        # Bins stay the same when their centers are quantized; meters are off by half a bin at most.
        assert written.unquantized(bins).quantized(bins) == written
        ordered = written.unquantized(bins)
        for one, other in zip(layout.walls, ordered.walls, strict=True):
            assert abs(one.ax - other.ax) <= 16 / bins + 1e-9 and abs(one.height - other.height) <= 12.8 / bins + 1e-9
    shift, angle = np.array([3.0, -2.0, 1.0]), 1.234
    assert_close(layout.translated(shift).translated(-shift), layout)
    back = layout.rotated(angle).rotated(-angle)
    for one, other in zip(back.walls, layout.walls, strict=True):
        assert one.bx == pytest.approx(other.bx) and one.by == pytest.approx(other.by)
    for one, other in zip(back.boxes, layout.boxes, strict=True):
        assert math.isclose(math.sin(2 * (one.angle - other.angle)), 0, abs_tol=1e-9)


def test_the_order_does_not_depend_on_rounding_errors():
    walls = [
        Wall(0, 0, 1, 0, 4, 1, 0, 2.5),
        Wall(1, 0, 1 + 1e-12, 0, 2, 1, 0, 2.5),
        Wall(2, 0, 1, 0, 3, 1, 1e-13, 2.5),
    ]
    first, second = (Layout.of(own).ordered(resolution=0.025) for own in (walls, walls[::-1]))
    assert [wall.bx for wall in first.walls] == [wall.bx for wall in second.walls] == [2, 3, 4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("wall_0=Wall(1,2,3,4,5,6,7,8", r"\) is missing"),
        ("wall_0=Wall(1,2,3,4,5,6,7)", "has 7 numbers; expected 8"),
        ("wall_0=Wall(1,2,3,4,5,6,7,nan)", "'nan'; expected a finite number"),
        ("door_0=Door(wall_3,1,2,3,4,5)", "wall_3 is in no earlier line"),
        ("pose_0=Pose(1,2,3)", "begins with 'pose'; expected one of wall, door, window, bbox"),
        ("wall_x=Wall(1,2,3,4,5,6,7,8)", "'x' after the name; expected a whole number"),
    ],
)
def test_dropped_lines_say_why(line, reason):
    (dropped,) = Layout.parse(f"wall_1=Wall(1,2,3,4,5,6,7,8)\n{line}").dropped
    assert dropped.number == 2 and dropped.text == line
    with pytest.raises(ValueError, match=reason):
        Layout.parse(line, strict=True)


@pytest.mark.parametrize(
    "line", ("wall_0=Window(1,2,3,4,5,6,7,8)", "wall_0=Wall(1,2,3,4,5,6,7,8,9)", "wall_0=Wall(1, 2,3,4,5,6,7,8)")
)
def test_strict_reading_takes_the_language_alone(line):
    assert len(Layout.parse(line).walls) == 1
    with pytest.raises(ValueError, match="line 1, .*: not exactly of the form"):
        Layout.parse(line, strict=True)


def test_a_tilted_layout_keeps_its_heights_and_comes_back():
    up = (0.06, -0.02, math.sqrt(1 - 0.06**2 - 0.02**2))
    walls = (Wall(0, 0.0, 0.0, 1.0, 4.0, 0.0, 1.0, 2.5, 0.1),)
    layout = Layout(walls, (Door(0, 0, 1.0, 0.0, 2.0, 0.9, 2.0),), (), (Box(0, "bed", 1, 2, 1.5, 0.3, 2.0, 1.5, 0.5),))
    tilted = layout.with_up_axis("z", up)
    assert tilted.walls[0].height == 2.5 and tilted.boxes[0].angle == 0.3 and tilted.walls[0].bz < 1.0
    # Corners are those of the upright room, tilted as a whole.
    corners = layout.corners()
    np.testing.assert_allclose(tilted.corners(), corners @ tilted.upright_rotation, atol=1e-12)
    edges = tilted.corners()[:, 4] - tilted.corners()[:, 0]
    np.testing.assert_allclose(edges / np.linalg.norm(edges, axis=1, keepdims=True), [up] * 3, atol=1e-12)
    boxes, labels = tilted.as_boxes()
    assert labels == ["wall", "door", "bed"]
    np.testing.assert_allclose(boxes[:, :3], tilted.corners().mean(axis=1), atol=1e-12)
    assert_close(tilted.with_up_axis("z"), layout)
    assert tilted.with_up_axis("z").up is None and Layout.from_dict(tilted.to_dict()) == tilted
    lying = tilted.with_up_axis("y", (0.06, up[2], 0.02))
    assert_close(lying.with_up_axis("z"), layout)
    for wrong in (lambda: tilted.rotated(1.0), lambda: tilted.quantized(BINS), tilted.ordered):
        with raises(ValueError, naming="up_axis"):
            wrong()
    with raises(ValueError, naming="up="):
        layout.with_up_axis("z", (1.0, 0.0, 0.0))
