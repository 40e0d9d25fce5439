"""Positions, neighbors and statistics do not change under autocast or TF32 matrix products."""

from contextlib import nullcontext

import pytest
import torch

from hf_any3d.modeling.act.modeling_act_autoencoder import EdgeLayer
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.any2point.virtual_projection import project
from hf_any3d.modeling.encoders import PositionTable
from hf_any3d.modeling.kernels.cells import membership
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods, encode_offsets, offset_frequencies
from hf_any3d.modeling.point_ops import chamfer_distance, farthest_point_sample, knn, three_nearest_interpolate
from hf_any3d.modeling.point_ops.geometry import normalize_centers
from hf_any3d.tuners.guided_adapter.method import CellNorm
from tests.modeling.rounded_products import RoundedProducts, rounded
from tests.tiny_act import tiny_act
from tests.tiny_encoders import clouds, tiny_scene_model

MODES = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16), "tf32": RoundedProducts}
models = pytest.mark.parametrize("model_class", ["Any2Point", "ACT"])


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


def interpolated_places():
    """A block of a scene three meters wide."""
    points, places = 3 * clouds(2, 200), 3 * clouds(2, 30, seed=5)
    return three_nearest_interpolate(points, places, places)


def neighbors(method):
    # Far from the origin, where squared norms are large beside the distances.
    points = clouds(1, 200) + 10
    return knn(points, points, 8, method=method, return_distances=True)[0]


def projected(kind):
    table = PositionTable(kind, torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), 1, 12)
    if kind == "plane":
        table = PositionTable(kind, table.weight, 3, 4)
    made = project(normalize_centers(clouds(2, 9)), table, Any2PointConfig())
    return made.view_positions, made.places.entry


def cell_statistics():
    norm = CellNorm(2, 8).train()
    cell = torch.randint(0, 5, (3, 2, 9), generator=torch.Generator().manual_seed(0))
    rows = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(1)) + 3
    return norm(rows, membership(cell, 5)), norm.running_mean, norm.running_var


def edge_statistics():
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(2, 10, 16, generator=generator) + 2
    index = torch.randint(10, (2, 10, 4), generator=generator)
    return EdgeLayer(4, 8).largest_of_edges(terms, index, terms)


def encoded_offsets():
    """Waves of offsets as training reads them, from a table with fewer nodes than offsets."""
    offsets = clouds(1, 400).view(50, 8, 3)
    neighborhoods = Neighborhoods(
        torch.zeros(4, 6),
        torch.zeros(50, 8, dtype=torch.long),
        torch.zeros(50, dtype=torch.long),
        offsets,
        offset_frequencies(12, 1000.0, 20.0),
    )
    assert len(neighborhoods.table.waves) < offsets.numel()
    rows = neighborhoods.rows(slice(0, 50))
    torch.testing.assert_close(
        rows, encode_offsets(offsets, neighborhoods.frequencies).flatten(0, 1), rtol=0, atol=1e-4
    )
    return rows


WORK = {
    "interpolated places": interpolated_places,
    "neighbors": lambda: neighbors("exact"),
    "neighbors by product": lambda: neighbors("matmul"),
    "samples": lambda: farthest_point_sample(clouds(2, 100), 20),
    "distances of clouds": lambda: chamfer_distance(clouds(2, 50), clouds(2, 40, seed=3), reduction="none"),
    "line": lambda: projected("line"),
    "plane": lambda: projected("plane"),
    "cell statistics": cell_statistics,
    "edge statistics": edge_statistics,
    "encoded offsets": encoded_offsets,
}


@pytest.mark.parametrize("work", WORK)
def test_geometry_is_the_same_in_every_mode(work, mode):
    expected = WORK[work]()
    with mode():
        found = WORK[work]()
    one, other = (value if isinstance(value, tuple) else (value,) for value in (found, expected))
    for ours, wanted in zip(one, other, strict=True):
        assert ours.dtype == wanted.dtype
        assert torch.equal(ours, wanted), f"{work}: moved by {(ours - wanted).abs().max()}"


def test_rounded_products_are_rounded():
    one, other = torch.rand(1, 5), torch.rand(5, 1)
    with RoundedProducts() as mode:
        found = one @ other
    torch.testing.assert_close(found, rounded(one) @ rounded(other))
    assert mode.products == ["mm"] and found != one @ other


@pytest.mark.slow
@models
@pytest.mark.parametrize("mode", [*MODES, "bfloat16 model"])
@torch.no_grad()
def test_a_segmentation_model_interpolates_in_full_precision(model_class, mode, monkeypatch):
    """Check the inputs and positions that the head interpolates."""
    from hf_any3d.modeling.act import ActForSemanticSegmentation
    from hf_any3d.modeling.any2point import modeling_any2point
    from hf_any3d.modeling.point_encoders import point_transformer

    module = modeling_any2point if model_class == "Any2Point" else point_transformer
    model = tiny_scene_model() if model_class == "Any2Point" else tiny_act(ActForSemanticSegmentation)
    seen = []

    def note(query, points, features):
        made = three_nearest_interpolate(query, points, features)
        # Any2Point blends places with the features, behind them.
        seen.append((query, points, made[..., -3:] if model_class == "Any2Point" else query))
        return made

    monkeypatch.setattr(module, "three_nearest_interpolate", note)
    for context in (nullcontext, MODES.get(mode, nullcontext)):
        with context():
            model.eval()(points=3 * clouds(2, 60))
        if mode == "bfloat16 model":
            model.bfloat16()
    for ours, wanted in zip(seen[1], seen[0], strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, wanted)


@models
@torch.no_grad()
def test_a_half_precision_model_samples_the_same_centers(model_class):
    from hf_any3d.modeling.act import ActModel
    from tests.tiny_encoders import tiny_model

    model = tiny_model("vit").any2point if model_class == "Any2Point" else tiny_act(ActModel)
    points = clouds(3, 60) + 20  # where bfloat16 has one number in an eighth
    expected = model(points)
    found = model.bfloat16()(points)
    assert found.centers.dtype == torch.float32
    assert torch.equal(found.center_index, expected.center_index) and torch.equal(found.centers, expected.centers)
