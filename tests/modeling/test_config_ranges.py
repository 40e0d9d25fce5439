"""The ranges of the numbers in configurations, as their errors state them."""

import re

import pytest

from hf_any3d.modeling.act import ActAutoencoderConfig, ActConfig
from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig
from hf_any3d.modeling.openshape import OpenShapeConfig
from hf_any3d.modeling.patchalign3d import PatchAlign3DConfig
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3Config
from hf_any3d.modeling.pointnet import PointNet2Config, PointNetConfig
from hf_any3d.modeling.uni3d import Uni3DConfig
from tests.modeling.test_config_checks import number_fields

# Ranges of Uni3D and PatchAlign3D, which have the same fields.
ALIGNED = {
    "0 to 10": "initializer_range",
    "0.001 to 1,000.0": "temperature",
    "1 to 65,536": (
        "head_widths hidden_size intermediate_size patch_pooled_width patch_widths projection_dim "
        "propagation_widths segmentation_head_widths"
    ),
    "0 to 1": "drop_path_rate head_dropout layer_norm_eps segmentation_head_dropout",
    "0 to 512": "segmentation_layers",
    "3 to 4,096": "in_channels",
    "1 to 100,000": "group_size num_groups",
    "1 to 512": "num_hidden_layers",
    "1 to 1,024": "num_attention_heads",
    "0 to 1,000,000.0": "sampling_min_squared_norm",
}

RANGES = {
    ActAutoencoderConfig: {
        "3 to 4,096": "in_channels",
        "1 to 100,000": "graph_neighbors group_size num_groups",
        "1 to 65,536": "coarse_width code_width folding_width graph_input_width graph_widths hidden_size patch_widths",
        "1 to 4,194,304": "num_codes",
        "1e-06 to 1,000,000.0": "code_scale",
        "0 to 1,000,000.0": "commitment_weight sampling_min_squared_norm",
        "-274,877,906,944 to 274,877,906,944": "code_ema_decay",
        "0 to 1": "code_restart_share prompt_dropout",
        "0 to 100,000": "num_prompts",
        "0 to 10": "initializer_range",
    },
    ActConfig: {
        "0 to 1,000,000": "unknown_bank_rows unknown_rows",
        "-10,000.0 to 10,000.0": "unknown_distance unknown_side unknown_surprise",
        "-1,000,000.0 to 1,000,000.0": "unknown_threshold",
        "0 to 1": (
            "decoder_drop_path_rate drop_path_rate head_dropout layer_norm_eps mask_ratio "
            "segmentation_head_dropout unknown_share"
        ),
        "3 to 4,096": "in_channels",
        "1 to 100,000": "group_size num_groups",
        "1 to 65,536": (
            "category_width feature_head_width head_widths hidden_size patch_pooled_width patch_widths "
            "propagation_widths segmentation_head_widths"
        ),
        "1 to 512": "num_hidden_layers",
        "1 to 1,024": "decoder_num_attention_heads num_attention_heads",
        "0 to 256": "mlp_ratio",
        "0 to 10": "initializer_range",
        "0 to 1,000,000.0": "sampling_min_squared_norm",
        "0 to 512": "class_token_layer decoder_num_hidden_layers segmentation_layers",
    },
    OpenShapeConfig: {
        "0 to 10": "initializer_range",
        "0.001 to 1,000.0": "temperature",
        "1 to 65,536": (
            "head_widths hidden_size intermediate_size patch_widths projection_dim propagation_widths "
            "segmentation_head_widths"
        ),
        "0 to 1": "drop_path_rate head_dropout layer_norm_eps segmentation_head_dropout",
        "0 to 512": "segmentation_layers",
        "3 to 4,096": "in_channels",
        "1 to 100,000": "group_size num_groups",
        "1e-06 to 1,000,000.0": "group_radius",
        "1 to 512": "num_hidden_layers",
        "1 to 1,024": "num_attention_heads",
    },
    Uni3DConfig: ALIGNED,
    PatchAlign3DConfig: ALIGNED,
    PointTransformerV3Config: {
        "3 to 4,096": "in_channels",
        "1e-09 to 1,000,000,000.0": "grid_size",
        "1 to 512": "decoder_depths depths",
        "1 to 65,536": (
            "condition_size decoder_hidden_sizes head_widths hidden_sizes segmentation_head_widths "
            "text_embedding_size text_head_widths"
        ),
        "1 to 1,024": "decoder_num_attention_heads num_attention_heads",
        "1 to 100,000": "patch_sizes",
        "1 to 64": "pooling_strides",
        "0 to 256": "mlp_ratio",
        "0 to 1,000,000.0": "attention_scale layer_scale_init_value lovasz_weight rope_shift",
        "0 to 1": (
            "attention_dropout batch_norm_eps batch_norm_momentum drop_path_rate head_dropout hidden_dropout "
            "layer_norm_eps segmentation_head_dropout"
        ),
        "0 to 10": "initializer_range",
        "1e-06 to 1,000,000,000.0": "rope_theta",
        "1 to 1,000.0": "rope_jitter rope_rescale",
        "0.001 to 1,000.0": "temperature",
    },
    PointNetConfig: {
        "3 to 4,096": "in_channels",
        "1 to 65,536": "head_widths hidden_sizes",
        "0 to 1": "head_dropout",
    },
    PointNet2Config: {
        "3 to 4,096": "in_channels",
        "1 to 65,536": "head_widths hidden_sizes",
        "0 to 1": "head_dropout",
        "1 to 100,000": "num_centers num_neighbors",
        "1e-06 to 1,000,000.0": "radii",
    },
    ImageBindAudioConfig: {
        "1 to 65,536": "hidden_size num_frames num_mel_bins",
        "1 to 512": "num_hidden_layers",
        "1 to 1,024": "num_attention_heads",
        "1 to 1,048,576": "intermediate_size",
        "0 to 1": "attention_dropout layer_norm_eps patch_norm_eps",
        "1 to 4,096": "patch_size stride",
        "0 to 10": "initializer_range",
    },
}


def stated(config_class: type) -> dict[str, list[str]]:
    """Return the fields of each range."""
    ranges: dict[str, list[str]] = {}
    for name, kind in number_fields(config_class):
        wrong = [-(10**13)] if kind.startswith("list") else -(10**13)
        with pytest.raises(ValueError, match=name) as error:
            config_class(**{name: wrong})
        found = re.fullmatch(rf"{name}=-10000000000000; expected (.*)", str(error.value))
        assert found, str(error.value)
        ranges.setdefault(found[1], []).append(name)
    return {limits: sorted(names) for limits, names in ranges.items()}


@pytest.mark.parametrize("config_class", RANGES, ids=lambda config_class: config_class.__name__)
def test_each_number_has_its_range(config_class):
    expected = {limits: sorted(names.split()) for limits, names in RANGES[config_class].items()}
    assert stated(config_class) == expected
