"""Show the cells of an Any2Point model's views, or the attention of its layers, on a cloud.

    python examples/plot_cells.py outputs/quickstart/model chair.ply --output cells.html
    python examples/plot_cells.py outputs/quickstart/model chair.ply --attention --output attention.png

Any2Point projects the tokens of a cloud into views, and guided adapters attend within cells of these views.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

import hf_any3d  # noqa: F401  registers models
from hf_any3d.modeling.any2point import Any2PointModel
from hf_any3d.modeling.any2point.virtual_projection import project
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.point_ops.geometry import Geometry, normalize_centers
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.visualization.show import write_views
from hf_any3d.visualization.viewer import CloudView


@torch.no_grad()
def views_of_cells(model: Any, points: torch.Tensor) -> tuple[list[CloudView], dict[str, Any]]:
    """Show the virtual projection of an Any2Point model and the cells within which its adapters attend.

    Args:
        model: An Any2Point model, with or without an adapter around it.
        points: (points, channels), input of the model.

    Returns:
        For each view, the cloud with every point colored by the cell of its nearest token, and the tokens at their
        places in the view; and the settings for `write_views`.

    Raises:
        ValueError: The model has no virtual projection.

    Source: Any2Point (arXiv 2404.07989), Sec. 3.2 and 3.3.
    """
    backbone = _backbone(model)
    config = backbone.config
    with evaluation_mode(backbone):
        tokens = backbone.point_tokenizer(points[None].to(backbone.device))
    # As in the model's forward pass.
    centers = normalize_centers(tokens.centers) if config.normalize_centers else tokens.centers
    projection = project(centers, backbone.family.positions_of(backbone.encoder), config)
    geometry = Geometry(centers.float(), projection.view_positions, projection.extent, projection.cell_size)
    cells = geometry.view_cells().row[0].cpu().numpy()  # (views, tokens)
    places = projection.view_positions[0].float().cpu().numpy()  # (views, tokens, 1 or 2)
    xyz, nearest = _nearest_token(points, tokens.centers[0])
    views, most = [], 0
    for number, (place, cell) in enumerate(zip(places, cells, strict=True), 1):
        # Cells without tokens have numbers too; drawn ones are counted without gaps.
        cell = np.unique(cell, return_inverse=True)[1]
        most = max(most, int(cell.max()) + 1)
        across = place[:, 0]
        # On a line, tokens are drawn on rising steps, so that those at one place stay visible.
        up = -place[:, 1] if place.shape[1] == 2 else np.linspace(0, float(np.ptp(across)) / 3, len(across))
        kind, count = "plane" if place.shape[1] == 2 else "line", f"{cell.max() + 1} cells, {len(cell)} tokens"
        views.append(CloudView(xyz, labels=cell[nearest], title=f"view {number}: cells", note=count))
        views.append(CloudView(np.stack([across, up], axis=1), labels=cell, title=f"view {number}: {kind}"))
    names = [f"cell {number}" for number in range(1, most + 1)]
    return views, {"names": names, "label_name": "cell", "columns": 4, "title": "cells of the virtual projection"}


@torch.no_grad()
def views_of_attention(model: Any, points: torch.Tensor) -> tuple[list[CloudView], dict[str, Any]]:
    """Show how much each layer's class token attends to the parts of a cloud, as the mean over the heads.

    Args:
        model: An Any2Point model with eager attention: `from_pretrained(…, attn_implementation="eager")`.
        points: (points, channels), input of the model.

    Returns:
        For each layer, the cloud with every point colored by the weight of its nearest token, relative to a uniform
        one; and the settings for `write_views`.

    Raises:
        ValueError: The model has no virtual projection, or does not return attention weights.
    """
    backbone = _backbone(model)
    with evaluation_mode(backbone):
        output = backbone(points[None].to(backbone.device), output_attentions=True)
    xyz, nearest = _nearest_token(points, output.centers[0])
    count, views = output.centers.shape[1], []
    for number, weights in enumerate(output.attentions, 1):  # (batch, heads, 1 + tokens, keys)
        # Row 0 is that of the class token, and the last keys are the patches.
        weight = weights[0].float().mean(dim=0)[0, -count:]
        # In multiples of equal attention to all tokens, so that models with other numbers of tokens compare.
        views.append(CloudView(xyz, values=(weight * count).cpu().numpy()[nearest], title=f"layer {number}"))
    return views, {"value_name": "attention", "columns": 4, "title": "attention of the class token"}


def _backbone(model: Any) -> Any:
    """Return the part of an Any2Point model that has tokenizer and encoder."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = next((part for part in model.modules() if isinstance(part, Any2PointModel)), None)
    if backbone is None:
        raise ValueError(f"model: {type(model).__name__} has no virtual projection; expected an Any2Point model")
    return backbone


def _nearest_token(points: torch.Tensor, centers: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of points (points, 3), and the number of the nearest center of each, (points,)."""
    xyz = points[:, :3].float().cpu()
    return xyz.numpy(), torch.cdist(xyz, centers.float().cpu()).argmin(dim=1).numpy()


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and draw the page or picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or hub name of an Any2Point model")
    parser.add_argument("file", type=Path, help="point file or mesh")
    parser.add_argument("--attention", action="store_true", help="show attention instead of cells")
    parser.add_argument("--output", type=Path, default=Path("cells.html"), help=".html or .png file")
    given = parser.parse_args(arguments)
    model = AutoModel.from_pretrained(given.model, attn_implementation="eager" if given.attention else None)
    processor = PointCloudProcessor.from_pretrained(given.model)
    points = processor([str(given.file)])["points"][0]
    views, settings = (views_of_attention if given.attention else views_of_cells)(model, points)
    print(write_views(given.output, views, up_axis=processor.up_axis, **settings))


if __name__ == "__main__":
    main()
