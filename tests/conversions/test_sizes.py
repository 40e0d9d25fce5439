"""What converters read from the shapes of tensors: every size of a model, none of them that of a published one."""

from functools import partial

import pytest
import torch

from hf_any3d import (
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    Detr3DConfig,
    OpenShapeConfig,
    OpenShapeModel,
    PatchAlign3DConfig,
    PatchAlign3DModel,
    Uni3DConfig,
    Uni3DModel,
)
from hf_any3d.conversions.act.names import (
    autoencoder_sizes,
    category_sizes,
    classifier_sizes,
    segmenter_sizes,
    student_sizes as act_sizes,
)
from hf_any3d.conversions.detr3d.names import detr3d_sizes
from hf_any3d.conversions.openshape.names import openshape_sizes
from hf_any3d.conversions.patchalign3d.names import patchalign3d_sizes
from hf_any3d.conversions.uni3d.names import uni3d_sizes
from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection

BLOCKS = {"hidden_size": 128, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"in_channels": 5, "patch_widths": [8, 16, 24], "patch_pooled_width": 12}
DETECTOR = {
    "in_channels": 7,
    "group_widths": [6, 10],
    "encoder_hidden_size": 16,
    "encoder_layers": 3,
    "encoder_ffn_dim": 20,
    "hidden_size": 24,
    "decoder_layers": 2,
    "decoder_ffn_dim": 28,
    "num_heading_bins": 5,
    "num_labels": 4,
}
STUDENT = {
    "in_channels": 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "mlp_ratio": 1.5,
    "qkv_bias": True,
    "use_class_token": False,
    "side_network": True,
}
HEAD = {"propagation_widths": [10, 14], "segmentation_head_widths": [9, 11], "num_labels": 3}
AUTOENCODER = {
    "in_channels": 3,
    "hidden_size": 24,
    "num_codes": 20,
    "graph_input_width": 10,
    "graph_widths": [16, 8],
    "coarse_width": 22,
    "folding_width": 18,
    "group_size": 16,
}


def on_meta(model_class, config_class, sizes):
    """The names and shapes of a model of some sizes."""
    with torch.device("meta"):
        return model_class(config_class(**sizes)).state_dict()


@pytest.mark.parametrize(
    ("read", "classes", "sizes"),
    [
        (patchalign3d_sizes, (PatchAlign3DModel, PatchAlign3DConfig), BLOCKS | PATCHES | {"projection_dim": 10}),
        (
            openshape_sizes,
            (OpenShapeModel, OpenShapeConfig),
            BLOCKS | {"in_channels": 5, "patch_widths": [8, 16], "projection_dim": None},
        ),
        (
            uni3d_sizes,
            (Uni3DModel, Uni3DConfig),
            BLOCKS | PATCHES | {"gated_mlp": False, "mlp_norm": False, "projection_dim": 10},
        ),
        (
            uni3d_sizes,
            (Uni3DModel, Uni3DConfig),
            BLOCKS | PATCHES | {"gated_mlp": True, "mlp_norm": True, "projection_dim": 10},
        ),
        (detr3d_sizes, (Detr3DForPointCloudObjectDetection, partial(Detr3DConfig, attention_radii=None)), DETECTOR),
        (autoencoder_sizes, (ActAutoencoder, ActAutoencoderConfig), AUTOENCODER),
    ],
    ids=["patchalign3d", "openshape", "uni3d", "uni3d with gates", "detr3d", "act autoencoder"],
)
def test_sizes_are_read_from_tensors(read, classes, sizes):
    assert read(on_meta(*classes, sizes)) == sizes


def test_sizes_of_a_masked_detector_are_read_from_tensors():
    masked = DETECTOR | {"downsampling_widths": [13, 15]}
    state = on_meta(Detr3DForPointCloudObjectDetection, Detr3DConfig, masked | {"attention_radii": (1, 1, 1)})
    assert detr3d_sizes(state) == masked


def test_sizes_of_students_and_their_heads_are_read_from_tensors():
    heads, head = {"num_attention_heads": 2}, {"head_widths": [6, 5], "num_labels": 7}
    plain = STUDENT | {"qkv_bias": False, "use_class_token": True, "side_network": False}
    for student in (STUDENT, plain):
        state = on_meta(ActForPointCloudClassification, ActConfig, student | heads | head)
        assert act_sizes(state) == student
        assert classifier_sizes(state) == head
    parts = {"category_parts": [[0, 1], [2]], "category_width": 12, "segmentation_layers": [0, 1]}
    state = on_meta(ActForPartSegmentation, ActConfig, plain | heads | HEAD | parts)
    assert segmenter_sizes(state) == HEAD
    assert category_sizes(state) == {"category_width": 12, "num_categories": 2}
