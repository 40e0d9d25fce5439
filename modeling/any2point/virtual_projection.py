"""Virtual projection: positions of the frozen encoder for 3D tokens, and the cells that guide adapters.

No image or text is rendered. Centers are rotated into six views and projected to a line or a plane; the encoder's
learned position table is interpolated at these places (Any2Point, Sec. 3.2).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.encoders import PositionTable, TokenPlaces
from hf_any3d.modeling.layers.constants import constant

# Rx(a) Ry(b) Rz(c) for (a, b, c) in quarter turns (0,0,1) (1,0,1) (2,0,1) (3,0,1) (0,-1,1) (0,1,1), written exactly.
VIEW_ROTATIONS = (
    ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
    ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),
    ((0, 0, -1), (1, 0, 0), (0, -1, 0)),
    ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
)


@dataclass
class Projection:
    """Places of the tokens in the views."""

    # `(batch, views, tokens, 1)` entries of the line, or `(batch, views, tokens, 2)` pixels (x, y).
    view_positions: torch.Tensor
    extent: tuple[float, ...]  # length of the line, or (width, height) of the image, in the same units
    cell_size: float  # edge of a guidance cell, in the same units
    # `(batch, tokens, hidden)`, mean over the views of the encoder's positions; None if it adds none to tokens.
    embedding: torch.Tensor | None
    places: TokenPlaces  # in the units of the encoder's positions, with a class token first


def project(centers: torch.Tensor, table: PositionTable, config: Any2PointConfig) -> Projection:
    """Project centers `(batch, tokens, 3)` into the views and interpolate the encoder's positions there.

    The result has no gradient with respect to the centers; positions get one if the encoder is trained.
    """
    centers = centers.detach().float()
    rotations = constant(VIEW_ROTATIONS[: config.num_views], centers)
    # No matrix product: autocast and TF32 would round the places, and change cells and positions.
    rotated = (rotations.unsqueeze(1) * centers[:, None, :, None, :]).sum(dim=-1)  # (batch, views, tokens, 3)
    if table.kind == "line":
        # Encoders without a position table can have a line of any length.
        columns = table.columns or config.line_length or config.num_tokens
        extent: tuple[float, ...] = (float(columns),)
        if config.controls.token_places == "projected":
            place = line_positions(rotated, config.line_direction, columns, config.released.line_mapping)
        else:
            place = places_without_projection(rotated, extent, config)
        entry = place
        vectors = None
        if table.weight is not None:
            wrapped = config.released.line_mapping == "wrap"
            vectors = _read_stretched_line(table.weight, place) if wrapped else table.lookup(place)
        # Cells divide the line, however long the encoder's is.
        cell_size = columns / config.line_cells
    else:
        if config.released.swapped_plane_shape:
            table = dataclasses.replace(table, rows=table.columns, columns=table.rows)
        columns = table.columns
        extent = tuple(map(float, config.released.plane_size or (16 * columns, 16 * table.rows)))
        if config.controls.token_places == "projected":
            place = plane_positions(rotated, config.plane_distance, extent, config.released.plane_mapping)
        else:
            place = places_without_projection(rotated, extent, config)
        # The first and the last pixel are the first and the last patch of the encoder.
        scale = [(columns - 1) / (extent[0] - 1), (table.rows - 1) / (extent[1] - 1)]
        entry = place * constant(scale, place)
        vectors = None
        if table.weight is not None:
            vectors = table.lookup(entry)
            if config.released.plane_mapping == "wrap":
                # Places up to a pixel beyond the last entry are interpolated with zeros, as in the released programs.
                size = constant([columns, table.rows], entry)
                vectors = vectors * (size - entry).clamp(0, 1).prod(dim=-1, keepdim=True)
            if config.released.transposed_plane_positions:
                # The reshape keeps the transposed order in memory, which gives a token numbers of several others.
                vectors = vectors.transpose(-1, -2).reshape(vectors.shape)
        cell_size = extent[0] / config.plane_cells
    places = TokenPlaces.with_class_token(entry, table.rows, columns)
    # One position for a token: the mean over the views (Any2Point, Sec. 3.2).
    return Projection(place, extent, cell_size, None if vectors is None else vectors.mean(dim=1), places)


def places_without_projection(rotated: torch.Tensor, extent: Sequence[float], config: Any2PointConfig) -> torch.Tensor:
    """Return places `(batch, views, tokens, 1 or 2)` that do not depend on the coordinates, for comparison."""
    views, tokens = rotated.shape[1:3]
    if config.controls.token_places == "random":
        generator = torch.Generator().manual_seed(config.controls.seed)
        # The generator is on the CPU, so that places are the same on every device.
        fraction = torch.rand(views, tokens, len(extent), generator=generator)
    else:
        number = torch.arange(tokens)
        columns = tokens if len(extent) == 1 else math.ceil(math.sqrt(tokens))
        # Column and row in a grid that is as square as possible, both as shares from 0 to 1.
        along = [number % columns / max(columns - 1, 1), number // columns / max((tokens - 1) // columns, 1)]
        fraction = torch.stack(along[: len(extent)], dim=-1).expand(views, -1, -1)
    place = fraction * (torch.tensor(extent) - 1)
    return place.to(rotated.device).expand(len(rotated), -1, -1, -1)


def line_positions(rotated: torch.Tensor, direction: Sequence[float], length: int, mapping: str) -> torch.Tensor:
    """Project rotated centers to places on a line of `length` entries, `(batch, views, tokens, 1)`.

    "stretch" uses the full line for every cloud and view: the two outer tokens get the first and the last entry.
    "wrap" is the released mapping, with a shift by half a pixel and a modulo.
    """
    unit = constant(direction, rotated)
    unit = unit / unit.norm()
    # Coordinates along the line's direction, from the mean of the cloud.
    # As released; the mean cancels where the smallest is subtracted.
    along = ((rotated - rotated.mean(dim=2, keepdim=True)) * unit).sum(dim=-1)  # (batch, views, tokens)
    low = along.amin(dim=2, keepdim=True)
    high = along.amax(dim=2, keepdim=True)
    if mapping == "wrap":
        return ((along - low) / (high - low) * length - 0.5).remainder(length).unsqueeze(-1)
    # All tokens of a cloud may lie in a plane across the line.
    fraction = (along - low) / (high - low).clamp_min(torch.finfo(along.dtype).tiny)
    return (fraction * (length - 1)).unsqueeze(-1)


def plane_positions(rotated: torch.Tensor, distance: float, extent: Sequence[float], mapping: str) -> torch.Tensor:
    """Project rotated centers to pixels `(batch, views, tokens, 2)` of a pinhole camera at `distance` from the center.

    "clamp" maps slopes from -1 to 1 onto the image and clamps others. "wrap" is the released mapping: a shift by half
    a pixel, rows stretched by height / width, and a modulo.
    """
    width, height = extent
    depth = rotated[..., 2] + distance
    if mapping == "wrap":
        slope = rotated[..., :2] / (depth + 1e-12).unsqueeze(-1)
        # Points outside the image come in again on its other side.
        x = ((slope[..., 0] + 1) * width / 2 - 0.5).remainder(width)
        y = ((slope[..., 1] * (height / width) + 1) * height / 2 - 0.5).remainder(height)
        return torch.stack([x, y], dim=-1)
    # Slope ±1 is a viewing angle of 45°, the border of the image. Behind the camera, slopes would change their sign.
    slope = rotated[..., :2] / depth.clamp_min(1e-3).unsqueeze(-1)
    size = constant([width - 1, height - 1], rotated)
    return (slope.clamp(-1, 1) + 1) / 2 * size


def _read_stretched_line(weight: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Interpolate as the released programs: stretched over the batch, zero at integral places and beyond the end."""
    last = weight.shape[0] - 1
    place = place.squeeze(-1)
    # Over all clouds of a batch at once, so that a cloud's positions depend on the others.
    place = place * last / (place.amax() - place.amin())
    low = place.floor().clamp(0, last)
    high = place.ceil().clamp(0, last)
    # At whole places both neighbors are one entry and both weights 0, hence a position of zeros.
    weights = (high - place).unsqueeze(-1), (place - low).unsqueeze(-1)
    return weights[0] * weight[low.long()] + weights[1] * weight[high.long()]
