"""Rooms with layouts: what the text says is where the points are, and boxes are those of the text."""

import numpy as np
import pytest

from hf_any3d.data import load_point_dataset
from hf_any3d.modeling.spatiallm import Layout


@pytest.fixture(scope="module")
def splits():
    return load_point_dataset("rooms_with_layouts", train_rooms=3, validation_rooms=0, test_rooms=2, num_points=6000)


def test_walls_are_where_points_are_and_openings_are_holes(splits):
    for row in splits["train"].with_format("numpy"):
        points, layout = row["points"], Layout.parse(str(row["layout"]), strict=True)
        assert len(layout.walls) == 4 and len(layout.doors) == 1 and len(layout.windows) in (1, 2)
        assert len({one.wall_id for one in (*layout.doors, *layout.windows)}) == 1 + len(layout.windows)
        for wall in layout.walls:
            along = np.array([wall.bx - wall.ax, wall.by - wall.ay])
            normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
            near = np.abs((points[:, :2] - (wall.ax, wall.ay)) @ normal) < 0.03
            own = points[near & (points[:, 2] > 0.05)]
            assert len(own) > 300 and own[:, 2].max() == pytest.approx(wall.height, abs=0.05)
            for one in (*layout.doors, *layout.windows):
                if one.wall_id == wall.id:
                    beside = np.abs((own[:, :2] - (one.x, one.y)) @ along / np.linalg.norm(along))
                    hole = (beside < one.width / 2 - 0.03) & (np.abs(own[:, 2] - one.z) < one.height / 2 - 0.03)
                    assert hole.sum() <= 3  # points of objects that touch the wall


def test_boxes_are_those_of_the_layout(splits):
    names = splits["train"].features["box_labels"].feature.names
    for row in splits["train"]:
        layout = Layout.parse(row["layout"])
        assert [names[label] for label in row["box_labels"]] == [box.label for box in layout.boxes]
        own = [[box.x, box.y, box.z, box.sx, box.sy, box.sz, box.angle] for box in layout.boxes]
        np.testing.assert_allclose(own, row["boxes"], atol=1e-3)
        inside = np.abs(np.array(row["points"])[None] - np.array(own)[:, None, :3]) < np.array(own)[:, None, 3:6] / 2
        assert (inside.all(axis=2).sum(axis=1) > 30).all()
