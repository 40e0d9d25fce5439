"""Views of a model: cells are those of its own forward pass, attention is that of its own layers, point by point."""

import numpy as np
import pytest
import torch
from peft import get_peft_model

from examples import plot_cells
from hf_any3d import GuidedAdapterConfig, PointCloudProcessor
from hf_any3d.tuners.guided_adapter import GuidedAdapterLayer
from tests.errors import raises
from tests.tiny_encoders import clouds, tiny_model


def nearest(points: torch.Tensor, centers: torch.Tensor) -> list[int]:
    """Return the number of the nearest center of each point, one by one."""
    return [int(((centers - point) ** 2).sum(dim=1).argmin()) for point in points[:, :3]]


def geometry_of_a_forward_pass(model, points):
    """Return the geometry that the first adapted layer gets, and the centers of the tokens."""
    seen = []
    layer = next(module for module in model.modules() if isinstance(module, GuidedAdapterLayer))
    hook = layer.register_forward_pre_hook(lambda _, __, given: seen.append(given["geometry"]), with_kwargs=True)
    with torch.no_grad():
        centers = model.base_model.model.any2point(points[None]).centers[0]
    hook.remove()
    return seen[0], centers


@pytest.mark.parametrize("encoder", ["bert", "dinov2"])
def test_cells_and_places_are_those_of_the_adapters(encoder):
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig())
    points = torch.cat([clouds(1, 60)[0], torch.rand(60, 3, generator=torch.Generator().manual_seed(0))], dim=1)
    points = points[:, : model.base_model.model.config.in_channels]
    geometry, centers = geometry_of_a_forward_pass(model, points)
    views, settings = plot_cells.views_of_cells(model, points)
    own, most = nearest(points, centers), 0
    rows = geometry.view_cells().row[0].tolist()
    for number, (row, place) in enumerate(zip(rows, geometry.view_positions[0].numpy(), strict=True)):
        in_space, in_view = views[2 * number : 2 * number + 2]
        # The drawn cells, without those that are empty.
        drawn = [sorted(set(row)).index(cell) for cell in row]
        most = max(most, len(set(row)))
        np.testing.assert_array_equal(in_space.points, points[:, :3].numpy())
        assert in_space.labels.tolist() == [drawn[token] for token in own] and in_view.labels.tolist() == drawn
        across = place[:, 0]
        rising = (across.max() - across.min()) / 3 * np.arange(len(across)) / (len(across) - 1)
        up = -place[:, 1] if place.shape[1] == 2 else rising
        np.testing.assert_allclose(in_view.points, np.stack([across, up], axis=1), rtol=1e-5)
        kind = "plane" if encoder == "dinov2" else "line"
        assert (in_space.title, in_view.title) == (f"view {number + 1}: cells", f"view {number + 1}: {kind}")
        assert in_space.note == f"{len(set(row))} cells, {len(row)} tokens" and in_view.note == ""
    assert len(views) == 2 * len(rows) and settings == {
        "names": [f"cell {number}" for number in range(1, most + 1)],
        "label_name": "cell",
        "columns": 4,
        "title": "cells of the virtual projection",
    }


def test_a_file_gives_a_page_or_a_picture(tmp_path, capsys):
    tiny_model("bert").save_pretrained(tmp_path)
    PointCloudProcessor(num_points=48).save_pretrained(tmp_path)
    np.save(tmp_path / "chair.npy", clouds(1, 60)[0].numpy())
    for name, words in (("cells.html", []), ("attention.png", ["--attention"])):
        plot_cells.main([str(tmp_path), str(tmp_path / "chair.npy"), "--output", str(tmp_path / name), *words])
        assert (tmp_path / name).stat().st_size > 1000 and name in capsys.readouterr().out
    with raises(ValueError, naming="Linear has no virtual projection"):
        plot_cells.views_of_cells(torch.nn.Linear(2, 2), clouds(1, 60)[0])
