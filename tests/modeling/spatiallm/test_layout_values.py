"""Numbers of a layout: ranges and bins, their place in dicts and boxes, and lines that are nearly of the language."""

import math

import numpy as np
import pytest
import torch

from hf_any3d.modeling.spatiallm import Box, Door, Layout, Wall, Window
from hf_any3d.modeling.spatiallm.grammar import LayoutGrammar, LayoutLogitsProcessor
from tests.chat.tiny_tokenizers import byte_tokenizer
from tests.errors import raises

ROOM = Layout(
    (Wall(3, 1, 2, 0.5, 5, 2, 0.5, 2.5, 0.2), Wall(1, 5, 2, 0, 5, 8, 0, 2.25)),
    (Door(0, 1, 5, 4, 1, 0.875, 2),),
    (Window(2, 3, 2, 2, 1.5, 1.25, 0.75),),
    (Box(7, "bed", 3, 4, 0.5, -0.25, 2, 1.5, 0.75), Box(1234, "lamp", 1.5, 7, 1, -1.5, 0.25, 0.125, 0.5)),
)


def test_bins_divide_ranges_and_what_is_beyond_falls_into_the_last():
    walls = [Wall(0, -1, 0, 3.19, 3.2, 31.99, 32, 25.5, 2.57), Wall(1, 40, 1e9, 0, 0, 0, 0, 99, 25.6)]
    boxes = [Box(0, "bed", 1, 2, 3, -6.2832, 0, 19.9, 20), Box(1, "bed", 1, 2, 3, 0.0, 2, 4, 7)]
    found = Layout.of([*walls, *boxes]).quantized(10)
    assert [list(vars(wall).values()) for wall in found.walls] == [
        [0, 0, 0, 0, 1, 9, 9, 9, 1],
        [1, 9, 9, 0, 0, 0, 0, 9, 9],
    ]
    rows = [list(vars(box).values()) for box in found.boxes]
    assert rows == [[0, "bed", 0, 0, 0, 0, 0, 9, 9], [1, "bed", 0, 0, 0, 5, 1, 2, 3]]
    assert all(type(value) is int for row in rows for value in row[2:])
    centers, edges = found.unquantized(10).boxes[1], found.unquantized(10, lower_edge=True).boxes[1]
    assert [centers.x, centers.angle, centers.sy] == pytest.approx([1.6, 0.62832, 5])
    assert [edges.x, edges.angle, edges.sy] == pytest.approx([0, 0, 4])


def test_a_layout_becomes_a_dict_and_comes_back():
    content = ROOM.to_dict()
    assert list(content) == ["walls", "doors", "windows", "boxes", "up_axis"] and content["up_axis"] == "z"
    assert content["doors"] == [{"id": 0, "wall_id": 1, "x": 5, "y": 4, "z": 1, "width": 0.875, "height": 2}]
    assert content["walls"][1] == {
        **{"id": 1, "ax": 5, "ay": 2, "az": 0, "bx": 5, "by": 8, "bz": 0, "height": 2.25, "thickness": 0.0}
    }
    assert Layout.from_dict(content) == ROOM and Layout.from_dict({}) == Layout()
    lying = ROOM.with_up_axis("y")
    assert lying.to_dict()["up_axis"] == "y" and Layout.from_dict(lying.to_dict()) == lying
    with raises(TypeError, naming="colors"):
        Layout.from_dict({"walls": [{"colors": 0}]})
    for axis in ("w", "zx", ""):
        with pytest.raises(ValueError):
            Layout(up_axis=axis)


def test_entities_are_boxes_along_their_walls():
    sloped = Layout.of(
        [Wall(0, 0, 0, 0, 3, 4, 12, 2, 0.5), Wall(0, 9, 9, 9, 9, 9, 9, 9, 9), Window(5, 0, 1, 2, 3, 4, 5)]
    )
    rows, labels = sloped.as_boxes()
    angle = math.atan2(4, 3)
    assert labels == ["wall", "wall", "window"] and rows.dtype == np.float64
    assert rows[0].tolist() == pytest.approx([1.5, 2, 7, 13, 0.5, 2, angle])
    assert rows[2].tolist() == pytest.approx([1, 2, 3, 4, 0.5, 5, angle])  # in the first of the walls of this number
    lying = ROOM.with_up_axis("y")
    upright = ROOM.as_boxes()[0]
    np.testing.assert_allclose(lying.as_boxes()[0][:, 3:], upright[:, 3:])
    np.testing.assert_allclose(lying.as_boxes()[0][:, :3], upright[:, :3] @ lying.upright_rotation, atol=1e-12)
    assert ROOM.corners().shape == (6, 8, 3)
    bottom = ROOM.corners()[1]  # of a wall along y
    assert sorted(set(bottom[:, 2].round(9))) == [0, 2.25] and (bottom[:4, 2] == 0).all()


def test_lengths_are_scaled_and_angles_are_not():
    double = ROOM.scaled(2)
    assert vars(double.walls[0]) == vars(Wall(3, 2, 4, 1.0, 10, 4, 1.0, 5.0, 0.4))
    assert double.doors == (Door(0, 1, 10, 8, 2, 1.75, 4),)
    assert double.boxes[0] == Box(7, "bed", 6, 8, 1.0, -0.25, 4, 3.0, 1.5)
    with raises(ValueError, naming="expected at least 0"):
        ROOM.scaled(-1)
    moved = ROOM.translated([1, -1, 0.5])
    assert (moved.walls[0].bx, moved.walls[0].by, moved.walls[0].bz, moved.walls[0].height) == (6, 1, 1, 2.5)
    assert (moved.boxes[0].x, moved.boxes[0].y, moved.boxes[0].z, moved.boxes[0].sx) == (4, 3, 1, 2)


def test_turned_boxes_have_one_angle_for_equal_looks():
    boxes = [
        Box(0, "a", 1, 0, 5, 0.5, 2, 1, 1),
        Box(1, "a", 0, 2, 5, 0.5, 1, 1.0005, 1),
        Box(2, "a", 0, 2, 5, 0.5, 1, 1.1, 1),
    ]
    turned = Layout(boxes=tuple(boxes)).rotated(math.pi / 2).boxes
    assert [(box.x, box.y, box.z) for box in turned] == [
        pytest.approx(place, abs=1e-12) for place in ((0, 1, 5), (-2, 0, 5), (-2, 0, 5))
    ]
    # Half a turn less, and a quarter turn less where both sizes are equal.
    long, square = math.pi / 2 + 0.5 - math.pi, 0.5 - math.pi
    assert [box.angle for box in turned] == pytest.approx([long, square, long])
    for wrong in (ROOM.with_up_axis("y"), ROOM.with_up_axis("x")):
        with raises(ValueError, naming="up_axis"):
            wrong.rotated(1.0)
    near = Box(0, "a", 0, 0, 0, math.pi / 2 + 9e-4, 2, 1, 1), Box(0, "a", 0, 0, 0, math.pi / 2 + 2e-3, 2, 1, 1)
    folded = Layout(boxes=near).with_folded_turns().boxes
    assert (folded[0].angle, folded[0].sx, folded[0].sy) == (0.0, 1, 2) and folded[1] == near[1]
    assert Layout(boxes=(Box(0, "a", 0, 0, 0, math.pi, 2, 1, 1),)).with_folded_turns().boxes[0].sx == 2


def test_layouts_are_ordered_and_numbered_anew():
    layout = Layout(
        (Wall(4, 5, 5, 0, 1, 5, 0, 2), Wall(8, 1, 1, 0, 1, 5, 0, 2), Wall(9, 1, 1, 0, 0.5, 3, 0, 2)),
        (Door(3, 8, 1, 4, 1, 1, 2), Door(5, 4, 3, 2, 1, 1, 2)),
        (Window(0, 9, 2, 2, 1, 1, 1), Window(1, 8, 1, 2, 1, 1, 1)),
        (
            *(
                Box(0, "bed", 1, 9, 0, 0, 0.15, 0, 0),
                Box(1, "", 0, 0, 0, 0, 1, 1, 1),
                Box(2, "unknown", 0, 0, 0, 0, 1, 1, 1),
            ),
            *(Box(3, "lamp", 0, 0, 0, 0, 0.14, 0.149, 0.1), Box(4, "sofa", 2, 3, 0, 0, 0.1, 0.1, 1)),
        ),
    )
    found = layout.ordered()
    ends = [(wall.id, wall.ax, wall.ay, wall.bx, wall.by) for wall in found.walls]
    assert ends == [(0, 1, 1, 0.5, 3), (1, 1, 1, 1, 5), (2, 1, 5, 5, 5)]
    assert [(one.id, one.wall_id, one.x) for one in found.doors] == [(0, 2, 3), (1, 1, 1)]
    assert [(one.id, one.wall_id, one.x) for one in found.windows] == [(0, 1, 1), (1, 0, 2)]
    assert [(box.id, box.label) for box in found.boxes] == [(0, "sofa"), (1, "bed")]
    # In multiples of a length, near positions are equal and the next coordinate decides.
    near = Layout(boxes=(Box(0, "a", 2, 1.0, 0, 0, 1, 1, 1), Box(1, "b", 1, 1.1, 0, 0, 1, 1, 1)))
    assert [box.label for box in near.ordered().boxes] == ["a", "b"]
    assert [box.label for box in near.ordered(resolution=1).boxes] == ["b", "a"]


def test_ends_of_an_answer_are_those_that_are_given():
    tokenizer, grammar = byte_tokenizer(), LayoutGrammar(64, ["bed"])
    start, scores = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, len(tokenizer))

    def allowed(held, text=None):
        held(start, scores)
        ids = start if text is None else torch.tensor([tokenizer(text)["input_ids"]])
        return set((held(ids, scores)[0] > -torch.inf).nonzero().flatten().tolist())

    def ids(text):
        return {number for character in text for number in tokenizer(character)["input_ids"]}

    end = {tokenizer.eos_token_id}
    assert allowed(LayoutLogitsProcessor(tokenizer, grammar)) == ids("wb") | end  # no walls for doors yet
    two = LayoutLogitsProcessor(tokenizer, grammar, eos_token_id=[5, 6])
    assert two.ends == [5, 6] and allowed(two) == ids("wb") | {5, 6}
    wall = "wall_0=Wall(1,2,3,4,5,6,7,8)"
    assert allowed(LayoutLogitsProcessor(tokenizer, grammar, eos_token_id=250), wall) == ids("\n") | {250}
    assert allowed(LayoutLogitsProcessor(tokenizer, grammar), wall + "\n") == ids("wdb") | end
    # No line is begun that may not fit.
    length = len(tokenizer(wall)["input_ids"]) + grammar.longest_line
    assert allowed(LayoutLogitsProcessor(tokenizer, grammar, max_new_tokens=length + 1), wall) == ids("\n") | end
    assert allowed(LayoutLogitsProcessor(tokenizer, grammar, max_new_tokens=length), wall) == end
    # After its end nothing but ends follow.
    finished = LayoutLogitsProcessor(tokenizer, grammar)
    finished(start, scores)
    found = finished(torch.tensor([[tokenizer.eos_token_id, 3]]), scores)
    assert set((found[0] > -torch.inf).nonzero().flatten().tolist()) == end
    tokenizer.eos_token = None
    with raises(ValueError, naming="eos_token_id"):
        LayoutLogitsProcessor(tokenizer, grammar)
