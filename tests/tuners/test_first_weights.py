"""Weights of an adapter before its first training step, which decide where the adapted model starts."""

import math
import re

import pytest
import torch
from torch import nn

from hf_any3d import (
    BitFitConfig,
    DAPTConfig,
    GuidedAdapterConfig,
    IDPTConfig,
    PointGSTConfig,
    PPTConfig,
    PromptTokensConfig,
    SideTuningConfig,
)
from hf_any3d.tuners.bitfit import BitFitLayer
from hf_any3d.tuners.dapt import DAPTLayer
from hf_any3d.tuners.guided_adapter import GuidedAdapterLayer
from hf_any3d.tuners.idpt import IDPTLayer
from hf_any3d.tuners.pointgst import PointGSTLayer
from hf_any3d.tuners.ppt import PPTLayer
from hf_any3d.tuners.prompt_tokens import PromptTokensLayer
from hf_any3d.tuners.side_tuning import SideTuningLayer

HIDDEN, R = 48, 32


def uniform(bound):
    def check(weight):
        # The largest of many numbers is close to the bound.
        least = 0.98 if weight.numel() > 500 else 0.8
        return least * bound < weight.abs().max() <= bound and weight.mean().abs() < 0.3 * bound

    return check


def xavier(inputs, outputs):
    return uniform(math.sqrt(6 / (inputs + outputs)))


def as_linear(inputs):
    """What `nn.Linear` draws for its weight and its bias."""
    return uniform(1 / math.sqrt(inputs))


def normal(middle=0.0):
    def check(weight):
        return 0.014 < weight.std() < 0.026 and (weight.mean() - middle).abs() < 0.01

    return check


def full(value):
    return lambda weight: bool((weight == value).all())


ZEROS, ONES = full(0), full(1)
NORM = {r"norm.*weight": ONES, r"norm.*bias": ZEROS}
SIDE = {
    r"(down|entry)\..*": as_linear(HIDDEN),
    r"gate\..*": ZEROS,
    r"fc1\..*": as_linear(R),
    r"fc2\..*": as_linear(2 * R),
    r"up\..*bias": ZEROS,
    **NORM,
}
SPECTRAL = {
    r"down\..*weight": xavier(HIDDEN, R),
    r"down\..*bias": as_linear(HIDDEN),
    r"(adapt1|up)\..*bias": ZEROS,
    **NORM,
}
DYNAMIC = {
    r"adapter_(scale|down_proj)\..*weight": as_linear(HIDDEN),
    r"adapter_\w+_proj\..*bias|adapter_scale\..*bias": ZEROS,
    r"adapter_adapter_layer_norm_before.*weight": ONES,
    r"adapter_adapter_layer_norm_before.*bias": ZEROS,
}
GUIDED = {
    r"down\..*weight": xavier(HIDDEN, R),
    r".*bias": ZEROS,
    r"(view|voxel)_norm\..*weight|attention\..*norm_weight": ONES,
    r"attention\..*qkv_weight": xavier(HIDDEN, 36),
    r"attention\..*out_weight": xavier(12, HIDDEN),
}


def guided(**settings):
    layer = GuidedAdapterLayer(nn.Linear(HIDDEN, HIDDEN), "", HIDDEN, views=3)
    layer.update_layer("default", GuidedAdapterConfig(r=R, **settings))
    return layer


def side_tuning(**settings):
    layer = SideTuningLayer(nn.Linear(HIDDEN, HIDDEN), HIDDEN, is_last=True)
    layer.update_layer("default", SideTuningConfig(r=R, **settings))
    return layer


def pointgst(**settings):
    layer = PointGSTLayer(nn.Linear(HIDDEN, HIDDEN), HIDDEN, is_open=False)
    layer.update_layer("default", PointGSTConfig(r=R, **settings))
    return layer


def dapt(**settings):
    layer = DAPTLayer(nn.Sequential(nn.Linear(HIDDEN, 64)), HIDDEN, is_open=True, is_first=True, final_norm=None)
    layer.update_layer("default", DAPTConfig(r=R, **settings))
    return layer


def ppt():
    layer = PPTLayer(nn.Linear(HIDDEN, HIDDEN), HIDDEN)
    layer.update_layer("default", PPTConfig(r=R))
    return layer


def idpt(**settings):
    layer = IDPTLayer(nn.Linear(HIDDEN, HIDDEN), HIDDEN, is_open=False)
    layer.update_layer("default", IDPTConfig(**settings))
    return layer


def prompt_tokens(**settings):
    layer = PromptTokensLayer(nn.Linear(HIDDEN, HIDDEN), HIDDEN)
    layer.update_layer("default", PromptTokensConfig(num_prompts=R, **settings))
    return layer


def bitfit():
    layer = BitFitLayer(nn.Linear(HIDDEN, HIDDEN))
    layer.update_layer("default", BitFitConfig())
    return layer


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: guided(gate=0.25), GUIDED | {r"up\..*weight": ZEROS, r"gate\..*": full(0.25)}),
        (lambda: guided(init_weights=False), GUIDED | {r"up\..*weight": xavier(R, HIDDEN)}),
        (side_tuning, SIDE | {r"up\..*weight": ZEROS}),
        (lambda: side_tuning(init_weights=False), SIDE | {r"up\..*weight": as_linear(R)}),
        (pointgst, SPECTRAL | {r"(adapt1|up)\..*weight": ZEROS}),
        (
            lambda: pointgst(init_weights=False),
            SPECTRAL | {r"adapt1\..*weight": xavier(R, R), r"up\..*weight": xavier(R, HIDDEN)},
        ),
        (
            dapt,
            DYNAMIC
            | {r"adapter_up_proj\..*weight": ZEROS}
            | {r"(scales_0|prompt|tokens)\..*gamma": ONES, r"(scales_0|prompt|tokens)\..*beta": ZEROS},
        ),
        (
            lambda: dapt(scales="random", init_weights=False),
            DYNAMIC
            | {r"adapter_up_proj\..*weight": as_linear(R)}
            | {r"(scales_0|prompt|tokens)\..*gamma": normal(1), r"(scales_0|prompt|tokens)\..*beta": normal()},
        ),
        (ppt, {r".*weight": normal(), r".*bias": ZEROS}),
        (
            idpt,
            {
                r"position\..*": normal(),
                r"conv[123]_0\..*weight": as_linear(2 * HIDDEN),
                r"conv5_0\..*weight": as_linear(3 * HIDDEN),
                r"conv\d_1\..*weight": ONES,
                r"conv\d_1\..*bias": ZEROS,
            },
        ),
        (prompt_tokens, {r"embedding\..*": xavier(R, HIDDEN)}),
        (lambda: prompt_tokens(positions=True), {r"(embedding|position)\..*": normal()}),
        (bitfit, {r"bias\..*": ZEROS}),
    ],
    ids=["guided", "guided at random", "side-tuning", "side-tuning at random", "PointGST", "PointGST at random"]
    + ["DAPT", "DAPT at random", "PPT", "IDPT", "prompts", "prompts with positions", "BitFit"],
)
def test_an_adapter_starts_as_documented(made, expected):
    torch.manual_seed(0)
    layer = made()
    weights = {
        re.sub(r"^(guided_adapter|side_tuning|pointgst|dapt|ppt|idpt|prompt_tokens|bitfit)_", "", name): weight
        for name, weight in layer.named_parameters()
        if "base_layer" not in name
    }
    used = set()
    for name, weight in weights.items():
        (pattern,) = [pattern for pattern in expected if re.fullmatch(pattern, name)]
        assert expected[pattern](weight.detach()), name
        used.add(pattern)
    assert used == expected.keys()


PUBLISHED = {
    DAPTConfig: {"positions": "once", "scales": "random"},
    IDPTConfig: {"train_position": False},
    PointGSTConfig: {
        "transform": "published",
        "signs": "solver",
        "distances": "expanded",
        "scale_over": "batch",
        "curve_cell": 0.01,
    },
    PPTConfig: {
        "modules_to_save": [
            "class_token",
            "position_embed",
            "patch_encoder.lift",
            "patch_encoder.lift_norm",
            "patch_encoder.widen",
            "classifier",
        ]
    },
}


@pytest.mark.parametrize("config", PUBLISHED)
def test_published_settings_are_those_of_the_released_program(config):
    assert config.published() == config(**PUBLISHED[config])
    assert config.published(inference_mode=True).inference_mode
