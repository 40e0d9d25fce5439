"""Show the cells of an Any2Point model's views, the attention within them, or that of its layers, on a cloud.

    python examples/plot_cells.py outputs/quickstart/model chair.ply --output cells.html
    python examples/plot_cells.py outputs/quickstart/model chair.ply --guidance --output guidance.html
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
from hf_any3d.modeling.kernels.cells import Membership
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.point_ops.geometry import Geometry, normalize_centers
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.tuners.guided_adapter.method import CellAttention
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


@torch.no_grad()
def views_of_guidance(model: Any, points: torch.Tensor, layer: int = -1) -> tuple[list[CloudView], dict[str, Any]]:
    """Show what a guided adapter attends to: how much attention each token gets from the tokens of its cell.

    Args:
        model: An Any2Point model with a guided adapter.
        points: (points, channels), input of the model.
        layer: Number of the adapted layer, from 0; the last one by default.

    Returns:
        For each view, the cloud with every point colored by the attention that its nearest token gets from its cell,
        as the mean over the heads, in multiples of what it would get if all tokens of the cell got the same; and the
        settings for `write_views`.

    Raises:
        ValueError: The model has no guided adapter.

    Source: Any2Point (arXiv 2404.07989), Sec. 3.3.
    """
    backbone = _backbone(model)
    weights: list[torch.Tensor] = []

    def keep(attention: CellAttention, inputs: tuple[torch.Tensor, Membership]) -> None:
        tokens, cells = inputs
        query, key, _ = attention.project(tokens)  # (batch, views, heads, tokens, head width) each
        scores = query @ key.transpose(-2, -1) * attention.scale + cells.apart
        weights.append(scores.softmax(dim=-1))  # rows sum to 1, with 0 for tokens of other cells

    hooks = [part.register_forward_pre_hook(keep) for part in model.modules() if isinstance(part, CellAttention)]
    try:
        with evaluation_mode(model):
            centers = backbone(points[None].to(backbone.device)).centers[0]
    finally:
        for hook in hooks:
            hook.remove()
    if not weights:
        raise ValueError(f"model: {type(model).__name__} has no guided adapter with guidance")
    xyz, nearest = _nearest_token(points, centers)
    # What all tokens give to each one; with equal attention within a cell this is 1.
    got = weights[layer][0].float().mean(dim=1).sum(dim=1).cpu().numpy()  # (views, tokens)
    views = [
        CloudView(xyz, values=values[nearest], title=f"view {number}: attention within cells")
        for number, values in enumerate(got, 1)
    ]
    return views, {"value_name": "attention", "columns": 3, "title": "attention of the guided adapter within cells"}


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
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--attention", action="store_true", help="show the layers' attention instead of cells")
    shown.add_argument("--guidance", action="store_true", help="show the guided adapter's attention within cells")
    parser.add_argument("--output", type=Path, default=Path("cells.html"), help=".html or .png file")
    given = parser.parse_args(arguments)
    model = AutoModel.from_pretrained(given.model, attn_implementation="eager" if given.attention else None)
    processor = PointCloudProcessor.from_pretrained(given.model)
    points = processor([str(given.file)])["points"][0]
    draw = views_of_attention if given.attention else views_of_guidance if given.guidance else views_of_cells
    views, settings = draw(model, points)
    print(write_views(given.output, views, up_axis=processor.up_axis, **settings))


if __name__ == "__main__":
    main()
