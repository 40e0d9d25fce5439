"""Files of layouts are read again, by this package's readers too; walls have holes where openings are."""

import json

import numpy as np
import pytest

from hf_any3d.data.annotations.layout_files import layout_solids, write_layout
from hf_any3d.data.files import read_point_cloud
from hf_any3d.modeling.spatiallm import Box, Door, Layout, Wall, Window
from tests.errors import raises

LAYOUT = Layout(
    (Wall(0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 2.5, 0.2), Wall(1, 4.0, 0.0, 0.0, 4.0, 3.0, 0.0, 2.5)),
    (Door(0, 0, 1.0, 0.0, 1.0, 0.8, 2.0),),
    (Window(0, 0, 3.0, 0.0, 1.5, 1.0, 1.0),),
    (Box(0, "dining table", 2.0, 1.5, 0.4, 0.5, 1.5, 0.8, 0.8),),
)


def volume(solid) -> float:
    a, b, c = (solid.vertices[solid.faces[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def test_walls_have_holes_for_doors_and_windows():
    first, second, box = layout_solids(LAYOUT)
    assert [one.name for one in (first, second, box)] == ["wall_0", "wall_1", "bbox_0_dining table"]
    # Faces look outward, so that volumes are positive.
    assert volume(first) == pytest.approx((4 * 2.5 - 0.8 * 2 - 1) * 0.2)
    assert volume(second) == pytest.approx(3 * 2.5 * 0.02) and volume(box) == pytest.approx(1.5 * 0.8 * 0.8)
    centers = first.vertices[first.faces].mean(axis=1)
    inside = (np.abs(centers[:, 0] - 1) < 0.39) & (np.abs(centers[:, 2] - 1) < 0.99)
    assert not inside.any() and first.vertices[:, 1].max() == pytest.approx(0.1)


def test_meshes_of_tilted_layouts_are_level_only_where_up_is_said(tmp_path):
    up = (0.1, 0.05, float(np.sqrt(1 - 0.1**2 - 0.05**2)))
    tilted = LAYOUT.with_up_axis("z", up)
    for solid, other in zip(layout_solids(LAYOUT), layout_solids(tilted), strict=True):
        np.testing.assert_allclose(other.vertices, solid.vertices @ tilted.upright_rotation, atol=1e-12)
    for name, layout in (("level", LAYOUT), ("tilted", tilted)):
        write_layout(tmp_path / f"{name}.glb", layout)
    files = [read_point_cloud(tmp_path / f"{name}.glb").points for name in ("level", "tilted")]
    np.testing.assert_allclose(files[1], files[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["obj", "glb"])
def test_meshes_are_read_by_our_readers(kind, tmp_path):
    write_layout(tmp_path / f"room.{kind}", LAYOUT, unit=0.5)
    found = read_point_cloud(tmp_path / f"room.{kind}")
    assert found.is_mesh and len(found.faces) == sum(len(solid.faces) for solid in layout_solids(LAYOUT))
    low, high = found.points.min(axis=0), found.points.max(axis=0)
    if kind == "obj":
        np.testing.assert_allclose([low, high], [[0, -0.1, 0], [4.01, 3, 2.5]], atol=1e-4)
    else:  # meters, y up
        np.testing.assert_allclose([low, high], [[0, 0, -1.5], [2.005, 1.25, 0.05]], atol=1e-4)
        assert found.up_axis in (None, "y")


@pytest.mark.parametrize("kind", ["obj", "glb"])
def test_meshes_in_map_coordinates_are_exact(kind, tmp_path):
    place = np.array([500_000.12, 4_649_776.25, 100.5])
    for name, layout in (("near", LAYOUT), ("far", LAYOUT.translated(place))):
        write_layout(tmp_path / f"{name}.{kind}", layout)
    near, far = (read_point_cloud(tmp_path / f"{name}.{kind}") for name in ("near", "far"))
    assert far.offset is not None
    shift = place if kind == "obj" else place[[0, 2, 1]] * (1, 1, -1)
    np.testing.assert_allclose(far.points + far.offset - shift, near.points, atol=1e-4)


def test_texts_come_back(tmp_path):
    for kind in ("txt", "json"):
        write_layout(tmp_path / f"room.{kind}", LAYOUT)
    assert Layout.parse((tmp_path / "room.txt").read_text(), strict=True) == LAYOUT
    assert Layout.from_dict(json.loads((tmp_path / "room.json").read_text())) == LAYOUT


def test_what_cannot_be_written_is_named(tmp_path):
    with raises(ValueError, naming="room.stl"):
        write_layout(tmp_path / "room.stl", LAYOUT)
    with pytest.raises(ValueError, match="no walls and no boxes"):
        write_layout(tmp_path / "room.obj", Layout())
