"""Scores of layouts equal the released program's in its form, and the sound form has none of its accidents."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from hf_any3d.evaluation.layouts import box_overlaps, face_overlaps, score_layouts, shapes_by_class
from hf_any3d.modeling.spatiallm import Box, Door, Layout, Wall

CASE = json.loads((Path(__file__).parents[1] / "reference" / "spatiallm_eval.json").read_text())
SCENES = {
    name: tuple(Layout.parse(scene[side]) for side in ("prediction", "truth"))
    for name, scene in CASE["scenes"].items()
}


def in_order(layout: Layout) -> np.ndarray:
    """Boxes in the order of the layout, without those that no class is left for."""
    kept = [box for box in layout.boxes if CASE["label_map"].get(box.label.replace("_", " "))]
    rows = [shapes_by_class(Layout(boxes=(box,)), None)[box.label] for box in kept]
    return np.concatenate(rows) if rows else np.zeros((0, 7))


def faces(layout: Layout) -> np.ndarray:
    found = shapes_by_class(layout, {})
    return np.concatenate([found[name] for name in ("wall", "door", "window") if name in found])


@pytest.mark.parametrize("scene", SCENES)
def test_overlaps_of_the_released_program(scene):
    mine, theirs = SCENES[scene]
    tolerance, expected = CASE["tolerance"], CASE["pairs"][scene]
    boxes = box_overlaps(in_order(mine), in_order(theirs), published=True)
    np.testing.assert_allclose(
        boxes.ravel(), np.array(expected["boxes"]).ravel(), atol=tolerance["pairs_boxes"], rtol=0
    )
    found = face_overlaps(faces(mine), faces(theirs), published=True)
    np.testing.assert_allclose(
        found.ravel(), np.array(expected["layout"]).ravel(), atol=tolerance["pairs_layout"], rtol=0
    )


def test_counts_and_f1_of_the_released_program():
    mine, theirs = zip(*SCENES.values(), strict=True)
    scores = score_layouts(mine, theirs, label_map=CASE["label_map"], published=True)
    for name, counts in CASE["counts"].items():
        if not np.any(counts):
            assert name not in scores or not scores[name].counts.any()
            continue
        assert scores[name].counts.tolist() == counts, name
        assert scores[name].mean_f1 == pytest.approx(CASE["f1"][name], abs=CASE["tolerance"]["f1"])
    sound = score_layouts(mine, theirs, label_map=CASE["label_map"])
    # As the description of the released program says of its accidents.
    assert sound["bed"].mean_f1[0] == pytest.approx(0.8125) and sound["wall"].mean_f1[0] == pytest.approx(
        0.773, abs=1e-3
    )
    assert 0 < sound["bed"].pooled_f1[0] <= 1


def test_a_far_wall_is_not_found():
    truth = Layout.of([Wall(0, 0, 0, 0, 4, 0, 0, 2.5)])
    for shift in (10.0, -10.0):
        far = truth.translated([0, shift, 0])
        assert score_layouts([far], [truth])["wall"].mean_f1 == [0.0, 0.0]
    published = [score_layouts([truth.translated([0, s, 0])], [truth], published=True)["wall"] for s in (10.0, -10.0)]
    assert sorted(one.mean_f1[0] for one in published) == [0.0, 1.0]
    assert score_layouts([truth], [truth])["wall"].mean_f1 == [1.0, 1.0]


def test_a_tilt_that_the_truth_does_not_have_moves_nothing():
    mine, theirs = SCENES[next(iter(SCENES))]
    upright = {name: score.pooled_f1 for name, score in score_layouts([mine], [theirs]).items()}
    # The same places, with another direction that points up.
    tilted = dataclasses.replace(mine, up=(0.02, 0.01, 1.0))
    found = {name: score.pooled_f1 for name, score in score_layouts([tilted], [theirs]).items()}
    assert str(found) == str(upright) and not math.isnan(found["wall"][0])
    both = [dataclasses.replace(one, up=(0.02, 0.01, 1.0)) for one in (mine, theirs)]
    again = score_layouts(*([one] for one in both))
    assert str({name: score.pooled_f1 for name, score in again.items()}) == str(upright)


def test_boxes_of_unequal_height():
    first, second = (Layout.of([Box(0, "bed", 0, 0, z, 0.3, 1, 1, height)]) for z, height in ((1, 2), (2.5, 3)))
    rows = [shapes_by_class(layout, None)["bed"] for layout in (first, second)]
    assert box_overlaps(*rows)[0, 0] == pytest.approx(1 / 4)
    assert box_overlaps(*rows, published=True)[0, 0] != pytest.approx(1 / 4, abs=0.02)


def test_what_has_no_face_is_a_miss():
    truth = Layout.of([Wall(0, 0, 0, 0, 4, 0, 0, 2.5), Door(0, 0, 1, 0, 1, 0.9, 2)])
    flat = Layout.of([Wall(0, 0, 0, 0, 4, 0, 0, 0), Door(0, 0, 1, 0, 1, 0, 2), Door(1, 5, 1, 0, 1, 1, 2)])
    scores = score_layouts([flat], [truth])
    assert scores["wall"].mean_f1 == scores["door"].mean_f1 == [0.0, 0.0]
    # A door whose wall is missing does not count, a window that nobody has has no score.
    assert scores["door"].counts[0, 0].tolist() == [0, 1, 1] and math.isnan(scores["window"].mean_f1[0])
    with pytest.raises(ValueError, match="truths"):
        score_layouts([flat], [])
