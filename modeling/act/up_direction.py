"""Find which way is up in a cloud, by a small head on the packaged encoder that has learned upright shapes.

The head scores how upright a cloud looks. A cloud is scored in 24 poses, six directions up and four headings of each,
and the means over the headings are compared; quarter turns of a cloud therefore turn the answer, and change nothing
else. `python -m studies.up_direction` makes the file again; results: `studies/results/up_direction.md`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.act.network import ActEncoderNetwork
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.modeling.point_encoders.packaged_encoder import packaged_settings, packaged_tensors, packaged_weights
from hf_any3d.modeling.point_encoders.patches import cut_patches

WEIGHTS = Path(__file__).with_name("up_direction.safetensors")
POINTS = 1024
HEADINGS = 4
HEAD_WIDTH = 128


def quarter_turns(up_axis: str = "y") -> Tensor:
    """Return the 24 rotations by quarter turns, `(directions, headings, 3, 3)`, directions in the order of `UP_AXES`.

    A cloud `(points, 3)` times the transposed matrix has its direction along `up_axis`. The first heading is that of
    `hf_any3d.data.frames.axes.turn_up_axis`.
    """
    up = "xyz".index(up_axis)
    first = (up + 1) % 3
    second = (up + 2) % 3
    heading = torch.zeros(3, 3)
    heading[up, up] = heading[second, first] = 1
    heading[first, second] = -1
    turns = []
    for direction in UP_AXES:
        axis = "xyz".index(direction.removeprefix("-"))
        turn = torch.eye(3)
        if direction.startswith("-"):
            turn[axis, axis] = turn[(axis + 1) % 3, (axis + 1) % 3] = -1
        if axis != up:
            exchange = torch.eye(3)
            exchange[up, up] = exchange[axis, axis] = 0
            exchange[up, axis] = 1
            exchange[axis, up] = -1
            turn = exchange @ turn
        turns.append(torch.stack([torch.linalg.matrix_power(heading, number) @ turn for number in range(HEADINGS)]))
    return torch.stack(turns)


class UprightScore(nn.Module):
    """Scores of how upright clouds look, from 1024 points with y up."""

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        config = ActConfig(**packaged_settings())
        self.encoder = ActEncoderNetwork(config)
        width = len(config.pooling) * config.hidden_size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.head = nn.Sequential(nn.Linear(width, HEAD_WIDTH), nn.GELU(), nn.Dropout(0.5), nn.Linear(HEAD_WIDTH, 1))

    def forward(self, cloud: Tensor, turns: Tensor) -> Tensor:
        """Score a cloud `(points, 3)` after each of some rotations `(poses, 3, 3)`: `(poses,)`."""
        # Quarter turns move no point nearer to another: the patches of all poses are the same.
        patches = cut_patches(cloud[None], self.encoder.config, torch.float32)
        turned_back = turns.transpose(1, 2)
        neighborhoods = patches.neighborhoods[0].flatten(0, 1) @ turned_back  # (poses, groups * neighbors, 3)
        centers = patches.centers[0] @ turned_back  # (poses, groups, 3)
        return self.score(self.encoder.encode(neighborhoods.unflatten(1, patches.neighborhoods.shape[1:3]), centers))

    def score(self, features: Tensor) -> Tensor:
        """Score features `(…, width)` of the encoder: `(…,)`."""
        return self.head((features - self.mean) / self.scale)[..., 0]


@cache
def packaged_upright_score() -> UprightScore:
    """Return the score that comes with the package, shared."""
    score = UprightScore()
    stored = packaged_tensors(WEIGHTS)
    stored |= {f"encoder.{name}": weight for name, weight in packaged_weights().items()}
    score.load_state_dict(stored)
    return score.eval().requires_grad_(False)


@torch.no_grad()
def up_probabilities(points: Tensor) -> Tensor:
    """Return how likely each direction of `UP_AXES` points up in single objects.

    Args:
        points: `(clouds, points, channels)`, xyz first, in any unit.

    Returns:
        `(clouds, 6)` on the CPU; they sum to 1.
    """
    xyz = points[:, :POINTS, :3].detach().float().cpu()
    xyz = xyz - xyz.mean(dim=1, keepdim=True)
    xyz = xyz / xyz.norm(dim=-1).amax(dim=1).clamp(min=1e-30)[:, None, None]
    turns = quarter_turns().flatten(0, 1)  # (poses, 3, 3)
    model = packaged_upright_score()
    scores = torch.stack([model(cloud, turns) for cloud in xyz])  # (clouds, poses)
    return scores.unflatten(1, (-1, HEADINGS)).mean(dim=-1).softmax(dim=-1)
