import math

import pytest
import torch

from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.any2point.virtual_projection import VIEW_ROTATIONS, line_positions, project
from hf_any3d.modeling.encoders import PositionTable
from hf_any3d.modeling.point_ops.geometry import normalize_centers
from tests.tiny_encoders import clouds

ROTATIONS = torch.tensor(VIEW_ROTATIONS, dtype=torch.float32)
LINE = PositionTable("line", torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), 1, 40)
PLANE = PositionTable("plane", torch.randn(15, 6, generator=torch.Generator().manual_seed(0)), 3, 5)


def rotated(centers):
    return torch.einsum("vij,bgj->bvgi", ROTATIONS, centers)


@pytest.mark.parametrize(
    ("view", "quarters"), list(enumerate([(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 1), (0, -1, 1), (0, 1, 1)]))
)
def test_view_is_the_published_product_of_three_rotations(view, quarters):
    (ca, sa), (cb, sb), (cc, sc) = ((math.cos(q * math.pi / 2), math.sin(q * math.pi / 2)) for q in quarters)
    around_x = torch.tensor([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    around_y = torch.tensor([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    around_z = torch.tensor([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    torch.testing.assert_close(ROTATIONS[view], around_x @ around_y @ around_z, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mapping", ["stretch", "wrap"])
def test_line_places_are_the_same_for_shifted_and_scaled_clouds(mapping):
    centers = clouds(2, 20)
    expected = line_positions(rotated(centers), (1.0, -1.0, 0.0), 40, mapping)
    found = line_positions(rotated(centers * 3 + torch.tensor([5.0, -2.0, 1.0])), (1.0, -1.0, 0.0), 40, mapping)
    inner = (expected > 0.01) & (expected < 39.4)  # the ends themselves wrap around
    torch.testing.assert_close(found[inner], expected[inner], atol=1e-3, rtol=0)


@pytest.mark.parametrize("table", [LINE, PLANE], ids=["line", "plane"])
def test_equal_centers_give_finite_places_and_one_embedding(table):
    centers = normalize_centers(torch.full((2, 7, 3), 0.25))
    projection = project(centers, table, Any2PointConfig())
    assert projection.view_positions.isfinite().all()
    assert projection.embedding.isfinite().all()
    assert torch.equal(projection.embedding, projection.embedding[:1, :1].expand(2, 7, -1))


def test_transposed_positions_read_each_view_by_columns():
    centers = normalize_centers(clouds(2, 9))
    plain = project(centers, PLANE, Any2PointConfig(num_views=1)).embedding  # (batch, tokens, hidden)
    transposed = Any2PointConfig(num_views=1, released={"transposed_plane_positions": True})
    found = project(centers, PLANE, transposed).embedding
    assert torch.equal(found, plain.transpose(1, 2).reshape(2, 9, 6))
    assert not torch.equal(found, plain)


def test_image_size_of_the_config_replaces_sixteen_pixels_an_entry():
    centers = normalize_centers(clouds(2, 9))
    projection = project(centers, PLANE, Any2PointConfig(plane_cells=10, released={"plane_size": (100, 50)}))
    assert projection.extent == (100.0, 50.0) and projection.cell_size == 10.0
    # Equal viewing angles have equal entries for any size of a pixel.
    default = project(centers, PLANE, Any2PointConfig())
    torch.testing.assert_close(projection.embedding, default.embedding, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mapping", ["stretch", "wrap"])
def test_only_the_released_mapping_depends_on_the_other_clouds(mapping):
    config = Any2PointConfig(released={"line_mapping": mapping})
    centers = normalize_centers(clouds(3, 9))
    together = project(centers, LINE, config).embedding
    alone = torch.cat([project(cloud[None], LINE, config).embedding for cloud in centers])
    assert torch.allclose(together, alone, atol=1e-6) == (mapping == "stretch")
    assert bool(config.batch_dependent_flags) == (mapping == "wrap")


@pytest.mark.parametrize("table", [LINE, PLANE])
@pytest.mark.parametrize("token_places", ["order", "random"])
def test_places_without_projection_do_not_depend_on_coordinates(token_places, table):
    config = Any2PointConfig(controls={"token_places": token_places})
    one, other = project(clouds(2, 9, seed=1), table, config), project(clouds(2, 9, seed=2), table, config)
    assert torch.equal(one.view_positions, other.view_positions)
    assert torch.equal(one.embedding, other.embedding)
    assert torch.equal(one.places.entry[:, :, 1:], other.places.entry[:, :, 1:])
    extent = torch.tensor(one.extent)
    assert (one.view_positions >= 0).all() and (one.view_positions <= extent - 1).all()
    projected = project(clouds(2, 9, seed=1), table, Any2PointConfig())
    assert projected.view_positions.shape == one.view_positions.shape
    assert not torch.allclose(projected.embedding, one.embedding, atol=1e-3)
