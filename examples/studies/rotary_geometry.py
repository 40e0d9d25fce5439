"""What the rotations of two tokens can tell of where they are to each other, measured without any training."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.any2point.virtual_projection import normalize_centers, project
from hf_any3d.modeling.encoders import find_family
from hf_any3d.modeling.encoders.rotary import combine_views
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points

PAIRS = 400


@torch.no_grad()
def offsets_told(encoder: PreTrainedModel, rule: str, rows: Dataset, num_tokens: int) -> float:
    """Share of the variance of offsets between tokens that a linear map reads from how they are turned.

    Attention of a rotary encoder knows two tokens' places by the cosines and sines of the angles between them, in
    each head and frequency. A least squares map from these to the offset `(x, y, z)` is fitted on every other cloud
    and judged on the rest. 1: offsets are all there; 1/3: one direction of three.

    Args:
        encoder: a ModernBERT; its weights play no part, its frequencies do.
        rule: one of `Any2PointConfig.rotary_views`.
        rows: clouds.
        num_tokens: tokens of a cloud.
    """
    config = Any2PointConfig(encoder_config=encoder.config, num_tokens=num_tokens, rotary_views=rule)
    points = torch.as_tensor(np.asarray(rows["points"]), dtype=torch.float32)
    centers = normalize_centers(gather_points(points, farthest_point_sample(points, num_tokens)))
    places = project(centers, find_family(encoder.config).positions(encoder), config).places.entry[:, :, 1:]
    angles = places.unsqueeze(-1) * encoder.rotary_emb.full_attention_inv_freq
    angles = combine_views(angles, rule, encoder.config.num_attention_heads)[..., 0, :]  # (clouds, heads, tokens, f)
    first, second = torch.randint(num_tokens, (2, PAIRS), generator=torch.Generator().manual_seed(0))
    turned = (angles[:, :, first] - angles[:, :, second]).transpose(1, 2).flatten(2)  # (clouds, pairs, heads * f)
    seen = torch.cat([turned.cos(), turned.sin(), torch.ones_like(turned[..., :1])], dim=-1).double()
    offsets = (centers[:, first] - centers[:, second]).double()  # (clouds, pairs, 3)
    fit = torch.linalg.lstsq(seen[::2].flatten(0, 1), offsets[::2].flatten(0, 1), driver="gelsd").solution
    left = offsets[1::2].flatten(0, 1) - seen[1::2].flatten(0, 1) @ fit
    return float(1 - left.square().sum() / offsets[1::2].square().sum())
